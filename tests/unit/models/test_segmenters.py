"""Every segmenter is held to the contract of DESIGN; weights survive `save_pretrained` / `from_pretrained`."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distwsss.config.networks import BackboneSection, Mask2FormerSection
from distwsss.config.stages import TrainSection
from distwsss.data.prepare import prepare
from distwsss.errors import CheckpointError, ConfigError
from distwsss.models.backbones.build import Backbone, sync_norms
from distwsss.models.classifier import Classifier
from distwsss.models.deeplab import ASPP
from distwsss.models.export import from_pretrained, save_pretrained
from distwsss.models.segmenters import build_segmenter
from distwsss.models.weights.published import fetch
from distwsss.train.stages import classify

CLASSES = ["background", "cat", "dog"]
TINY = BackboneSection(name="tiny", pretrained=False, output_stride=8)


def section(**options: object) -> TrainSection:
    return TrainSection(**{"backbone": TINY, "head_channels": 16, **options})


VARIANTS = {
    "aspp on tiny": section(head="aspp"),
    "largefov on tiny": section(head="largefov"),
    "aspp on lite, stride 16": section(backbone=BackboneSection(pretrained=False)),
    "aspp on resnet18, stride 8": section(
        backbone=BackboneSection(name="resnet18", pretrained=False, output_stride=8, norm="local")
    ),
    "codebase aspp on resnet18, as published": section(
        lineage="codebase",
        backbone=BackboneSection(name="resnet18", pretrained=False, output_stride=8, norm="local"),
    ),
    "codebase largefov on lite, frozen": section(
        lineage="codebase", head="largefov", backbone=BackboneSection(pretrained=False)
    ),
    "classic": section(
        lineage="classic", backbone=BackboneSection(name="resnet101_caffe", pretrained=False, output_stride=8)
    ),
    "segformer on mit_b0": section(
        model="segformer", backbone=BackboneSection(name="mit_b0", pretrained=False, drop_path=0.1)
    ),
    "mask2former on swin_tiny": section(
        model="mask2former",
        backbone=BackboneSection(name="swin_tiny", pretrained=False, drop_path=0.1),
        mask2former=Mask2FormerSection(hidden=32, feedforward=64, queries=5, encoder_layers=1, decoder_layers=2),
        head_channels=None,
    ),
}
WITHOUT_NORM = ("segformer on mit_b0", "mask2former on swin_tiny")  # backbones without BatchNorm


@pytest.fixture(scope="module", params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(name: str) -> nn.Module:
    """A variant as built; tests that run it in training mode take a copy."""
    return build_segmenter(VARIANTS[name], CLASSES)


@pytest.fixture(scope="module")
def model(built: nn.Module) -> nn.Module:
    """The same in eval mode. Tests leave it as it is."""
    return copy.deepcopy(built).eval()


def training_logits(model: nn.Module) -> list[Tensor]:
    outputs = model.training_outputs(torch.zeros(1, 3, 64, 64))
    return getattr(outputs, "logits", outputs)  # Mask2Former's set loss needs more than logits


class TestContract:
    def test_logits_lie_at_the_stride(self, name: str, model: nn.Module) -> None:
        rounded_up = name == "classic"  # Caffe's pooling rounds up
        expected = (2, 3, 96 // model.stride + rounded_up, 64 // model.stride + rounded_up)
        assert model(torch.zeros(2, 3, 96, 64)).shape == expected

    def test_it_says_how_pictures_and_logits_are_treated(self, model: nn.Module) -> None:
        assert len(model.mean) == len(model.std) == 3
        assert isinstance(model.align_corners, bool)

    def test_the_last_training_output_is_the_prediction(self, model: nn.Module) -> None:
        assert torch.equal(training_logits(model)[-1], model(torch.zeros(1, 3, 64, 64)))

    def test_labels_are_met_at_their_own_size_or_at_the_logits(self, model: nn.Module) -> None:
        of_logits = [tuple(logits.shape[-2:]) for logits in training_logits(model)]
        assert model.loss_sizes(64, 64) in ([(64, 64)], of_logits)

    def test_gradient_reaches_what_is_trained_and_only_that(self, built: nn.Module) -> None:
        model = copy.deepcopy(built).train()
        model(torch.randn(2, 3, 64, 64)).square().sum().backward()
        for key, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, key
        assert any(key.startswith("backbone.") for key, p in model.named_parameters() if p.requires_grad)

    def test_round_trip(self, model: nn.Module, tmp_path: Path) -> None:
        save_pretrained(model, tmp_path)
        again = from_pretrained(tmp_path)
        images = torch.randn(1, 3, 64, 64)
        assert torch.equal(again(images), model(images))
        assert (again.classes, again.mean, again.stride) == (model.classes, model.mean, model.stride)
        assert not again.training

    def test_frozen_norm_stays_frozen_through_train(self, name: str, built: nn.Module) -> None:
        model = copy.deepcopy(built)
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        frozen = VARIANTS[name].backbone.norm == "frozen"
        assert bool(norms) == (name not in WITHOUT_NORM)
        assert all(norm.training != frozen for norm in norms), "as built"
        model.eval().train()
        assert all(norm.training != frozen for norm in norms), "after train()"
        before = [norm.running_mean.clone() for norm in norms]
        model(torch.randn(2, 3, 64, 64) + 3)
        changed = [not torch.equal(a, norm.running_mean) for a, norm in zip(before, norms, strict=True)]
        assert all(changed) != frozen or name in WITHOUT_NORM


def test_aspp_is_the_sum_of_four_dilated_convolutions() -> None:
    torch.manual_seed(0)
    head, features = ASPP(5, 3, 0.0).double(), torch.randn(1, 5, 30, 30, dtype=torch.float64)
    expected = torch.zeros(1, 3, 30, 30, dtype=torch.float64)
    for branch, rate in zip(head.branches, (6, 12, 18, 24), strict=True):
        padded = nn.functional.pad(features, [rate] * 4)
        for i in range(3):
            for j in range(3):
                window = padded[:, :, i * rate : i * rate + 30, j * rate : j * rate + 30]
                expected += torch.einsum("bchw,kc->bkhw", window, branch.weight[:, :, i, j])
    assert torch.allclose(head(features), expected, atol=1e-12)


def test_classifier_scores_are_the_pooled_maps_before_relu() -> None:
    torch.manual_seed(0)
    model = Classifier(TINY, CLASSES, 0.5).eval()
    images = torch.randn(2, 3, 64, 64)
    raw = torch.einsum("bchw,nc->bnhw", model.backbone(images), model.head.weight[:, :, 0, 0])
    assert torch.allclose(model(images), raw.mean((2, 3)), atol=1e-6)
    assert torch.allclose(model.maps(images), raw.clamp(min=0), atol=1e-6)
    assert model.head.bias is None


def test_dropout_drops_whole_channels() -> None:
    torch.manual_seed(0)
    dropped = Classifier(TINY, CLASSES, 0.3).train().dropout(torch.ones(64, 96, 4, 4))
    per_channel = dropped.flatten(2)
    assert (per_channel.amin(2) == per_channel.amax(2)).all()
    assert 0.25 < (dropped == 0).float().mean() < 0.35


def test_lite_weights_are_the_files_tensors_in_order() -> None:
    tensors = list(torch.load(fetch("lite"), map_location="cpu", weights_only=True).values())
    names = list(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    loaded = Backbone(BackboneSection()).net.net.state_dict()
    assert len(loaded) == 288
    for key, value in loaded.items():
        assert torch.equal(value, tensors[names.index(key)]), key


def test_other_output_stride_gives_the_same_values_where_the_grids_meet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = BackboneSection(name="resnet18", pretrained=False, output_stride=32)
    save_pretrained(Classifier(backbone, CLASSES, 0.1), tmp_path)
    images = torch.randn(1, 3, 256, 256)
    coarse, fine = from_pretrained(tmp_path).maps(images), from_pretrained(tmp_path, output_stride=16).maps(images)
    assert fine.shape[-1] == 2 * coarse.shape[-1] == 16
    assert torch.allclose(fine[..., ::2, ::2], coarse, atol=1e-4)


class TestExportThatIsNotWhole:
    @pytest.fixture
    def exported(self, tmp_path: Path) -> Path:
        save_pretrained(build_segmenter(section(), CLASSES), tmp_path)
        return tmp_path

    def described_as(self, folder: Path, **changes: object) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    def test_misfit_is_listed(self, exported: Path) -> None:
        self.described_as(exported, classes=["background", "cat"])
        found = r"head\.branches\.0\.weight is \(3, 96, 3, 3\), allowed \(2, 96, 3, 3\)"
        with pytest.raises(CheckpointError, match=found):
            from_pretrained(exported)

    def test_a_kind_that_is_unknown_is_named(self, exported: Path) -> None:
        self.described_as(exported, kind="oracle")
        with pytest.raises(CheckpointError, match="oracle"):
            from_pretrained(exported)

    def test_a_description_must_be_there(self, exported: Path) -> None:
        (exported / "config.json").unlink()
        with pytest.raises(CheckpointError, match="No such file"):
            from_pretrained(exported)


@pytest.mark.parametrize(
    ("backbone", "found"),
    [
        (BackboneSection(name="nosuchnet", pretrained=False), "nosuchnet"),
        (BackboneSection(name="tiny", pretrained=False, output_stride=8, freeze=["nothing"]), "nothing"),
    ],
)
def test_impossible_backbones_are_refused(backbone: BackboneSection, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Backbone(backbone)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "executed"),))  # type: ignore[return-value]

    save_pretrained(build_segmenter(section(), CLASSES), tmp_path)
    torch.save(Payload(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        from_pretrained(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def grouped() -> nn.Module:
    torch.manual_seed(0)
    backbone = BackboneSection(name="resnet18", pretrained=False, norm="group")
    return build_segmenter(section(backbone=backbone, head_dropout=0.0), CLASSES)


class TestGroupNorm:
    def test_it_is_in_place_of_every_batch_norm(self, grouped: nn.Module) -> None:
        kept = Backbone(BackboneSection(name="resnet18", pretrained=False, output_stride=32, norm="local"))
        assert not [m for m in grouped.modules() if isinstance(m, nn.BatchNorm2d)]
        groups = [m for m in grouped.backbone.modules() if isinstance(m, nn.GroupNorm)]
        assert len(groups) == len([m for m in kept.modules() if isinstance(m, nn.BatchNorm2d)]) == 20
        assert all(group.num_groups == 32 for group in groups)

    def test_it_is_that_of_each_image_alone(self, grouped: nn.Module) -> None:
        images = torch.randn(3, 3, 64, 64)
        assert torch.allclose(grouped.train()(images)[1], grouped(images[1:2])[0], atol=1e-5)

    def test_it_is_exported(self, grouped: nn.Module, tmp_path: Path) -> None:
        save_pretrained(grouped, tmp_path)
        images = torch.randn(3, 3, 64, 64)
        assert torch.equal(from_pretrained(tmp_path)(images), grouped.eval()(images))


def test_sync_needs_gpus(tiny, tmp_path: Path) -> None:
    """torch's SyncBatchNorm refuses the CPU with a message that names no key."""
    config = tiny(classify={"backbone": {**TINY.model_dump(), "norm": "sync"}})
    prepare(config)
    with pytest.raises(ConfigError, match=r"backbone\.norm is sync, on cpu; allowed there: frozen, local, group"):
        classify(config)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "efficientnet_b0"])
def test_sync_changes_nothing_but_whose_statistics_count(name: str) -> None:
    """efficientnet's BatchNorms carry activations; outside of training on several GPUs the statistics are one's own."""
    stride = 8 if name == "tiny" else 16
    section = BackboneSection(name=name, pretrained=False, output_stride=stride, norm="sync")
    model, images = Classifier(section, CLASSES, 0.0), torch.randn(2, 3, 64, 64)
    expected, state = [model.train()(images), model.eval()(images)], model.state_dict(keep_vars=True)
    sync_norms(model)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert all(value is state[key] for key, value in model.state_dict(keep_vars=True).items())
    assert torch.equal(model.eval()(images), expected[1])
    assert torch.equal(model.train()(images), expected[0])


def test_sync_is_exported_as_batch_norm(tmp_path: Path) -> None:
    model = Classifier(TINY.model_copy(update={"norm": "sync"}), CLASSES, 0.1).eval()
    sync_norms(model)
    save_pretrained(model, tmp_path)
    again, images = from_pretrained(tmp_path), torch.randn(1, 3, 32, 32)
    assert type(again.backbone.net.stages[0][1]) is nn.BatchNorm2d
    expected = Classifier(TINY, CLASSES, 0.1).eval()
    expected.load_state_dict(model.state_dict())
    assert torch.equal(again(images), expected(images))
