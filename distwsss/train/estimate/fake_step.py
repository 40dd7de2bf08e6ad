"""One training step on fake tensors: what it holds in memory and how much it computes. Called by `train.estimate`.

It runs what the loop runs (network, loss terms, optimizer), with the variables of `train.steps._train_step`, since what
they name stays in memory. Labels have data: the losses ask which classes an image has and how many pixels are clean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from distwsss.config.stages import ClassifySection, TrainSection
from distwsss.config.training import OptimSection
from distwsss.data.batches.loader import Batch
from distwsss.models.classifier import Classifier
from distwsss.models.segmenters import build_segmenter
from distwsss.train.estimate.fake_memory import HostReads, PeakMemory, cuda_autocast_rules, fake_module
from distwsss.train.optim import build_optimizer
from distwsss.train.task import classifier_sums
from distwsss.train.terms import segmenter_terms

CUDA_BLOCK = 512  # bytes: what PyTorch's CUDA allocator rounds up to
CLASSES_PER_IMAGE = 8  # of the fake labels, background included; what Mask2Former's set loss holds grows with it
NO_IMAGE = torch.empty(0)  # of labels that have data: the images have none
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Stage:
    """What is trained, as the loop knows it: `classify` or `train` of a configuration."""

    name: str
    classes: list[str]
    optim: OptimSection
    crop: int
    build: Callable[[], nn.Module]
    sums: Callable[[nn.Module], Callable[[Any, Batch], tuple[Tensor, Any]]]
    maps: Callable[[int], Batch]


@dataclass(frozen=True)
class Way:
    """How a step is computed: images of a micro-batch, hardware.mixed_precision, on which kind of device; whether
    gradients are accumulated over several micro-batches, whether the backbone's activations are recomputed."""

    micro_batch: int
    precision: str = "no"
    cuda: bool = True
    accumulates: bool = False
    recomputes: bool = False


@dataclass(frozen=True)
class StepCost:
    """Parameters in numbers; bytes at the peak of a step, by kind; floating-point operations per image."""

    trained: int
    frozen: int
    gradients: int
    peak: Mapping[str, int]
    flops: int


def classifier_stage(section: ClassifySection, classes: list[str]) -> Stage:
    """The classifier; of all its dropout probabilities the first, they cost the same."""

    def build() -> nn.Module:
        model = Classifier(_without_weights(section.backbone), classes, section.dropouts[0], section.dropout_layer)
        return _freeze_published(model, section.backbone.pretrained)

    def maps(images: int) -> Batch:
        return Batch([], NO_IMAGE, targets=torch.zeros(images, len(classes) - 1))

    return Stage("classify", classes, section.optim, section.augment.crop, build, lambda _: classifier_sums, maps)


def segmenter_stage(section: TrainSection, classes: list[str]) -> Stage:
    """The segmenter, on labels whose pixels are all clean and stripes of `CLASSES_PER_IMAGE` classes."""
    bare = section.model_copy(update={"weights": None, "backbone": _without_weights(section.backbone)})
    side = section.augment.crop

    def build() -> nn.Module:
        return _freeze_published(build_segmenter(bare, classes), section.backbone.pretrained)

    def maps(images: int) -> Batch:
        stripes = torch.arange(side) * min(len(classes), CLASSES_PER_IMAGE) // side
        labels = stripes.to(torch.uint8).expand(images, side, side).contiguous()
        others = (labels + 1) % len(classes)
        if section.complements_each > 1:
            others = others[:, None].repeat(1, section.complements_each, 1, 1)
        complements = others if section.learns_negatively else None
        return Batch([], NO_IMAGE, labels=labels, clean=labels != 255, complements=complements)

    return Stage("train", classes, section.optim, side, build, lambda m: segmenter_terms(section, m).sums, maps)


def _without_weights(section: Any) -> Any:
    return section.model_copy(update={"pretrained": False, "weights": None})


def _freeze_published(model: nn.Module, pretrained: bool) -> nn.Module:
    """What `models.backbones` freezes of a backbone that starts from published weights."""
    net: Any = getattr(model.backbone, "net", None)
    for prefix in getattr(net, "frozen", ()) if pretrained else ():
        for name, parameter in net.named_parameters():
            if name.startswith(prefix):
                parameter.requires_grad_(False)
    return model


def step_cost(stage: Stage, way: Way) -> StepCost:
    """The cost of one step of `stage`, the optimizer's states being there already. Nothing is allocated."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        model = stage.build()
    fake_module(model, mode).train()
    if way.recomputes:
        model.checkpoint_activations()
    optimizer = build_optimizer(model, stage.optim)
    for group in optimizer.param_groups:
        group["foreach"] = way.cuda  # torch's default there, which it does not see of fake tensors
    memory = PeakMemory(CUDA_BLOCK if way.cuda else 1)
    # checkpoints enter autocast again in backward
    with cuda_autocast_rules() if way.cuda else nullcontext(), mode, memory:
        _fill(model, optimizer, memory)
        memory.reset()
        _train_step(stage, way, model, optimizer)
    counts = Counter[bool]()
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    images = way.micro_batch * _micro_batches(way)
    return StepCost(counts[True], counts[False], gradients, dict(memory.at_peak), memory.flops // images)


def _fill(model: nn.Module, optimizer: torch.optim.Optimizer, memory: PeakMemory) -> None:
    """Count parameters and buffers, let the optimizer make its states, and count gradients as such from now on."""
    for tensor in [*model.parameters(), *model.buffers()]:
        memory.mark(tensor, "parameters")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.ndim:  # a step's number is on the host
                memory.mark(value, "states")
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda p: memory.mark(p.grad, "gradients"))


def _micro_batches(way: Way) -> int:
    return 2 if way.accumulates else 1  # the second finds the gradients of the first


def _train_step(stage: Stage, way: Way, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A whole step but for logging, as `train.steps` does it."""
    sums_of = stage.sums(model)
    for _ in range(_micro_batches(way)):
        with unset_fake_temporarily():
            maps = stage.maps(way.micro_batch)
        on_device = maps.map(torch.clone)  # a copy is what `memory` sees
        on_device.image = torch.empty(way.micro_batch, 3, stage.crop, stage.crop)
        with torch.autocast("cpu", DTYPES[way.precision]) if way.precision in DTYPES else nullcontext():
            outputs = model.training_outputs(on_device.image)
        if way.precision != "no":
            outputs = convert_to_fp32(outputs)  # as Accelerate's forward does
        with HostReads():
            sums, _parts = sums_of(outputs, on_device)
        loss = sums.sum()
        loss.backward()
    if stage.optim.clip_grad:
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.optim.clip_grad, foreach=way.cuda)
    optimizer.step()
    optimizer.zero_grad()
