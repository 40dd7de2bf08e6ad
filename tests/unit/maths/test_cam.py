"""The CAM recipe of METHOD sections 1 and 2 against its steps written out."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from distwsss.maths.cam import background, cam_to_full, compute_cam, compute_cams, probabilities


class Toy(nn.Module):
    """Four classes from one strided convolution; counts its calls."""

    mean, std, stride = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4], 4

    def __init__(self, gain=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.gain = nn.Conv2d(3, 4, 5, stride=4, padding=2), gain

    def maps(self, images):
        return torch.relu(self.gain * self.features(images))


def picture(height=37, width=50):
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def expected_cam(model, image, labels, width, height):
    small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.float64) / 255
    pixels = torch.from_numpy((small - model.mean) / model.std).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        total = model.maps(pixels) + model.maps(pixels.flip(-1)).flip(-1)
    return total[0, [label - 1 for label in labels]]


@pytest.mark.parametrize(
    ("scale", "base", "size"),
    [(1.0, None, (50, 37)), (1.2, None, (60, 44)), (1.0, 100, (100, 74)), (1.2, 100, (120, 89))],
)
def test_against_the_recipe(scale, base, size):
    model, image = Toy(), picture()
    found = compute_cam(model, image, [2, 4], scale, base, [1.0])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected_cam(model, image, [2, 4], *size).numpy(), rtol=2e-3, atol=1e-3)


def test_a_mirrored_image_gives_the_mirrored_cam():
    """At a width that the stride divides into symmetric positions."""
    model, image = Toy(), picture(33, 49)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    found, expected = (compute_cam(model, pixels, [1], 1.0, None, [1.0]) for pixels in (mirrored, image))
    np.testing.assert_allclose(found[..., ::-1], expected, atol=2e-3)


def test_cam_scales_are_summed_at_the_first_ones_size():
    model, image = Toy(), picture()
    first = expected_cam(model, image, [3], 50, 37)
    second = expected_cam(model, image, [3], 25, 18)
    expected = first + interpolate(second[None], first.shape[-2:], mode="bilinear", align_corners=False)[0]
    found = compute_cam(model, image, [3], 1.0, None, [1.0, 0.5])
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3, atol=1e-3)


def test_images_of_one_size_share_a_forward():
    rng = np.random.default_rng(1)
    images = [rng.integers(256, size=(37, 50, 3), dtype=np.uint8) for _ in range(3)]
    labels = [[1], [2, 4], [3]]
    together = compute_cams(Toy(), images, labels, 1.2)
    for image, present, cam in zip(images, labels, together, strict=True):
        np.testing.assert_allclose(cam, compute_cam(Toy(), image, present, 1.2), atol=1e-3)


def test_huge_activations_stay_finite():
    cam = compute_cam(Toy(1e6), picture(), [1, 2], 1.0, None, [1.0])
    assert np.isfinite(cam).all()
    assert np.isfinite(probabilities(cam_to_full(cam, 37, 50), 8.0, "softmax")).all()


def test_the_image_is_unchanged():
    image = picture()
    image.flags.writeable = False
    compute_cam(Toy(), image, [1], 1.0, None, [1.0])


def test_full_size_is_bilinear_then_over_the_maximum():
    cam = np.random.default_rng(1).random((3, 4, 5)).astype(np.float16)
    full = cam_to_full(cam, 13, 17)
    expected = interpolate(torch.from_numpy(cam).float()[None], (13, 17), mode="bilinear", align_corners=False)[0]
    expected = expected / (expected.amax((1, 2), keepdim=True) + 1e-5)
    assert full.dtype == np.float32
    np.testing.assert_allclose(full, expected.numpy(), atol=1e-6)
    assert 0 <= full.min() <= full.max() < 1


NORMALISED = np.array([[[0.0, 0.5, 1.0]], [[0.0, 0.25, 0.5]]], np.float32)  # CAMs of two classes


def test_background_is_one_minus_the_maximum_to_the_power_of_alpha():
    np.testing.assert_allclose(background(NORMALISED, 2.0), [[1.0, 0.25, 0.0]])


@pytest.mark.parametrize("normalise", ["softmax", "sum"])
def test_probabilities_are_of_background_and_maps(normalise):
    maps = np.concatenate([[[[1.0, 0.25, 0.0]]], NORMALISED])
    expected = {"softmax": torch.from_numpy(maps).softmax(0).numpy(), "sum": maps / maps.sum(0)}
    np.testing.assert_allclose(probabilities(NORMALISED, 2.0, normalise), expected[normalise], atol=1e-6)


def test_another_way_to_normalise_is_refused():
    with pytest.raises(ValueError, match="normalise"):
        probabilities(NORMALISED, 2.0, "max")


@pytest.mark.parametrize("normalise", ["softmax", "sum"])
@pytest.mark.parametrize("alpha", [0.25, 8.0, 32.0])
def test_maps_without_activation_are_background(normalise, alpha):
    full = cam_to_full(np.zeros((2, 3, 3), np.float16), 6, 7)
    found = probabilities(full, alpha, normalise)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert (found.argmax(0) == 0).all()
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
