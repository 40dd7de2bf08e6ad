"""Memory, operations and micro-batches said beforehand, against numbers by hand, torch's own tracker and real steps."""

from __future__ import annotations

import json
import typing
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distwsss.cli import main
from distwsss.config.hardware import HardwareSection
from distwsss.config.load import load_config
from distwsss.config.training import OptimSection
from distwsss.data.batches.loader import Batch
from distwsss.errors import ConfigError
from distwsss.train.estimate import fake_memory
from distwsss.train.estimate.cards import CARDS, Card, computes_in
from distwsss.train.estimate.estimate import (
    CONTEXT_GIB,
    FRAGMENTS,
    GIB,
    USABLE,
    Estimate,
    class_names,
    estimate,
    largest_micro_batch,
    memory_of,
)
from distwsss.train.estimate.fake_memory import PeakMemory, cuda_autocast_rules, fake_module
from distwsss.train.estimate.fake_step import Stage, Way, segmenter_stage, step_cost
from distwsss.train.optim import build_optimizer
from helpers.paths import REPOSITORY
from helpers.small import CLASSES, make_config, write_images

NAMES = [f"class {number}" for number in range(21)]
ROWS = [f"voc12/{name}" for name in ("deeplab_v1", "deeplab_v2", "deeplab_v2_classic")]
ROWS += [f"{data}/{name}" for data in ("voc12", "coco14") for name in ("segformer_b2", "mask2former_swin_l")]
ROWS += ["coco14/deeplab_v2"]
SIDE, BATCH = 16, 3


class TwoConvs(nn.Module):
    """3 -> 4 channels with bias (4 * 27 + 4 parameters), ReLU, 4 -> 2 without (8)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1, bias=False)

    def training_outputs(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.backbone(images)))


def two_convs(optimizer: str = "sgd", build: Callable[[], nn.Module] = TwoConvs) -> Stage:
    optim = OptimSection(optimizer=optimizer, global_batch=12)
    return Stage(
        "train",
        NAMES,
        optim,
        SIDE,
        build,
        lambda _: lambda out, batch: (out.sum()[None], {}),
        lambda _: Batch([], torch.empty(0)),
    )


def row(path: str, *overrides: str) -> Stage:
    config = load_config(REPOSITORY / f"configs/{path}.yaml", None, list(overrides))
    return segmenter_stage(config.train, NAMES)


def test_operations_by_hand() -> None:
    pixels = SIDE * SIDE
    first, second = 2 * pixels * 4 * 3 * 9, 2 * pixels * 2 * 4
    # backward: the weights' gradients of both, the input's of the second only, as images need none
    assert step_cost(two_convs(), Way(BATCH)).flops == 2 * first + 3 * second


def test_operations_of_segformer_are_those_published() -> None:
    """Xie et al. 2021, Table 1: SegFormer-B2, 150 classes: 27.5 M parameters, 62.4 G products at 512 x 512."""
    config = load_config(REPOSITORY / "configs/voc12/segformer_b2.yaml")
    mode, memory = FakeTensorMode(), PeakMemory()
    with torch.device("meta"):
        model = segmenter_stage(config.train, [str(number) for number in range(150)]).build()
    fake_module(model, mode)
    with mode, memory, torch.no_grad():
        model(torch.empty(1, 3, 512, 512))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(27.5e6, rel=0.005)
    assert memory.flops / 2 == pytest.approx(62.4e9, rel=0.005)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_operations_of_grouped_convolutions_by_hand(groups: int) -> None:
    class Grouped(TwoConvs):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False)

    first, second = 2 * SIDE * SIDE * 4 * 3 * 9, 2 * SIDE * SIDE * 4 * 4 // groups * 9
    assert step_cost(two_convs(build=Grouped), Way(BATCH)).flops == 2 * first + 3 * second


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 1), ("adamw", 2)])
def test_parameters_and_states_by_hand(optimizer: str, states: int) -> None:
    def frozen_bias() -> nn.Module:
        model = TwoConvs()
        model.backbone.bias.requires_grad_(False)
        return model

    cost = step_cost(two_convs(optimizer, frozen_bias), Way(BATCH, cuda=False))
    assert (cost.trained, cost.frozen, cost.gradients) == (116, 4, 4 * 116)
    assert (cost.peak["parameters"], cost.peak["states"]) == (4 * 120, 4 * 116 * states)


def test_activations_by_hand() -> None:
    image, hidden, out = (4 * BATCH * channels * SIDE * SIDE for channels in (3, 4, 2))
    peak = step_cost(two_convs(), Way(BATCH, cuda=False)).peak
    # most is held in the backward of ReLU: image, ReLU's output (not its input), the logits, the gradients of ReLU's
    # output and input and of the second convolution's weights, and three scalars: two sums and where backward begins
    assert peak["activations"] + peak["gradients"] == image + 3 * hidden + out + 4 * 8 + 3 * 4


def test_accumulated_gradients_stay() -> None:
    alone, again = (step_cost(two_convs(), Way(BATCH, cuda=False, accumulates=more)).peak for more in (False, True))
    assert sum(again.values()) > sum(alone.values())


def test_peak_is_that_of_torchs_tracker() -> None:
    def step(model: nn.Module, images: Tensor) -> None:
        model.training_outputs(images).square().mean().backward()

    peaks = []
    for _ in range(2):
        mode = FakeTensorMode()
        with torch.device("meta"):
            model = TwoConvs()
        fake_module(model, mode)
        with mode:
            images = torch.empty(BATCH, 3, SIDE, SIDE)
            if not peaks:
                memory = PeakMemory()
                for tensor in [*model.parameters(), images]:
                    memory.mark(tensor, "parameters")
                with memory:
                    step(model, images)
                peaks.append(memory.at_peak.total())
            else:
                tracker = MemTracker()
                tracker.track_external(model, images)
                with tracker:
                    step(model, images)
                peaks.append(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
    assert peaks[0] == peaks[1]


def test_blocks_are_rounded_up_and_freed() -> None:
    memory = PeakMemory(block=512)
    with memory:
        kept, gone = torch.zeros(1), torch.zeros(1000)
        del gone
        memory.mark(kept, "states")
    assert memory.held == Counter(states=512, activations=0)
    assert memory.at_peak.total() == 512 + 4096


def test_recomputation_takes_less_memory_and_more_operations() -> None:
    stage = row("voc12/deeplab_v2", "train.lineage=plain", "train.backbone.name=resnet18", "train.augment.crop=193")
    kept, recomputed = (step_cost(stage, Way(4, recomputes=recomputes)) for recomputes in (False, True))
    assert recomputed.peak["activations"] < 0.8 * kept.peak["activations"]
    assert kept.flops < recomputed.flops < 1.5 * kept.flops
    assert (kept.trained, kept.gradients) == (recomputed.trained, recomputed.gradients)


def test_bf16_takes_less_than_float32() -> None:
    stage = row("voc12/segformer_b2", "train.backbone.name=mit_b0", "train.augment.crop=256")
    wide, narrow = (step_cost(stage, Way(2, precision)).peak["activations"] for precision in ("no", "bf16"))
    assert narrow < 0.9 * wide


class DTypes(TorchDispatchMode):
    """Counts (operator, dtype) of what operators make."""

    def __init__(self) -> None:
        super().__init__()
        self.made = Counter[tuple[str, torch.dtype]]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.made[str(func.overloadpacket), tensor.dtype] += 1
        return out


ELSEWHERE = ("view", "permute", "unsqueeze", "native_batch_norm")  # what makes no memory, and another kernel's outputs


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        ("voc12/deeplab_v2", ["train.backbone.name=resnet18", "train.augment.crop=65", "train.head_dropout=0.0"]),
        ("voc12/mask2former_swin_l_smoke", ["train.mask2former.set_loss=0.0", "train.augment.crop=64"]),
    ],
    ids=["deeplab", "mask2former"],
)
def test_dtypes_under_autocast_are_those_of_cuda(monkeypatch, path: str, overrides: list[str]) -> None:
    stage, found = row(path, *overrides), {}
    for device, autocast in (("cuda", forced_cuda_autocast), ("cpu", emulated_autocast)):
        monkeypatch.setattr(fake_memory, "CPU", torch.device(device))  # a forward alone needs no driver
        mode, dtypes = FakeTensorMode(allow_non_fake_inputs=True), DTypes()
        with torch.device("meta"):
            model = stage.build()
        fake_module(model, mode).train()
        with autocast(), mode, dtypes:
            model.training_outputs(torch.empty(2, 3, stage.crop, stage.crop, device=device))
        found[device] = {
            made: count
            for made, count in dtypes.made.items()
            if made[1].is_floating_point and not made[0].removeprefix("aten.").startswith(ELSEWHERE)
        }
    assert any(dtype == torch.bfloat16 for _, dtype in found["cuda"])
    assert found["cpu"] == found["cuda"]


@contextmanager
def forced_cuda_autocast():
    """torch.autocast("cuda") turns itself off without a GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


@contextmanager
def emulated_autocast():
    with cuda_autocast_rules(), torch.autocast("cpu", torch.bfloat16):
        yield


def test_autocast_is_the_cpus_own_again() -> None:
    values = torch.ones(2, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        with cuda_autocast_rules():
            assert values.softmax(1).dtype == torch.float32
        assert values.softmax(1).dtype == torch.bfloat16


@pytest.mark.parametrize("gib", [0.001, 0.01, 0.02, 0.1])
def test_largest_micro_batch_is_the_one_found_by_trying_all(gib: float) -> None:
    stage, hardware = two_convs("adamw"), HardwareSection(card="rtx3090")
    totals = {}
    for micro in range(1, 13):
        cost = step_cost(stage, Way(micro, accumulates=micro < 12))
        totals[micro] = sum(memory_of(cost, hardware).values())
    card = Card("small", CONTEXT_GIB / USABLE + gib / 100, {})
    fitting = [micro for micro, total in totals.items() if total <= USABLE * card.memory * GIB]
    for known in (None, 1, 3, 6, 12):
        before = {known: totals[known]} if known else {}
        assert largest_micro_batch(stage, hardware, card, before) == max(fitting, default=0)


def test_ddp_keeps_gradients_once_more() -> None:
    cost = step_cost(two_convs(), Way(BATCH))
    one, two = (memory_of(cost, HardwareSection(card="a100", cards=cards)) for cards in (1, 2))
    assert (one["buckets"], two["buckets"]) == (0, 4 * 120)
    assert two["allowance"] - one["allowance"] == pytest.approx(FRAGMENTS * 4 * 120, abs=1)


def test_cards_are_those_of_the_configuration() -> None:
    named = typing.get_args(typing.get_args(HardwareSection.model_fields["card"].annotation)[0])
    assert set(named) == set(CARDS)


def test_every_card_has_a_rate_for_every_precision() -> None:
    assert all(set(card.rates) == {"bf16", "fp16", "tf32", "float32"} for card in CARDS.values())


@pytest.mark.parametrize(
    ("hardware", "precision"),
    [({"tf32": False}, "float32"), ({"tf32": True}, "tf32"), ({"mixed_precision": "bf16", "tf32": True}, "bf16")],
)
def test_what_is_computed_in(hardware: dict[str, Any], precision: str) -> None:
    assert computes_in(HardwareSection(**hardware)) == precision


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> list[Estimate]:
    """The two stages on two cards, with a quarter of the segmenter's images held out."""
    optim = {"duration": "3 epochs", "global_batch": 4}
    hardware = {"card": "a100", "cards": 2, "micro_batch": 1, "mixed_precision": "bf16"}
    folder = tmp_path_factory.mktemp("estimated")
    return estimate(make_config(folder, train={"optim": optim, "holdout": 0.25}, hardware=hardware))


def test_steps_by_hand(estimated: list[Estimate]) -> None:
    classifier, segmenter = estimated
    assert (classifier.images, classifier.steps_per_epoch, classifier.steps) == (12, 3.0, 4)
    assert (segmenter.images, segmenter.steps_per_epoch, segmenter.steps) == (9, 2.25, 7)


def test_the_split_of_the_batch_by_hand(estimated: list[Estimate]) -> None:
    assert (estimated[1].ranks, estimated[1].accumulation, estimated[1].micro_batch) == (2, 2, 1)


def test_time_by_hand(estimated: list[Estimate]) -> None:
    seconds = 7 * estimated[1].flops / 2 / 312e12
    assert estimated[1].hours == pytest.approx((seconds / 0.45 / 3600, seconds / 0.20 / 3600))


def test_shards_are_asked_first(tiny, tmp_path: Path) -> None:
    config = tiny(data={"dataset": "folder", "root": str(tmp_path / "nowhere")})
    write_images(config, "train", 5)
    assert class_names(config) == CLASSES
    assert estimate(config)[0].images == 5


def test_unknown_classes_are_an_error(tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"classes are not known: data\.classes is not set.*run prepare first"):
        estimate(tiny(data={"dataset": "folder", "root": str(tmp_path)}))


def test_what_is_not_known_is_none(tiny, tmp_path: Path) -> None:
    data = {"dataset": "folder", "root": str(tmp_path), "classes": ["cat", "dog"]}
    classifier, segmenter = estimate(tiny(data=data, train={"optim": {"duration": "2 epochs"}}))
    assert (classifier.images, classifier.steps, segmenter.steps, segmenter.hours) == (None, 4, None, None)
    assert classifier.largest_micro_batch is None  # no card


def test_more_cards_than_images_of_a_batch_are_an_error(tiny) -> None:
    with pytest.raises(ConfigError, match=r"global_batch is 4, hardware\.cards 5; allowed: at most 4 cards"):
        estimate(tiny(hardware={"cards": 5}))


@pytest.fixture
def said(tiny_file, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """said(*arguments) -> what `distwsss estimate` prints for two cards."""
    path = str(tiny_file(hardware={"card": "rtx3090", "cards": 2}))

    def run(*arguments: str) -> str:
        assert main(["estimate", "--config", path, *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_the_command_line_prints_a_table_and_leaves_nothing(said: Callable[..., str], tmp_path: Path) -> None:
    text = said()
    assert "Estimates, nothing was run: 2 x RTX 3090, tf32" in text
    assert "buckets of DDP" in text
    assert "% of the card" in text
    assert not (tmp_path / "run").exists()


def test_the_command_line_prints_json(said: Callable[..., str]) -> None:
    tree = json.loads(said("--json"))
    assert [stage["stage"] for stage in tree["stages"]] == ["classify", "train"]
    memory = tree["stages"][1]["memory"]
    assert memory.pop("total") == sum(memory.values())


@pytest.mark.slow
@pytest.mark.timeout(900)  # Mask2Former's steps take minutes on one core
@pytest.mark.parametrize("path", [row for row in ROWS if row != "coco14/mask2former_swin_l"])  # VOC has one too
def test_every_row_fits_the_profile_of_the_rtx3090(path: str) -> None:
    config = load_config(REPOSITORY / f"configs/{path}.yaml", "rtx3090")
    for found in estimate(config):
        assert found.total <= 22 * GIB
        assert found.largest_micro_batch >= found.micro_batch


def real_step(stage: Stage, images: int, recomputes: bool) -> tuple[int, int]:
    """Bytes before the second step (weights, buffers, optimizer states), and what the allocator's own events add to
    them at its peak."""
    model = stage.build().train()
    if recomputes:
        model.checkpoint_activations()
    optimizer, sums_of = build_optimizer(model, stage.optim), stage.sums(model)

    def step() -> None:
        maps = stage.maps(images).map(torch.clone)
        outputs = model.training_outputs(torch.randn(images, 3, stage.crop, stage.crop))
        sums, _parts = sums_of(outputs, maps)
        loss = sums.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    before = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers(), *states] if tensor.ndim)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return before, peak


@pytest.mark.slow
@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        ("voc12/deeplab_v2", ["train.augment.crop=97"]),
        ("voc12/segformer_b2", ["train.augment.crop=128"]),
        ("voc12/mask2former_swin_l", ["train.augment.crop=128", "train.backbone.name=swin_tiny"]),
    ],
    ids=["deeplab-resnet101", "segformer-b2", "mask2former-swin-t"],
)
def test_estimate_is_within_a_tenth_of_a_real_step(path: str, overrides: list[str], recomputes: bool) -> None:
    stage = row(path, *overrides)
    peak = step_cost(stage, Way(2, cuda=False, recomputes=recomputes)).peak
    step = peak["activations"] + peak.get("gradients", 0)
    before, real = real_step(stage, 2, recomputes)
    print(f"weights and states {before / 1e6:.1f} MB; step: estimated {step / 1e6:.1f}, real {real / 1e6:.1f} MB")
    assert peak["parameters"] + peak["states"] == pytest.approx(before, rel=0.001)
    assert sum(peak.values()) == pytest.approx(before + real, rel=0.1)
