"""ResNet38 against its published names and shapes and a functional forward; its files; the published optimizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distwsss.config.networks import BackboneSection
from distwsss.config.stages import ClassifySection
from distwsss.config.training import OptimSection
from distwsss.errors import CheckpointError
from distwsss.models.backbones.build import Backbone
from distwsss.models.backbones.resnet38 import ResNet38
from distwsss.models.classifier import Classifier
from distwsss.models.export import from_pretrained, save_pretrained
from distwsss.models.weights.backbone import load_file_into, resnet38_name
from distwsss.train.optim import build_optimizer, lr_factor, parameter_groups, set_lr
from helpers.resnet38_reference import PLAIN, functional_forward, layers, random_weights, write_mxnet

CLASSES = ["background", "cat", "dog"]
SECTION = BackboneSection(name="resnet38", pretrained=False, output_stride=8)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def files(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The two files users have: MXNet's, in the layout of its year, and psa's classifier, as PyTorch 0.4 wrote it."""
    folder = tmp_path_factory.mktemp("resnet38")
    found = {"mxnet": folder / "ilsvrc-cls_rna-a1_cls1000_ep-0001.params", "torch": folder / "res38_cls.pth"}
    arrays = {mxnet: weights[name].numpy() for name, (mxnet, _) in layers().items()}
    head = {"arg:linear1000_weight": torch.zeros(1000, 8).numpy(), "arg:linear1000_bias": torch.zeros(1000).numpy()}
    write_mxnet(found["mxnet"], arrays | head, None)
    state = {**weights, "fc8.weight": torch.zeros(20, 4096, 1, 1)}
    torch.save(state, found["torch"], _use_new_zipfile_serialization=False)
    yield found
    for path in found.values():
        path.unlink()


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max()) and bool(expected.std() > 0)


def test_names_shapes_and_counts_are_the_published_ones() -> None:
    net = ResNet38()
    state = {name: tuple(v.shape) for name, v in net.state_dict().items() if "num_batches" not in name}
    assert state == {name: shape for name, (_, shape) in layers().items()}
    assert sum(p.numel() for p in net.parameters()) == 105_070_912


def test_the_reference_has_38_layers() -> None:
    on_path = 1 + sum(branch != "1" for _, convolutions in PLAIN.values() for branch, *_ in convolutions)
    assert on_path == 37  # and the classification layer: 38


def test_a_feature_sees_557_pixels_centred_on_its_stride_of_8() -> None:
    net = ResNet38().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):  # positive weights: no path is lost; a scale that float32 bears
            module.weight.fill_(1 / (module.in_channels * module.kernel_size[0]))
    strip = torch.ones(1, 3, 8, 640, requires_grad=True)
    features = net(strip)
    assert features.shape == (1, 4096, 1, 80)
    features[0, 0, 0, 40].backward()
    columns = strip.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    # 1 + 2 (stem) + 22, 44, 184 (b2, b3, b4) + 176 (b5, dilated) + 64 + 64 (b6, b7)
    assert (int(columns[0]), int(columns[-1])) == (8 * 40 - 278, 8 * 40 + 278)


@pytest.fixture(scope="class")
def backbone(files: dict[str, Path]) -> Backbone:
    """Published weights in it; 400 MB, so for one class of tests only."""
    return Backbone(SECTION.model_copy(update={"pretrained": True, "weights": str(files["mxnet"])}))


class TestFromPublishedWeights:
    def test_forward_is_the_functional_one(self, backbone: Backbone, weights: dict[str, Tensor]) -> None:
        images = torch.randn(2, 3, 32, 40)
        with torch.no_grad():
            assert close(backbone.eval()(images), functional_forward(images, weights))

    def test_dropout_is_the_functional_one(self, backbone: Backbone, weights: dict[str, Tensor]) -> None:
        images = torch.randn(2, 3, 32, 40)
        with torch.no_grad():
            torch.manual_seed(5)
            dropped = backbone.train()(images)
            torch.manual_seed(5)
            assert close(dropped, functional_forward(images, weights, 0.3, 0.5))

    def test_convolutions_above_b2_alone_are_trained(self, backbone: Backbone) -> None:
        trained = {name for name, p in backbone.net.named_parameters() if p.requires_grad}
        assert trained == {name for name in layers() if "conv_" in name and not name.startswith("b2")}

    def test_what_a_checkpoint_says_of_it_names_no_file(self, backbone: Backbone) -> None:
        assert backbone.section.weights is None

    def test_it_says_what_it_takes_and_gives(self, backbone: Backbone) -> None:
        assert (backbone.channels, backbone.stride) == (4096, 8)
        assert backbone.mean == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("kind", ["mxnet", "torch"])
def test_files_load_layer_by_layer_and_name_the_head_left_out(
    kind: str, weights: dict[str, Tensor], files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    net = ResNet38()
    with caplog.at_level(logging.INFO, logger="distwsss"):
        load_file_into(net, files[kind], "resnet38")
    state = net.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    assert {"mxnet": "linear1000_weight, linear1000_bias", "torch": "fc8.weight"}[kind] in caplog.text


def test_names_of_mxnet() -> None:
    for name, (mxnet, _) in layers().items():
        assert resnet38_name(mxnet.partition(":")[2]) == name
        assert resnet38_name(name) == name
    assert resnet38_name("res9z_branch2a_weight") == "res9z_branch2a_weight"


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    net = ResNet38()
    before = net.bn7.weight.clone()
    shapes = {name: torch.zeros(1).expand(shape) for name, (_, shape) in layers().items() if name != "bn7.bias"}
    shapes |= {"bn7.running_mean": torch.zeros(3), "extra.weight": torch.zeros(1)}
    torch.save(shapes, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_file_into(net, tmp_path / "w.pth", "resnet38")
    for line in ("missing bn7.bias", "unexpected extra.weight", "bn7.running_mean is (3,), allowed (4096,)"):
        assert line in str(caught.value)
    assert "3 problems" in str(caught.value)
    assert torch.equal(net.bn7.weight, before)


@pytest.fixture(scope="class")
def classifier(request: pytest.FixtureRequest) -> Classifier:
    """p = 0.2 in the layer that is its parameter."""
    model = Classifier(SECTION, CLASSES, 0.2, request.param)
    model.backbone.net.load_state_dict(random_weights(), strict=False)
    return model


class TestDropoutLayer:
    @pytest.mark.parametrize(
        ("classifier", "p7", "before_head"), [("dropout7", 0.5, 0.2), ("b7", 0.2, 0.0)], indirect=["classifier"]
    )
    def test_p_is_that_of_the_layer_asked_for(self, classifier: Classifier, p7: float, before_head: float) -> None:
        weights, images = dict(classifier.backbone.net.state_dict()), torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.manual_seed(7)
            found = classifier.train()(images)
            torch.manual_seed(7)
            features = nn.functional.dropout2d(functional_forward(images, weights, 0.3, p7), before_head)
            expected = torch.einsum("bc,nc->bn", features.mean((2, 3)), classifier.head.weight[:, :, 0, 0])
        assert close(found, expected)

    @pytest.mark.parametrize("classifier", ["b7"], indirect=True)
    def test_it_is_exported(self, classifier: Classifier, tmp_path: Path) -> None:
        save_pretrained(classifier, tmp_path)
        again = from_pretrained(tmp_path)
        assert (again.dropout_layer, again.dropout.p, again.backbone.net.b7.dropout_2b1.p) == ("b7", 0.0, 0.2)
        (tmp_path / "model.safetensors").unlink()


class TestPublishedOptimizer:
    """psa's PolyOptimizer calls torch's SGD with the weight decay where the momentum belongs."""

    def test_same_weights_as_sgd_called_so(self) -> None:
        tiny = BackboneSection(name="tiny", pretrained=False, output_stride=8)
        torch.manual_seed(0)
        ours, theirs = Classifier(tiny, CLASSES, 0.0).double(), Classifier(tiny, CLASSES, 0.0).double()
        theirs.load_state_dict(ours.state_dict())
        section = OptimSection(lr=0.01, compat="psa_momentum", duration="5 steps")
        optimizer = build_optimizer(ours, section)
        body = [m.weight for m in theirs.backbone.modules() if isinstance(m, nn.Conv2d)]
        groups = [
            {"params": body, "lr": 0.01, "weight_decay": 5e-4},
            {"params": [theirs.head.weight], "lr": 0.1, "weight_decay": 5e-4},
        ]
        reference = torch.optim.SGD(groups, 0.01, 5e-4)
        for step in range(5):
            images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
            set_lr(optimizer, section.lr * lr_factor(step, 5, 0, section))
            for group, initial in zip(reference.param_groups, (0.01, 0.1), strict=True):
                group["lr"] = initial * (1 - step / 5) ** 0.9
            for model, its in ((ours, optimizer), (theirs, reference)):
                its.zero_grad()
                model.train()(images).square().sum().backward()
                its.step()
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in pairs)
        assert {group["momentum"] for group in optimizer.param_groups} == {5e-4}

    def test_multipliers_are_1_2_10_20_and_biases_do_not_decay(self) -> None:
        model = nn.Module()
        model.backbone, model.head = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        groups = {g["multiplier"]: g["weight_decay"] for g in parameter_groups(model, OptimSection())}
        assert groups == {1.0: 5e-4, 2.0: 0.0, 10.0: 5e-4, 20.0: 0.0}


def test_new_keys_leave_earlier_fingerprints_alone() -> None:
    plain = ClassifySection().parameters()
    assert "dropout_layer" not in plain
    assert "compat" not in plain["optim"]
    assert "weights" not in plain["backbone"]


def test_new_keys_that_are_set_are_in_the_fingerprint() -> None:
    section = BackboneSection(name="resnet38", weights="w.params", output_stride=8)
    changed = ClassifySection(dropout_layer="b7", backbone=section, optim=OptimSection(compat="psa_momentum"))
    found = changed.parameters()
    assert (found["dropout_layer"], found["optim"]["compat"]) == ("b7", "psa_momentum")
    assert "weights" not in found["backbone"]  # a path; its sha256 is among the inputs


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda: BackboneSection(name="resnet38", weights="w.pth"), "one stride: 8"),
        (lambda: BackboneSection(weights="w.pth", pretrained=False), "`pretrained` is false"),
        (lambda: ClassifySection(dropout_layer="b7"), "`dropout_layer` is 'b7', but `backbone.name` is 'lite_full'"),
        (lambda: OptimSection(compat="psa_momentum", optimizer="adamw"), "`optimizer` is 'adamw'"),
    ],
)
def test_keys_that_do_not_fit_are_refused(build: object, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        build()  # type: ignore[operator]
