"""The losses in chunks of rows against plain float64 autograd, in every layout and mode of PyTorch they are used in."""

import itertools
import json

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from distwsss.losses import pixel_losses as module
from distwsss.losses.hybrid import constrained_log_softmax, cross_entropy_term, hybrid_loss, positive_loss
from distwsss.losses.pixel_losses import pixel_losses
from helpers.kept_bytes import kept_storages

TEMPERATURES = [None, 1.0, 0.1]
SHARES = [0.0, 0.5, 1.0]  # of clean pixels among those not ignored
UPSTREAM = (0.7, -1.9)  # gradients of the two sums


def reference(logits: Tensor, labels: Tensor, clean: Tensor, complements: Tensor, tau: float | None):
    """Both sums from the equations, one pixel's row at a time as PyTorch sees it: n,K gathered rows and autograd."""
    sums = []
    for mask, classes in (((labels != 255) & clean, labels), ((labels != 255) & ~clean, complements)):
        z, chosen = logits.movedim(1, -1)[mask], classes[mask].long()[:, None]
        norm = z.norm(dim=1, keepdim=True)
        q = z if tau is None else torch.where(norm == 0, z, z / torch.where(norm == 0, 1.0, norm)) / tau
        p = z.detach().softmax(1).gather(1, chosen)
        if classes is labels:
            sums.append(((1 + p) * (1 + p**2) * (1 + p**4) * (1 + p**8) * -q.log_softmax(1).gather(1, chosen)).sum())
        else:
            others = q.scatter(1, chosen, -torch.inf).logsumexp(1, keepdim=True) - q.logsumexp(1, keepdim=True)
            sums.append(((1 - p) * -others).sum())
    return sums


def case(shape=(2, 21, 9, 7), share=0.5, seed=0, size=3.0):
    """logits float64, labels uint8 with 10% ignored, clean, complements; four pixels of zero logits."""
    generator = torch.Generator().manual_seed(seed)
    b, k, h, w = shape
    logits = size * torch.randn(shape, generator=generator, dtype=torch.float64)
    logits[0, :, 0, :2] = logits[-1, :, -1, -2:] = 0
    labels = torch.randint(k, (b, h, w), generator=generator, dtype=torch.uint8)
    complements = (labels + torch.randint(1, k, (b, h, w), generator=generator)) % k
    labels[torch.rand(b, h, w, generator=generator) < 0.1] = 255
    return logits, labels, torch.rand(b, h, w, generator=generator) < share, complements


def expected(logits: Tensor, labels: Tensor, clean: Tensor, complements: Tensor, tau: float | None):
    leaf = logits.detach().double().requires_grad_()
    sums = reference(leaf, labels, clean, complements, tau)
    (UPSTREAM[0] * sums[0] + UPSTREAM[1] * sums[1]).backward()
    return [value.detach() for value in sums], leaf.grad


def check(logits: Tensor, labels: Tensor, clean: Tensor, complements: Tensor, tau: float | None, rtol: float = 2e-5):
    sums, gradient = expected(logits, labels, clean, complements, tau)
    logits = logits.detach().requires_grad_()
    (positive, count), (negative, other) = hybrid_loss(logits, labels, clean, complements=complements, temperature=tau)
    (UPSTREAM[0] * positive + UPSTREAM[1] * negative).backward()
    torch.testing.assert_close(positive.double(), sums[0], rtol=rtol, atol=1e-12)
    torch.testing.assert_close(negative.double(), sums[1], rtol=rtol, atol=1e-12)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=rtol, atol=rtol * float(gradient.abs().mean()))
    assert logits.grad.dtype == logits.dtype
    assert logits.grad.stride() == torch.empty_like(logits).stride()
    assert (int(count), int(other)) == (int(((labels != 255) & clean).sum()), int(((labels != 255) & ~clean).sum()))


@pytest.fixture
def small_chunks(monkeypatch):
    """Three rows of 21 classes at a time, one of 81, all of 2; heights here are no multiple of that."""
    monkeypatch.setitem(module.CHUNK, "cpu", 3 * 21 * 7)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("classes", [2, 21, 81])
@pytest.mark.parametrize("tau", TEMPERATURES)
def test_sums_and_gradient_are_those_of_autograd(small_chunks, tau, classes, share):
    logits, *maps = case((2, classes, 11, 7), share)
    check(logits, *maps, tau, rtol=1e-10)
    check(logits.float(), *maps, tau)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_chunks_of_the_real_size(tau):
    assert module.CHUNK["cpu"] < 81 * 137 * 101
    logits, *maps = case((2, 81, 137, 101))
    check(logits.float(), *maps, tau)


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize("layout", ["channels_last", "every other column", "transposed", "expanded", "one row"])
def test_layouts(small_chunks, layout, tau):
    logits, *maps = case((2, 21, 10, 10))
    logits = logits.float()
    views = {
        "channels_last": lambda: logits.contiguous(memory_format=torch.channels_last),
        "every other column": lambda: logits.repeat_interleave(2, dim=3)[..., ::2],
        "transposed": lambda: logits.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda: logits[:, :, :, :1].expand(logits.shape),
        "one row": lambda: logits.reshape(2, 21, 1, 100),
    }
    shaped = [one.reshape(2, 1, 100) for one in maps] if layout == "one row" else maps
    check(views[layout](), *shaped, tau)


@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_computed_in_float32(small_chunks, dtype, tau):
    """The reference reads the same rounded logits, so that the sums agree as float32 does; the gradient is rounded."""
    logits, *maps = case()
    logits = logits.to(dtype)
    sums, gradient = expected(logits, *maps, tau)
    leaf = logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hybrid_loss(leaf, *maps[:2], complements=maps[2], temperature=tau)
        total = UPSTREAM[0] * found.positive[0] + UPSTREAM[1] * found.negative[0]
    total.backward()
    assert found.positive[0].dtype == found.negative[0].dtype == torch.float32
    torch.testing.assert_close(
        torch.stack([found.positive[0], found.negative[0]]).double(), torch.stack(sums), rtol=2e-5, atol=0
    )
    assert leaf.grad.dtype == dtype
    near = torch.finfo(dtype).eps
    torch.testing.assert_close(leaf.grad.double(), gradient, rtol=near, atol=near * float(gradient.abs().mean()))


@pytest.mark.parametrize("size", [1e-6, 1e-3, 30.0, 1e3])
@pytest.mark.parametrize("tau", [*TEMPERATURES, 0.01])
def test_small_and_large_logits(tau, size):
    """Probabilities of 0 and 1 in float32, and norms near those that are not divided by."""
    logits, *maps = case(size=size)
    check(logits, *maps, tau, rtol=1e-9)
    check(logits.float(), *maps, tau, rtol=1e-4)


@pytest.mark.parametrize(("tau", "sign"), list(itertools.product(TEMPERATURES, [1, -1])))
def test_gradcheck_without_weights(small_chunks, tau, sign):
    """-log p* and -log(1 - p*): with their constant weights finite differences would see another gradient."""
    logits, _, clean, complements = case((1, 3, 4, 3))
    logits[0, :, 0, :2] = 1.5  # finite differences need norms away from 0
    logits[-1, :, -1, -2:] = torch.tensor([2.0, -1.0, 0.0])[:, None]
    signs = (sign * clean).to(torch.int8)
    torch.autograd.gradcheck(
        lambda z: pixel_losses(z, complements.long(), signs, tau, False)[0], (logits.requires_grad_(),)
    )


def test_plain_cross_entropy_is_that_of_pytorch():
    logits, labels, _, _ = case()
    leaf, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, _ = cross_entropy_term(leaf, labels, labels != 255)
    wanted = cross_entropy(other, labels.long(), ignore_index=255, reduction="sum")
    found.backward()
    wanted.backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_compiled(tau):
    """In one graph, without a break, between operations that the compiler sees."""
    logits, labels, clean, complements = case()
    logits = logits.float()

    def loss(z):
        return hybrid_loss(2 * z, labels, clean, complements=complements, temperature=tau).value ** 2

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled, loss, logits)


@pytest.mark.slow
def test_compiled_by_inductor():
    logits, labels, clean, complements = case()

    def loss(z):
        return hybrid_loss(2 * z, labels, clean, complements=complements, temperature=0.1).value ** 2

    assert_same(torch.compile(loss), loss, logits.float().to(memory_format=torch.channels_last))


def assert_same(one, other, logits):
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    values = [function(leaf) for function, leaf in zip((one, other), leaves, strict=True)]
    for value in values:
        value.backward()
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    """Forward runs again in backward; the logits exist only inside."""
    features, labels, clean, complements = case((2, 5, 9, 7))
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(x):
        logits = torch.einsum("jk,bkhw->bjhw", weight, x)
        return hybrid_loss(logits, labels, clean, complements=complements, temperature=0.1).value

    assert_same(lambda x: checkpoint(loss, x, use_reentrant=reentrant), loss, features)


def test_a_second_backward_gives_the_same():
    logits, labels, clean, complements = case()
    leaf = logits.requires_grad_()
    value = hybrid_loss(leaf, labels, clean, complements=complements).value
    (once,) = torch.autograd.grad(value, leaf, retain_graph=True)
    (again,) = torch.autograd.grad(value, leaf)
    assert torch.equal(once, again)


def test_two_losses_of_the_same_logits_add_up():
    logits, labels, clean, _ = case()
    leaf = logits.requires_grad_()
    valid = labels != 255
    both = positive_loss(leaf, labels, valid)[0] + positive_loss(leaf, labels, valid & clean, temperature=None)[0]
    (found,) = torch.autograd.grad(both, leaf)
    first = torch.autograd.grad(positive_loss(leaf, labels, valid)[0], leaf)[0]
    second = torch.autograd.grad(positive_loss(leaf, labels, valid & clean, temperature=None)[0], leaf)[0]
    torch.testing.assert_close(found, first + second)


def test_second_derivatives_are_refused():
    logits, labels, clean, complements = case()
    leaf = logits.requires_grad_()
    value = hybrid_loss(leaf, labels, clean, complements=complements).value
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        gradient.sum().backward()


def test_logits_that_are_not_finite_show_in_the_sum():
    for bad, tau in itertools.product((torch.nan, torch.inf), TEMPERATURES):
        logits, labels, clean, complements = case()
        logits[0, 3, 4, 4], labels[0, 4, 4] = bad, 2
        assert not hybrid_loss(logits, labels, clean, complements=complements, temperature=tau).value.isfinite()


def test_the_zero_vector_gets_the_uniform_softmax():
    logits = torch.zeros(1, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    found = constrained_log_softmax(logits, 0.5)
    found[0, 1].sum().backward()
    torch.testing.assert_close(found.exp().flatten(), torch.full((4,), 0.25, dtype=torch.float64))
    wanted = torch.tensor([-0.5, 1.5, -0.5, -0.5], dtype=torch.float64)  # (e_1 - p) / tau
    torch.testing.assert_close(logits.grad.flatten(), wanted)


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_operators_are_well_formed(tau):
    """PyTorch's own checks: schema, autograd registration, shapes without data, ahead-of-time graphs."""
    logits, _, clean, complements = case((1, 3, 4, 5))
    signs = clean.to(torch.int8)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = logits.to(memory_format=layout).requires_grad_()
        torch.library.opcheck(pixel_losses, (leaf, complements.long(), signs, tau, True))


def kept_for_backward(loss, logits):
    """Bytes that autograd keeps, without the logits themselves."""
    with kept_storages() as kept:
        value = loss(logits)
    kept.pop(logits.untyped_storage().data_ptr(), None)
    return sum(kept.values()), value


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_backward_keeps_nothing_of_the_size_of_the_logits(tau):
    logits, labels, clean, complements = case((1, 81, 40, 40))

    def loss(z):
        return hybrid_loss(z, labels, clean, complements=complements, temperature=tau).value

    leaf = logits.float().requires_grad_()
    kept, _ = kept_for_backward(loss, leaf)
    assert kept < 0.12 * leaf.nbytes
    assert kept_for_backward(lambda z: cross_entropy(z, complements.long()), leaf)[0] >= leaf.nbytes


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_without_gradients_the_value_is_the_same_and_nothing_is_kept(tau):
    logits, labels, clean, complements = case((1, 81, 40, 40))

    def loss(z):
        return hybrid_loss(z, labels, clean, complements=complements, temperature=tau).value

    leaf = logits.float().requires_grad_()
    with torch.no_grad():
        kept, value = kept_for_backward(loss, leaf)
    assert kept == 0
    assert not value.requires_grad
    torch.testing.assert_close(value, loss(leaf).detach())


def peak(function, trace) -> int:
    """The most bytes that `function` holds at once beyond what was there, by PyTorch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["args"]["Ev Idx"])]
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_peak_memory_is_one_copy_of_the_logits(monkeypatch, tmp_path, layout):
    monkeypatch.setitem(module.CHUNK, "cpu", 81 * 40 * 4)  # a tenth of the image
    logits, labels, clean, complements = case((1, 81, 40, 40))
    leaf = logits.float().to(memory_format=layout).requires_grad_()
    ours = peak(
        lambda: hybrid_loss(leaf, labels, clean, complements=complements).value.backward(), tmp_path / "ours.json"
    )
    leaf.grad = None
    theirs = peak(lambda: cross_entropy(leaf, complements.long()).backward(), tmp_path / "theirs.json")
    assert leaf.nbytes <= ours < 1.5 * leaf.nbytes
    assert ours < theirs
