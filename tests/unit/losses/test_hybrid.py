"""The hybrid loss against float64 references written from METHOD's equations, and where floats are at their limits."""

import math

import pytest
import torch
from torch.nn.functional import softmax

from distwsss.losses.hybrid import (
    constrained_log_softmax,
    cross_entropy_term,
    hybrid_loss,
    negative_loss,
    positive_loss,
    sample_complements,
)

TEMPERATURES = [None, 1.0, 0.5, 0.04]
LOSSES = [positive_loss, negative_loss]


def pixels(rows: torch.Tensor) -> torch.Tensor:
    """n,K rows as logits 1,K,1,n."""
    return rows.T[None, :, None, :]


def random_case(seed=0, shape=(2, 5, 4, 6), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    b, k, h, w = shape
    logits = (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(k, (b, h, w), generator=generator)
    mask = torch.rand(b, h, w, generator=generator) < 0.6
    return logits.requires_grad_(), labels, mask


def adjustment(p):
    return (1 + p) * (1 + p**2) * (1 + p**4) * (1 + p**8)


def eq_7(z, y):
    """METHOD Eq. 7 word for word, as loops: dL_log/dz_j, p* = softmax(q) with q = z / ||z|| and tau = 1."""
    norm = math.sqrt(sum(float(v) ** 2 for v in z))
    return _eq_7(z, y, norm, 1.0)


def _eq_7(z, y, norm, temperature):
    exponents = [math.exp(float(v) / (temperature * norm)) for v in z]
    p = [value / sum(exponents) for value in exponents]
    error = [p[i] - (i == y) for i in range(len(z))]
    along = [sum(float(z[j]) * float(z[i]) / norm**2 * error[i] for i in range(len(z))) for j in range(len(z))]
    return torch.tensor([(error[j] - along[j]) / norm for j in range(len(z))], dtype=torch.float64)


def test_gradient_of_the_adjusted_cross_entropy_at_the_label():
    """Eq. 5: -(1 - p_y^16) for z_y."""
    logits, labels, mask = random_case()
    positive_loss(logits, labels, mask, temperature=None)[0].backward()
    p = softmax(logits.detach(), 1).gather(1, labels[:, None])[:, 0]
    found = logits.grad.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(found[mask], -(1 - p**16)[mask], rtol=1e-10, atol=1e-14)
    assert (logits.grad.movedim(1, -1)[~mask] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.04, 2.0])
def test_gradient_of_the_positive_loss_is_w_times_eq_7_over_tau(temperature):
    rows = torch.randn(12, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(12) % 7
    logits = pixels(rows).clone().requires_grad_()
    mask = torch.ones(1, 1, 12, dtype=torch.bool)
    positive_loss(logits, labels[None, None], mask, temperature=temperature)[0].backward()
    for n, (z, y) in enumerate(zip(rows, labels.tolist(), strict=True)):
        weight = adjustment(softmax(z, 0)[y])
        expected = weight * _eq_7(z, y, float(z.norm()), temperature) / temperature
        torch.testing.assert_close(logits.grad[0, :, 0, n], expected, rtol=1e-9, atol=1e-12)
        if temperature == 1.0:
            torch.testing.assert_close(expected, weight * eq_7(z, y))


def chosen(logits, labels, mask, temperature):
    """p and p* of the labels in `mask`."""
    z = logits.detach().movedim(1, -1)[mask]
    y = labels[mask][:, None]
    p = softmax(z, 1)
    p_star = p if temperature is None else softmax(z / (temperature * z.norm(dim=1, keepdim=True)), 1)
    return p.gather(1, y), p_star.gather(1, y)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_positive_loss_is_its_equation(temperature):
    case = random_case()
    p, p_star = chosen(*case, temperature)
    found, _ = positive_loss(*case, temperature=temperature)
    torch.testing.assert_close(found, -(adjustment(p) * p_star.log()).sum())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_negative_loss_is_its_equation(temperature):
    case = random_case()
    p, p_star = chosen(*case, temperature)
    found, _ = negative_loss(*case, temperature=temperature)
    torch.testing.assert_close(found, -((1 - p) * (1 - p_star).log()).sum())


def test_cross_entropy_is_its_equation():
    case = random_case()
    p, _ = chosen(*case, None)
    torch.testing.assert_close(cross_entropy_term(*case)[0], -p.log().sum())


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("loss", LOSSES)
def test_pixels_of_the_mask_are_counted(loss, temperature):
    logits, labels, mask = random_case()
    _, count = loss(logits, labels, mask, temperature=temperature)
    assert (int(count), count.dtype) == (int(mask.sum()), torch.int64)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
def test_gradients_against_finite_differences_with_frozen_weights(temperature):
    """Dividing by the loss's own weights leaves functions whose gradient finite differences can see."""
    z0 = torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    label = torch.tensor([[[2]]])
    for loss, weight in ((positive_loss, adjustment(softmax(z0, 0)[2])), (negative_loss, 1 - softmax(z0, 0)[2])):
        logits = pixels(z0[None]).clone().requires_grad_()
        loss(logits, label, mask, temperature=temperature)[0].backward()
        step = 1e-6
        for j in range(6):
            sides = []
            for sign in (1, -1):
                moved = z0.clone()
                moved[j] += sign * step
                value = loss(pixels(moved[None]), label, mask, temperature=temperature)[0]
                p = softmax(moved, 0)[2]
                sides.append(value / (adjustment(p) if loss is positive_loss else 1 - p) * weight)
            numeric = (sides[0] - sides[1]) / (2 * step)
            torch.testing.assert_close(logits.grad[0, j, 0, 0], numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradcheck_of_what_has_no_weights(temperature):
    logits, labels, mask = random_case(shape=(1, 4, 2, 3))
    torch.autograd.gradcheck(lambda z: constrained_log_softmax(z, temperature), (logits,))
    torch.autograd.gradcheck(lambda z: cross_entropy_term(z, labels, mask)[0], (logits,))


def test_the_negative_loss_does_not_lose_small_and_large_probabilities():
    """log(1 - p) in float32 would be 0 for p = 1e-9 and -inf for 1 - p = 1e-9; log-sum-exp keeps both."""
    rows = torch.tensor([[-20.0, 0.0, 0.0], [12.0, -8.0, -8.0]])
    mask, classes = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, dtype=torch.int64)
    for row in rows:
        value, _ = negative_loss(pixels(row[None]), classes, mask, temperature=None)
        others = row[1:].double().logsumexp(0) - row.double().logsumexp(0)
        torch.testing.assert_close(value.double(), -others.exp() * others, rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1e-4, 1.0, 1e4, 6e4])
def test_values_and_gradients_are_finite(loss, temperature, dtype, size):
    rows = torch.randn(40, 21, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    rows[0], rows[1, 0], rows[2] = 1.0, 1.0, torch.eye(21)[3]
    logits = pixels((rows * size).to(dtype)).clone().requires_grad_()
    labels = (torch.arange(40) % 21)[None, None]
    value, _ = loss(logits, labels, torch.ones(1, 1, 40, dtype=torch.bool), temperature=temperature)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("loss", LOSSES)
def test_one_zero_pixel_does_not_touch_the_others(loss):
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    rows[1] = 0
    labels = torch.tensor([[[0, 1, 2]]])
    both = pixels(rows).clone().requires_grad_()
    loss(both, labels, torch.ones(1, 1, 3, dtype=torch.bool))[0].backward()
    without = pixels(rows).clone().requires_grad_()
    loss(without, labels, torch.tensor([[[True, False, True]]]))[0].backward()
    torch.testing.assert_close(both.grad[..., [0, 2]], without.grad[..., [0, 2]])
    assert both.grad[..., 1].abs().max() < 10


@pytest.mark.parametrize("loss", [*LOSSES, cross_entropy_term])
def test_labels_outside_the_mask_are_never_read(loss):
    logits, labels, mask = random_case(dtype=torch.float32)
    garbage = torch.where(mask, labels, torch.randint(200, 2**40, labels.shape))
    assert torch.equal(loss(logits, garbage, mask)[0], loss(logits, labels, mask)[0])
    ignored = torch.where(mask, labels, 255).to(torch.uint8)
    assert torch.equal(loss(logits, ignored, mask)[0], loss(logits, labels, mask)[0])


@pytest.mark.parametrize("loss", [*LOSSES, cross_entropy_term])
def test_an_empty_mask_is_a_zero_connected_to_the_graph(loss):
    logits, labels, mask = random_case(dtype=torch.float32)
    value, count = loss(logits, torch.full_like(labels, 255), mask & ~mask)
    value.backward()
    assert value.item() == 0
    assert count.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_float32_under_autocast(loss, temperature):
    logits, labels, mask = random_case(dtype=torch.bfloat16)
    expected = loss(logits.detach().float(), labels, mask, temperature=temperature)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, _ = loss(logits, labels, mask, temperature=temperature)
        found = constrained_log_softmax(logits, temperature)
    value.backward()
    assert value.dtype == found.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    assert logits.grad.isfinite().all()


def test_two_classes():
    logits, labels, mask = random_case(shape=(1, 2, 3, 3))
    p = softmax(logits.detach(), 1).gather(1, labels[:, None])[:, 0][mask]
    found, _ = negative_loss(logits, labels, mask, temperature=None)
    torch.testing.assert_close(found, -((1 - p) * (1 - p).log()).sum())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_constraint_makes_the_loss_independent_of_the_norm(loss):
    """Apart from the constant weights: for one pixel the ratio of losses is the ratio of weights."""
    z = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask, label = torch.ones(1, 1, 1, dtype=torch.bool), torch.tensor([[[1]]])

    def unweighted(z):
        p = softmax(z, 1)[0, 1]
        return loss(pixels(z), label, mask)[0] / (adjustment(p) if loss is positive_loss else 1 - p)

    torch.testing.assert_close(unweighted(z), unweighted(3 * z))


def test_constrained_log_softmax_is_softmax_of_the_unit_vector():
    logits, _, _ = random_case()
    expected = (logits / (0.3 * logits.norm(dim=1, keepdim=True))).log_softmax(1)
    torch.testing.assert_close(constrained_log_softmax(logits, 0.3), expected)
    torch.testing.assert_close(constrained_log_softmax(logits, None), logits.log_softmax(1))


def test_hybrid_loss_is_eq_10():
    logits, labels, clean = random_case()
    labels[0, :2] = 255
    complements = (labels + 1) % 5
    found = hybrid_loss(logits, labels, clean, complements=complements, temperature=0.5)
    valid = labels != 255
    a, b = int((valid & clean).sum()), int(valid.sum())
    l_pos = positive_loss(logits, labels, valid & clean, temperature=0.5)[0] / a
    l_neg = negative_loss(logits, complements, valid & ~clean, temperature=0.5)[0] / (b - a)
    torch.testing.assert_close(found.value, a / b * l_pos + (1 - a / b) * l_neg)
    assert (int(found.positive[1]), int(found.negative[1])) == (a, b - a)


@pytest.mark.parametrize("kind", ["no clean", "no noisy", "only ignored"])
def test_hybrid_loss_without_one_kind_of_pixel(kind):
    logits, labels, clean = random_case(dtype=torch.float32)
    if kind == "only ignored":
        labels = torch.full_like(labels, 255)
    found = hybrid_loss(logits, labels, torch.full_like(clean, kind == "no noisy"))
    found.value.backward()
    assert found.value.isfinite()
    assert logits.grad.isfinite().all()
    assert (found.value.item() == 0) == (kind == "only ignored")


def test_hybrid_loss_draws_complements_from_the_generator():
    logits, labels, clean = random_case()
    draws = sample_complements(labels, 5, generator=torch.Generator().manual_seed(7))
    expected = hybrid_loss(logits, labels, clean, complements=draws).value
    found = hybrid_loss(logits, labels, clean, generator=torch.Generator().manual_seed(7)).value
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_complements_are_uniform_over_the_other_classes(dtype):
    k, n = 5, 40_000
    for label in range(k):
        labels = torch.full((n,), label, dtype=dtype)
        drawn = sample_complements(labels, k, generator=torch.Generator().manual_seed(label))
        assert drawn.dtype == torch.int64
        counts = torch.bincount(drawn, minlength=k).double()
        assert counts[label] == 0
        others = torch.cat([counts[:label], counts[label + 1 :]])
        expected = n / (k - 1)
        assert ((others - expected) ** 2 / expected).sum() < 21.1  # chi-square, 3 degrees of freedom, p = 1e-4


def test_complements_of_labels_that_are_no_class():
    drawn = sample_complements(torch.full((500,), 255, dtype=torch.uint8), 4)
    assert ((drawn >= 0) & (drawn < 4)).all()
    assert sample_complements(torch.full((500,), 4), 4).max() < 4


def test_of_two_classes_the_complement_is_the_other():
    assert set(sample_complements(torch.zeros(50, dtype=torch.uint8), 2).tolist()) == {1}


def test_labels_of_another_size_are_refused():
    logits, labels, mask = random_case()
    with pytest.raises(ValueError, match="upsample"):
        positive_loss(logits, labels[:, ::2], mask[:, ::2])


def test_a_mask_of_numbers_is_refused():
    logits, labels, mask = random_case()
    with pytest.raises(ValueError, match=r"torch\.bool"):
        positive_loss(logits, labels, mask.to(torch.uint8))


def test_a_temperature_of_0_is_refused():
    with pytest.raises(ValueError, match="temperature"):
        positive_loss(*random_case(), temperature=0.0)


def test_one_class_has_no_complement():
    logits, labels, mask = random_case()
    with pytest.raises(ValueError, match="at least 2"):
        negative_loss(logits[:, :1], labels, mask)
    with pytest.raises(ValueError, match="at least 2"):
        sample_complements(labels, 1)
