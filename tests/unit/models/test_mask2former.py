"""Mask2Former: published sizes, transformers' semantic map, gradients, precision, what transformers leaves out."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from distwsss.config.networks import BackboneSection, Mask2FormerSection
from distwsss.config.stages import TrainSection
from distwsss.data.batches.loader import Batch
from distwsss.models.mask2former import Mask2Former, SetOutputs, semantic_logits, semantic_map
from distwsss.models.segmenters import build_segmenter
from distwsss.models.weights.transformer_names import mask2former_tensors
from distwsss.train.terms import segmenter_terms
from helpers.kept_bytes import kept_storages
from helpers.mask2former_reference import head_shapes

SMALL = {"hidden": 32, "feedforward": 64, "queries": 5, "encoder_layers": 1, "decoder_layers": 2, "points": 100_000}
TIMM = {
    "swin_tiny": "swin_tiny_patch4_window7_224", "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window12_384", "swin_large": "swin_large_patch4_window12_384",
}  # fmt: skip
WIDTHS = {"swin_tiny": 96, "swin_small": 96, "swin_base": 128, "swin_large": 192}


def section(name: str = "swin_tiny", drop_path: float = 0.0, loss: str = "hybrid", **sizes: Any) -> TrainSection:
    backbone = BackboneSection(name=name, pretrained=False, drop_path=drop_path)
    return TrainSection(model="mask2former", backbone=backbone, loss=loss, mask2former=Mask2FormerSection(**sizes))


def build(classes: int = 4, **options: Any) -> Mask2Former:
    return build_segmenter(section(**{**SMALL, **options}), [str(i) for i in range(classes)])


@functools.cache
def published(name: str) -> Mask2Former:
    """The network for ADE20K's 150 classes, at its published sizes, on the meta device."""
    with torch.device("meta"):
        return build(classes=150, name=name, drop_path=0.3, **Mask2FormerSection().model_dump())


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", TIMM)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    """timm's Swin without its classifier, a norm per stage, the head by detectron2's names."""
    with torch.device("meta"):
        reference = timm.create_model(TIMM[name], pretrained=False).state_dict()
        head = {key: torch.empty(shape) for key, shape in head_shapes(WIDTHS[name], 256, 2048, 6, 9, 100, 150).items()}
        norms = {f"backbone.norm{stage}.{kind}": torch.empty(WIDTHS[name] * 2**stage)
                 for stage in range(4) for kind in ("weight", "bias")}  # fmt: skip
    del head["criterion.empty_weight"]
    swin = {}
    for key, tensor in reference.items():  # timm merges patches at a stage's start, the published code at its end
        if not key.startswith(("norm.", "head.")):
            key = re.sub(r"^layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)
            swin[f"backbone.{key}"] = tensor
    expected = mask2former_tensors({**swin, **norms, **head})
    state = published(name).state_dict()
    assert {key: t.shape for key, t in state.items()} == {key: t.shape for key, t in expected.items()}


@pytest.mark.parametrize("name", TIMM)
def test_on_the_meta_device_nothing_is_held(name: str) -> None:
    assert {p.device.type for p in published(name).parameters()} == {"meta"}


@pytest.mark.parametrize(("name", "torchvisions"), [("swin_tiny", "swin_t"), ("swin_small", "swin_s")])
def test_the_backbone_has_as_many_parameters_as_torchvision_says(name: str, torchvisions: str) -> None:
    """The two with the same windows as torchvision's."""
    backbone = published(name).backbone
    classifier = 2 * 768 + 768 * 1000 + 1000
    stated = torchvision.models.get_model_weights(torchvisions).DEFAULT.meta["num_params"]
    assert parameters(backbone) - parameters(backbone.hidden_states_norms) + classifier == stated


def test_swin_large_has_as_many_parameters_as_the_paper_says() -> None:
    """arXiv 2112.01527: 215M for ADE20K; with 200 queries and COCO's 133 things and stuffs 216M."""
    total = parameters(published("swin_large"))
    assert total == 215_488_779
    coco = total + 2 * 100 * 256 - (150 - 133) * 257
    assert (round(total / 1e6), round(coco / 1e6)) == (215, 216)


def swin_blocks(model: Mask2Former) -> list[nn.Module]:
    return [block for stage in model.backbone.swin.encoder.layers for block in stage.blocks]


def test_windows_and_shifts_are_the_published_ones() -> None:
    blocks = swin_blocks(published("swin_large"))
    assert len(blocks) == 24
    assert [block.shift_size for block in blocks] == [0, 6] * 12
    assert {block.window_size for block in blocks} == {12}


def test_stochastic_depth_grows_to_the_configured_rate() -> None:
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in swin_blocks(published("swin_large"))]
    assert rates == pytest.approx([0.3 * i / 23 for i in range(24)])


@pytest.fixture(scope="module")
def predicted() -> tuple[Tensor, Tensor, Tensor]:
    """Classes, masks and transformers' semantic map of them; masks at 384 x 384, to which it would bring them first."""
    torch.manual_seed(0)
    classes, masks = 2 * torch.randn(2, 7, 5), 3 * torch.randn(2, 7, 384, 384)
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    processor = Mask2FormerImageProcessorPil()
    found = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True)
    return classes, masks, torch.stack([each["segmentation_scores"] for each in found])


def test_semantic_map_is_transformers_own(predicted: tuple[Tensor, Tensor, Tensor]) -> None:
    classes, masks, expected = predicted
    assert torch.allclose(semantic_map(classes, masks), expected, atol=1e-5)


def test_logits_are_those_of_the_normalised_map(predicted: tuple[Tensor, Tensor, Tensor]) -> None:
    classes, masks, expected = predicted
    assert (expected.sum(1) - 1).abs().max() > 0.1, "S is no distribution by itself"
    normalised = (expected + 1e-6) / (expected + 1e-6).sum(1, keepdim=True)
    assert torch.allclose(semantic_logits(classes, masks).softmax(1), normalised, atol=1e-6)


def perfect(classes: int) -> tuple[Tensor, Tensor]:
    """Query c is sure of class c, its mask of row c and of nothing else: classes 1,K,K+1 and masks 1,K,K,1."""
    return 60 * torch.eye(classes, classes + 1)[None], 120 * torch.eye(classes)[None, :, :, None] - 60


@pytest.mark.parametrize(("classes", "reached"), [(21, 0.9993), (81, 0.9966)])
def test_a_perfect_pixel_is_as_sure_as_the_constraint_allows(classes: int, reached: float) -> None:
    """p* = softmax(z / (tau ||z||)) at tau 0.1; no logits can do better than one class against all others."""
    z = semantic_logits(*perfect(classes))[0, :, :, 0].double()
    assert torch.allclose(z.softmax(0), torch.eye(classes, dtype=torch.float64), atol=1e-4)
    p_star = (z / (0.1 * z.norm(dim=0))).softmax(0).diagonal()
    most = 1 / (1 + (classes - 1) * np.exp(-10 * np.sqrt(classes / (classes - 1))))
    assert p_star == pytest.approx(np.full(classes, most), abs=1e-6)
    assert most == pytest.approx(reached, abs=5e-5)


def test_logits_are_centred_at_any_size(predicted: tuple[Tensor, Tensor, Tensor]) -> None:
    z = semantic_logits(*predicted[:2])
    assert z.mean(1).abs().max() < 1e-5
    assert torch.nn.functional.interpolate(z, (50, 70), mode="bilinear").mean(1).abs().max() < 1e-5


def test_where_no_mask_is_every_class_is_alike_and_gradients_are_finite() -> None:
    nowhere = torch.full((1, 7, 4, 4), -1e4, requires_grad=True)
    logits = semantic_logits(2 * torch.randn(1, 7, 5), nowhere)
    logits.square().sum().backward()
    assert torch.allclose(logits.softmax(1), torch.full((1, 4, 4, 4), 0.25))
    assert torch.isfinite(nowhere.grad).all()


@pytest.mark.parametrize("set_loss", [0.0, 1.0])
def test_every_parameter_gets_a_gradient(set_loss: float) -> None:
    """DDP waits for each; also where no image has a clean pixel."""
    torch.manual_seed(0)
    config = section(**{**SMALL, "set_loss": set_loss, "drop_path": 0.1})
    model = build_segmenter(config, ["a", "b", "c", "d"]).train()
    terms = segmenter_terms(config, model)
    labels = torch.randint(0, 4, (2, 64, 64))
    for clean in (torch.rand(2, 64, 64) < 0.5, torch.zeros(2, 64, 64, dtype=torch.bool)):
        model.zero_grad()
        outputs = model.training_outputs(torch.randn(2, 3, 64, 64))
        assert isinstance(outputs, SetOutputs) == bool(set_loss)
        sums, _ = terms.sums(
            outputs, Batch([], torch.empty(0), labels=labels, clean=clean, complements=(labels + 1) % 4)
        )
        (sums * torch.tensor(terms.weights)).sum().backward()
        assert len(sums) == (4 if set_loss else 1)
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_gradient_does_not_depend_on_the_split() -> None:
    """Four images at once, and as two micro-batches of two: sums over the whole batch's counts, all points taken."""
    torch.manual_seed(0)
    config = section(**SMALL, set_loss=0.7)
    model = build_segmenter(config, ["a", "b", "c", "d"]).double().train()
    terms = segmenter_terms(config, model)
    labels = torch.randint(0, 4, (4, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[1] = labels[1].clamp(max=1)
    labels[2, :20] = 255
    image = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    clean = torch.rand(4, 64, 64) < torch.tensor([0.9, 0.5, 0.2, 0.7])[:, None, None]
    batch = Batch([], image, labels=labels, clean=clean, complements=(labels + 1) % 4)
    counts = torch.tensor(terms.counts(batch), dtype=torch.float64)

    def gradient(parts: int) -> Tensor:
        model.zero_grad()
        for i in range(parts):
            part = batch.map(lambda tensor, i=i: tensor.chunk(parts)[i])
            sums, _ = terms.sums(model.training_outputs(part.image), part)
            (sums.double() * torch.tensor(terms.weights, dtype=torch.float64) / counts).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, split = gradient(1), gradient(2)
    assert (whole - split).norm() / whole.norm() < 1e-5


def test_half_precision_trains_with_a_float32_map() -> None:
    """The pixel decoder computes in float32 under autocast, as published: its positions need it."""
    torch.manual_seed(0)
    model, images = build().train(), torch.randn(1, 3, 64, 64)
    seen: dict[str, torch.dtype] = {}
    model.pixel_decoder.register_forward_hook(lambda *call: seen.update(pixels=call[2].mask_features.dtype))
    model.decoder.decoder.layers[0].fc1.register_forward_hook(lambda *call: seen.update(decoder=call[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.training_outputs(images)
    assert seen == {"pixels": torch.float32, "decoder": torch.bfloat16}
    assert outputs.logits[0].dtype == torch.float32
    outputs.logits[0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    exact = model.training_outputs(images).logits[0]
    assert (outputs.logits[0].softmax(1) - exact.softmax(1)).abs().max() < 0.1


def test_stochastic_depth_is_on_both_branches() -> None:
    """transformers has it on the attention only; what is dropped by 1 - 1e-9 leaves the input."""
    torch.manual_seed(0)
    model = build(drop_path=1 - 1e-9).train()
    block, tokens = model.backbone.swin.encoder.layers[3].blocks[1], torch.randn(2, 49, 768)
    assert torch.equal(block(tokens, (7, 7), always_partition=True)[0], tokens)
    assert not torch.equal(block.eval()(tokens, (7, 7), always_partition=True)[0], tokens)


def test_checkpointing_keeps_less_and_changes_nothing() -> None:
    torch.manual_seed(1)
    model, images = build(drop_path=0.3).train(), torch.randn(1, 3, 96, 96)

    def run() -> tuple[int, Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        with kept_storages() as stored:
            features = model.backbone(images).feature_maps
        sum(feature.square().sum() for feature in features).backward()
        return sum(stored.values()), torch.cat([p.grad.flatten() for p in model.backbone.parameters()])

    held = sum(p.nbytes for p in model.backbone.parameters())  # kept either way
    before, expected = run()
    model.checkpoint_activations()
    after, found = run()
    assert torch.equal(found, expected)
    assert after < (before - held) / 2


def test_blocks_alone_are_checkpointed() -> None:
    model = build()
    model.checkpoint_activations()
    flags = [type(module).__name__ for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert set(flags) == {"SwinLayer"}
    assert len(flags) == 12


def test_runs_on_meta_and_fake_tensors_and_after_them_on_real_ones() -> None:
    with torch.device("meta"):
        assert build().train()(torch.empty(1, 3, 64, 96)).shape == (1, 4, 16, 24)
    with FakeTensorMode():
        model = build().train()
        outputs = model.training_outputs(torch.randn(1, 3, 64, 96))
        sum(layer.masks.sum() + layer.classes.sum() for layer in outputs.layers).backward()
        assert model.class_predictor.weight.grad.shape == (5, 32)
    logits = build()(torch.randn(1, 3, 64, 96))
    assert type(logits) is Tensor
    assert np.isfinite(logits.detach().numpy()).all()


def test_predictions_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model, images = build().double().eval(), torch.randn(3, 3, 64, 64, dtype=torch.float64)
    each = torch.cat([model(image[None]) for image in images])
    assert torch.allclose(model(images), each, atol=1e-9)


def test_logits_of_any_size_are_a_quarter_rounded_up() -> None:
    assert build().eval()(torch.zeros(1, 3, 50, 75)).shape[-2:] == (13, 19)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"backbone": BackboneSection(name="swin_huge", pretrained=False)}, "swin_tiny, swin_small, swin_"),
        ({"backbone": {"name": "swin_tiny", "pretrained": False, "norm": "sync"}}, "`norm` is 'sync'"),
        ({"backbone": {"name": "swin_tiny", "pretrained": False, "output_stride": 8}}, "`output_stride` is 8"),
        ({"mask2former": {"hidden": 48}}, "multiple of 32"),
        ({"mask2former": {"hidden": 64, "heads": 3}}, "multiple of 32 and of heads"),
        ({"head_channels": 256}, r"`mask2former\.hidden`"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(options: dict[str, Any], found: str) -> None:
    backbone = BackboneSection(name="swin_tiny", pretrained=False)
    with pytest.raises(ValidationError, match=found):
        TrainSection(**{"model": "mask2former", "backbone": backbone, **options})


def test_set_loss_0_needs_no_layers() -> None:
    assert isinstance(build(set_loss=0.0).training_outputs(torch.zeros(1, 3, 64, 64)), list)


def test_the_norm_of_swins_classifier_is_gone() -> None:
    """Nothing here reads its output: it would be a parameter without a gradient."""
    model = published("swin_tiny")
    assert isinstance(model.backbone.swin.layernorm, nn.Identity)
