"""DeepLab's two public lineages against torchvision's building blocks, published names, counts and geometry."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet101_Weights
from torchvision.ops.misc import Conv2dNormActivation

from distwsss.config.networks import BackboneSection
from distwsss.config.stages import TrainSection
from distwsss.config.training import OptimSection
from distwsss.models.backbones.build import Backbone, normalise
from distwsss.models.backbones.resnet_caffe import CaffeResNet101
from distwsss.models.deeplab import DeepLab
from distwsss.models.deeplab_classic import ClassicDeepLab
from distwsss.models.deeplab_codebase import Norm, codebase_deeplab
from distwsss.models.export import from_pretrained, save_pretrained
from distwsss.models.segmenters import build_segmenter
from distwsss.train.optim import parameter_groups
from helpers.deeplab_reference import (
    Shapes,
    as_in_caffe,
    caffe_name,
    caffe_shapes,
    first_difference,
    random_weights,
    torchvision_body,
    torchvision_shapes,
)

CLASSES = ["background", *(f"class{i}" for i in range(1, 21))]  # VOC's 21
CAFFE = BackboneSection(name="resnet101_caffe", pretrained=False, output_stride=8)
DEEP = BackboneSection(name="resnet101s", pretrained=False, output_stride=8, norm="local")
SMALL = BackboneSection(name="resnet18", pretrained=False, output_stride=8, norm="local")
RATES = (6, 12, 18, 24)
# torchvision's count for its resnet101, less its classification layer
BODY = ResNet101_Weights.IMAGENET1K_V1.meta["num_params"] - (2048 * 1000 + 1000)
STEM = 123_776  # more in a deep one: three 3x3 and their BatchNorms for the 7x7 and its own, 128 channels into layer1.0


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.{last}": (width,) for last in ("weight", "bias", "running_mean", "running_var")}


def head_shapes(head: str) -> Shapes:
    """deeplab-pytorch's `aspp.c0` to `c3`; wseg's conv_fov, bn_fov, ..., and operators/ASPP.py's branch1, ..."""
    if head == "classic":
        return {f"branches.{k}.{last}": shape for k in range(4) for last, shape in
                (("weight", (21, 2048, 3, 3)), ("bias", (21,)))}  # fmt: skip
    if head == "largefov":
        shapes = {"fov.0.weight": (512, 2048, 3, 3), **norm("fov.1", 512)}
        shapes |= {"mix.0.weight": (512, 512, 1, 1), **norm("mix.1", 512)}
        return shapes | {"classifier.weight": (21, 512, 1, 1), "classifier.bias": (21,)}
    shapes = {}
    for k in range(4):
        shapes |= {f"branches.{k}.0.weight": (256, 2048, 3, 3), **norm(f"branches.{k}.1", 256)}
    shapes |= {"pool.0.weight": (256, 2048, 1, 1), **norm("pool.1", 256)}
    shapes |= {"project.0.weight": (256, 1280, 1, 1), **norm("project.1", 256)}
    return shapes | {"classifier.weight": (21, 256, 1, 1), "classifier.bias": (21,)}


def codebase(head: str) -> DeepLab:
    section = TrainSection(lineage="codebase", head=head, backbone=DEEP)
    return build_segmenter(section, CLASSES)


@pytest.fixture(scope="module")
def classic() -> ClassicDeepLab:
    section = TrainSection(lineage="classic", head_dropout=0.0, backbone=CAFFE)
    return build_segmenter(section, CLASSES).eval()


@pytest.fixture(scope="module")
def models(classic: ClassicDeepLab) -> dict[str, nn.Module]:
    return {"classic": classic, "largefov": codebase("largefov").eval(), "aspp": codebase("aspp").eval()}


@pytest.fixture(scope="module")
def bodies() -> dict[bool, dict[str, Tensor]]:
    """Weights by torchvision's names: with a 7x7 (False) and with a deep stem (True)."""
    return {deep: random_weights(torchvision_shapes(deep)) for deep in (False, True)}


def fill(model: nn.Module, body: dict[str, Tensor], head: dict[str, Tensor]) -> None:
    """The same weights into our network, under our names."""
    ours = {f"head.{name}": tensor for name, tensor in head.items()}
    if isinstance(model, ClassicDeepLab):
        ours |= {f"backbone.net.{caffe_name(name)}": tensor for name, tensor in body.items()}
    else:
        ours |= {f"backbone.net.net.{name}": tensor for name, tensor in body.items()}
    found = model.load_state_dict(ours, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)


def expected_shapes(name: str) -> Shapes:
    shapes = {f"head.{key}": shape for key, shape in head_shapes(name).items()}
    if name == "classic":
        return shapes | {f"backbone.net.{key}": shape for key, shape in caffe_shapes().items()}
    return shapes | {f"backbone.net.net.{key}": shape for key, shape in torchvision_shapes(deep_stem=True).items()}


def test_the_reference_has_as_many_parameters_as_torchvision_says() -> None:
    plain, deep = (
        sum(math.prod(shape) for key, shape in torchvision_shapes(deep_stem).items() if "running" not in key)
        for deep_stem in (False, True)
    )
    assert plain == BODY == 42_500_160
    assert deep - plain == STEM


@pytest.mark.parametrize("name", ["classic", "largefov", "aspp"])
def test_names_and_shapes_are_the_published_ones(name: str, models: dict[str, nn.Module]) -> None:
    state = {key: tuple(value.shape) for key, value in models[name].state_dict().items() if "num_batches" not in key}
    assert state == expected_shapes(name)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("classic", BODY + 4 * (2048 * 21 * 9 + 21)),
        ("largefov", BODY + STEM + (2048 * 9 + 512) * 512 + 4 * 512 + 512 * 21 + 21),
        ("aspp", BODY + STEM + (4 * 9 + 1) * 2048 * 256 + 5 * 256 * 256 + 12 * 256 + 256 * 21 + 21),
    ],
)
def test_as_many_parameters_as_its_description_says(name: str, count: int, models: dict[str, nn.Module]) -> None:
    assert sum(p.numel() for p in models[name].parameters()) == count
    said_by = ClassicDeepLab if name == "classic" else codebase_deeplab
    assert f"{count:,}" in (said_by.__doc__ or "")


def test_classic_is_the_reference_at_every_output(
    classic: ClassicDeepLab, bodies: dict[bool, dict[str, Tensor]]
) -> None:
    head = random_weights(head_shapes("classic"))
    fill(classic, bodies[False], head)
    body = as_in_caffe(torchvision_body(bodies[False]))
    branches = [nn.Conv2d(2048, 21, 3, padding=rate, dilation=rate) for rate in RATES]
    for k, branch in enumerate(branches):
        branch.load_state_dict({last: head[f"branches.{k}.{last}"] for last in ("weight", "bias")})

    def network(images: Tensor) -> Tensor:
        features = body(images)
        return sum(branch(features) for branch in branches)

    photo = torch.randint(0, 256, (2, 3, 65, 49)).float()
    with torch.no_grad():
        bgr = photo[:, [2, 1, 0]] - torch.tensor([104.008, 116.669, 122.675])[:, None, None]
        expected = [network(bgr)]
        for scale in (0.5, 0.75):
            expected.append(network(F.interpolate(bgr, scale_factor=scale, mode="bilinear", align_corners=False)))
        larger = [F.interpolate(x, expected[0].shape[2:], mode="bilinear", align_corners=False) for x in expected[1:]]
        expected.append(torch.maximum(torch.maximum(expected[0], larger[0]), larger[1]))
        images = normalise(photo, classic.mean, classic.std)
        found = classic.training_outputs(images)
        assert [tuple(x.shape[2:]) for x in expected] == [(9, 7), (5, 4), (7, 5), (9, 7)]
        assert len(found) == 4
        for ours, theirs in zip(found, expected, strict=True):
            assert first_difference(ours, theirs) < 1e-5
        assert torch.equal(classic(images), found[-1])
    assert not torch.equal(found[-1], found[0])


def test_loss_sizes_are_those_of_the_logits() -> None:
    with torch.device("meta"):
        network = ClassicDeepLab(CAFFE, CLASSES, 0.0)
    for height, width in [(321, 500), (64, 81), (66, 87), (67, 94)]:
        outputs = network.training_outputs(torch.empty(1, 3, height, width, device="meta"))
        assert [tuple(x.shape[2:]) for x in outputs] == network.loss_sizes(height, width), (height, width)
    assert network.loss_sizes(321, 321) == [(41, 41), (21, 21), (31, 31), (41, 41)]


def deep_body_and_head(head: str, body: dict[str, Tensor], weights: dict[str, Tensor]) -> nn.Module:
    """Codebase DeepLab from torchvision's parts, in eval mode."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torchvision_body(body, deep_stem=True)
            if head == "largefov":
                self.fov = Conv2dNormActivation(2048, 512, 3, padding=12, dilation=12)
                self.mix = Conv2dNormActivation(512, 512, 1)
            else:
                self.branches = nn.ModuleList(
                    Conv2dNormActivation(2048, 256, 3, padding=rate, dilation=rate) for rate in RATES
                )
                self.pool, self.project = Conv2dNormActivation(2048, 256, 1), Conv2dNormActivation(1280, 256, 1)
            self.classifier = nn.Conv2d(512 if head == "largefov" else 256, 21, 1)

        def forward(self, images: Tensor) -> Tensor:
            x = self.body(images)
            if head == "largefov":
                return self.classifier(self.mix(self.fov(x)))
            pooled = self.pool(F.adaptive_avg_pool2d(x, 1))
            pooled = F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True)
            return self.classifier(self.project(torch.cat([*(b(x) for b in self.branches), pooled], 1)))

    whole = Whole()
    found = whole.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("body.") or "num_batches" in name for name in found.missing_keys)
    return whole.eval()


@pytest.mark.parametrize("head", ["largefov", "aspp"])
def test_codebase_is_the_reference(
    head: str, models: dict[str, nn.Module], bodies: dict[bool, dict[str, Tensor]]
) -> None:
    model, weights = models[head], random_weights(head_shapes(head), seed=4)
    fill(model, bodies[True], weights)
    reference = deep_body_and_head(head, bodies[True], weights)
    images = torch.randn(2, 3, 65, 49)
    with torch.no_grad():
        found, expected = model(images), reference(images)
    assert expected.shape == (2, 21, 9, 7)
    assert first_difference(found, expected) < 1e-5


@pytest.mark.parametrize("head", ["largefov", "aspp"])
def test_codebase_says_how_pictures_and_logits_are_treated(head: str, models: dict[str, nn.Module]) -> None:
    assert (models[head].stride, models[head].align_corners) == (8, True)
    assert models[head].mean == [0.485, 0.456, 0.406]


def support(net: nn.Module, owner: nn.Module, pool: str, column: int, width: int) -> tuple[int, int]:
    """First and last column of a strip of `width` pixels that features of `column` depend on.

    Sums of (kernel - 1) x dilation x stride before it, over the 3x3 convolutions, the stem and the pooling.
    """
    largest = getattr(owner, pool)  # an average in its place looks at the same pixels, and at all of them
    setattr(owner, pool, nn.AvgPool2d(largest.kernel_size, largest.stride, largest.padding, largest.ceil_mode))
    net.eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):  # positive weights: no path is lost; a scale that float32 bears
            module.weight.fill_(1 / (module.in_channels * module.kernel_size[0]))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    strip = torch.ones(1, 3, 8, width, requires_grad=True)
    features = net(strip)
    features[0, 0, 0, column].backward()
    columns = strip.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    return int(columns[0]), int(columns[-1])


def test_what_a_feature_of_caffes_net_sees() -> None:
    caffe = CaffeResNet101()
    # 7 (stem) + 4 (pooling) + 24, 64, 736, 192 (layers 2 to 5: strides before the 3x3, a layer's dilations all alike)
    seen = support(caffe, caffe.layer1, "pool", 75, 1200)
    assert seen == (8 * 75 - 513, 8 * 75 + 513)


def test_what_a_feature_behind_a_deep_stem_sees() -> None:
    deep = Backbone(DEEP).net
    # 11 (three 3x3) + 4 (pooling) + 24 + 8 + 48 (the strided 3x3, three more) + 16 + 704 + 32 + 128 (first blocks of a
    # dilated layer dilate as the layer before)
    seen = support(deep, deep.net, "maxpool", 75, 1200)
    assert seen == (8 * 75 - 487, 8 * 75 + 487)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (
            {"weights": "w.pth", "pretrained": False, "output_stride": 8},
            "`weights` is a file, but `pretrained` is false",
        ),
        ({"weights": "w.pth", "output_stride": 16}, "allowed for backbone `resnet101_caffe`, which has one stride: 8"),
    ],
)
def test_what_caffes_net_does_not_have_is_refused(options: dict[str, object], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        BackboneSection(name="resnet101_caffe", **options)


def test_summed_aspp_starts_as_published() -> None:
    fresh = ClassicDeepLab(CAFFE, CLASSES, 0.0).head
    for branch in fresh.branches:
        assert abs(branch.weight.std().item() - 0.01) < 1e-4
        assert not branch.bias.any()


def small(head: str, **backbone: object) -> DeepLab:
    section = SMALL.model_copy(update=backbone)
    return build_segmenter(TrainSection(lineage="codebase", head=head, head_dropout=0.5, backbone=section), CLASSES)


@pytest.fixture(scope="module", params=[("largefov", "local"), ("aspp", "frozen"), ("aspp", "group")], ids=" ".join)
def normed(request: pytest.FixtureRequest) -> tuple[DeepLab, str]:
    """A network and its `backbone.norm`."""
    head, norm = request.param
    return small(head, norm=norm), norm


class TestBatchNormOfCodebase:
    def test_convolutions_alone_are_trained(self, normed: tuple[DeepLab, str]) -> None:
        model, _ = normed
        trained = {id(p) for group in parameter_groups(model, OptimSection()) for p in group["params"]}
        convolutions = {id(p) for m in model.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()}
        assert trained == convolutions

    def test_norms_are_of_the_kind_asked_for_and_scale_by_1(self, normed: tuple[DeepLab, str]) -> None:
        model, norm = normed
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)]
        assert {type(module) is nn.GroupNorm for module in norms} == {norm == "group"}
        assert all(module.weight.eq(1).all() for module in norms)  # timm's last ones of a block start at 0

    def test_statistics_follow_by_the_published_momenta(self) -> None:
        model = small("aspp").train()
        features: list[Tensor] = []
        model.head.branches[1][0].register_forward_hook(lambda module, inputs, output: features.append(output))
        stem: list[Tensor] = []
        model.backbone.net.net.conv1.register_forward_hook(lambda module, inputs, output: stem.append(output))
        with torch.no_grad():
            model(torch.randn(3, 3, 64, 64))
        for norm, output, momentum in (
            (model.head.branches[1][1], features[0], 3e-4), (model.backbone.net.net.bn1, stem[0], 0.1)
        ):  # fmt: skip
            mean, variance = output.mean((0, 2, 3)), output.var((0, 2, 3))
            assert torch.allclose(norm.running_mean, momentum * mean, atol=1e-7)
            assert torch.allclose(norm.running_var, 1 - momentum + momentum * variance, atol=1e-6)
            assert norm.eps == 1e-5

    def test_a_frozen_backbone_leaves_the_heads_statistics_to_follow(self) -> None:
        model = small("largefov", norm="frozen").train()
        before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
        model(torch.randn(2, 3, 64, 64))
        changed = {name for name, value in before.items() if not torch.equal(value, model.state_dict()[name])}
        assert changed == {name for name in before if name.startswith("head.")}

    def test_one_image_is_pooled_by_the_running_statistics(self) -> None:
        """Its one value has no variance: torch's BatchNorm would raise `Expected more than 1 value per channel`."""
        model = small("aspp", norm="frozen").train()
        model.head.dropout.eval()
        norm = model.head.pool[1]
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(2.0)
        outputs: list[Tensor] = []
        norm.register_forward_hook(lambda module, inputs, output: outputs.extend([inputs[0].clone(), output.clone()]))
        model(torch.randn(1, 3, 64, 64)).sum().backward()
        value, normalised = outputs
        assert value.shape == (1, 256, 1, 1)
        assert torch.allclose(normalised, (value - 0.3) / (2.0 + 1e-5) ** 0.5, atol=1e-6)
        assert norm.running_mean.eq(0.3).all()
        assert model.head.pool[0].weight.grad.abs().sum() > 0
        with pytest.raises(ValueError, match="more than 1 value"):
            nn.BatchNorm2d(256)(value)

    def test_two_images_are_normalised_by_the_batch(self) -> None:
        features, norm = torch.randn(2, 5, 1, 1), Norm(5).train()
        expected = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
        assert torch.allclose(norm(features), expected, atol=1e-5)

    def test_dropout_acts_twice_before_the_classifier(self) -> None:
        torch.manual_seed(0)
        model = small("aspp").train()
        kept = model.head.dropout(torch.ones(1, 256, 64, 64))
        assert abs(kept.count_nonzero().item() / kept.numel() - 0.25) < 0.01
        assert kept.max() == 4.0


@pytest.mark.parametrize(("head", "width"), [("largefov", 512), ("aspp", 256)])
def test_widths_default_to_the_published(head: str, width: int) -> None:
    assert small(head).head.classifier.in_channels == width


def test_a_width_that_is_set_is_exported(tmp_path: Path) -> None:
    model = build_segmenter(TrainSection(lineage="codebase", backbone=SMALL, head_channels=24), CLASSES).eval()
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert (again.head.classifier.in_channels, again.align_corners) == (24, True)


def test_learning_rates_of_the_classic_lineage_are_1_10_20(classic: ClassicDeepLab) -> None:
    section = OptimSection(head_multiplier=10.0, bias_multiplier=2.0)
    rates = {}
    for group in parameter_groups(classic, section):
        for parameter in group["params"]:
            rates[id(parameter)] = (group["multiplier"], group["weight_decay"])
    for name, parameter in classic.named_parameters():
        if ".bn." in name:  # frozen
            assert id(parameter) not in rates
        elif name.startswith("backbone."):
            assert rates[id(parameter)] == (1.0, 5e-4), name
        else:
            assert rates[id(parameter)] == ((10.0, 5e-4) if name.endswith("weight") else (20.0, 0.0)), name
