"""The training loop in one process: resume, damage, refusal, finiteness, and what it must not depend on."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from distwsss.config import Config
from distwsss.data.batches.plan import Sample
from distwsss.data.holdout import held_out_keys
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.errors import CheckpointError, ConfigError, RunError, ShardError
from distwsss.models.export import from_pretrained
from distwsss.runtime.artifacts import manifest_problems, read_pointer
from distwsss.runtime.layout import pseudo_dir, run_dir
from distwsss.train import checkpoint, stages, steps
from distwsss.train.checkpoint import finished_folders, newest_checkpoint, write_checkpoint
from distwsss.train.loop import fit
from distwsss.train.stages import classify, train
from distwsss.train.task import Task, classifier_task, segmenter_task
from helpers.small import flip_a_bit, make_config, weights, write_pseudo


def stopped_in(task: Task, step: int) -> Task:
    """`task`, whose process gets SIGTERM while it computes the loss of `step`."""
    sums, steps_done = task.sums, count(1)

    def interrupted(outputs, batch):
        if next(steps_done) == step:
            signal.raise_signal(signal.SIGTERM)
        return sums(outputs, batch)

    task.sums = interrupted
    return task


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Image shards and pseudo-labels, which no test changes."""
    config = make_config(tmp_path_factory.mktemp("labelled"))
    prepare(config)
    write_pseudo(config)
    return config


def beside(config: Config, folder: Path, **sections: Any) -> Config:
    """Another run, in `folder`, on the shards of `config`."""
    return make_config(folder, paths={"shards": config.paths.shards}, **sections)


@dataclass(frozen=True)
class Resumed:
    """One classifier trained in one go into `whole`, and with an interruption into `parts`, which then held `left`."""

    whole: Path
    parts: Path
    left: list[str]


@pytest.fixture(scope="module")
def resumed(labelled: Config, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    whole, parts = (tmp_path_factory.mktemp(name) for name in ("whole", "parts"))
    fit(classifier_task(labelled, 0.3), labelled.hardware, whole, seed=0)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped_in(classifier_task(labelled, 0.3), 2), labelled.hardware, parts, seed=0)
    left = sorted(str(path.relative_to(parts / "checkpoints")) for path in parts.glob("checkpoints/step-*/*"))
    fit(classifier_task(labelled, 0.3), labelled.hardware, parts, seed=0)
    return Resumed(whole, parts, left)


def test_an_interruption_leaves_the_step_it_came_in(resumed: Resumed) -> None:
    assert {name.partition("/")[0] for name in resumed.left} == {"step-00000001", "step-00000002"}
    assert "step-00000002/optimizer.pt" in resumed.left


def test_interrupted_and_resumed_equals_uninterrupted(resumed: Resumed) -> None:
    last = [folder / "checkpoints/step-00000004" for folder in (resumed.whole, resumed.parts)]
    assert weights(last[0]) == weights(last[1])


def test_no_optimizer_state_is_left_in_the_end(resumed: Resumed) -> None:
    assert not list(resumed.parts.rglob("optimizer.pt"))


def test_metrics_go_on_where_they_stopped(resumed: Resumed) -> None:
    lines = lines_of(resumed.parts)
    assert [(line["attempt"], line["step"]) for line in lines] == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert [line["loss"] for line in lines] == [line["loss"] for line in lines_of(resumed.whole)]


def test_loader_workers_do_not_change_the_result(prepared: Config, tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        hardware = prepared.hardware.model_copy(update={"loader_workers": workers})
        folder = tmp_path / str(workers)
        results.append(weights(fit(classifier_task(prepared, 0.1), hardware, folder, seed=0)))
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def finished(labelled: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished stage `classify`; no test changes it."""
    config = beside(labelled, tmp_path_factory.mktemp("finished"))
    classify(config)
    return config


@pytest.fixture
def classified(finished: Config, tmp_path: Path) -> Config:
    """A copy of it."""
    shutil.copytree(run_dir(finished), tmp_path / "run")
    return beside(finished, tmp_path)


def newest(config: Config, part: str = "classify/0.10") -> Path:
    found = read_pointer(run_dir(config) / part / "checkpoints/LAST")
    assert found is not None
    return found


def test_what_must_resume_needs_a_checkpoint(prepared: Config) -> None:
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        classify(prepared, resume="must")


def test_what_must_not_resume_refuses_a_run(classified: Config) -> None:
    with pytest.raises(ConfigError, match="already holds a run"):
        classify(classified, resume="never")


def test_a_finished_stage_is_skipped(classified: Config) -> None:
    before = (newest(classified) / "model.safetensors").stat().st_mtime_ns
    classify(classified)
    assert (newest(classified) / "model.safetensors").stat().st_mtime_ns == before


def test_other_parameters_are_refused_by_name(classified: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"classify\.optim\.lr: was 0\.01, now 0\.02"):
        classify(beside(classified, tmp_path, classify={"optim": {"lr": 0.02}}))


def test_killed_between_its_last_checkpoint_and_done_json_nothing_is_left_to_train(classified: Config) -> None:
    done, before = run_dir(classified) / "classify/0.10/done.json", newest(classified) / "model.safetensors"
    record, written = done.read_bytes(), before.stat().st_mtime_ns
    done.unlink()
    classify(classified)
    assert done.read_bytes() == record
    assert before.stat().st_mtime_ns == written


def test_what_is_refused_leaves_no_configuration_beside_the_others_results(classified: Config, tmp_path: Path) -> None:
    (run_dir(classified) / "classify/0.10/done.json").unlink()
    written = run_dir(classified) / "classify/0.10/config.yaml"
    assert "lr: 0.01\n" in written.read_text()
    with pytest.raises(ConfigError, match="was made with other parameters"):
        classify(beside(classified, tmp_path, classify={"optim": {"lr": 0.02}}))
    assert "lr: 0.01\n" in written.read_text()


def test_a_finished_checkpoint_of_another_folder_is_nothing_to_go_on_with(finished: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--init-from"):
        fit(classifier_task(finished, 0.1), finished.hardware, tmp_path, seed=0, resume=str(newest(finished)))


def test_a_stop_in_the_last_step_completes_the_run_and_stops_what_follows(prepared: Config, monkeypatch) -> None:
    monkeypatch.setattr(stages, "classifier_task", lambda *given: stopped_in(classifier_task(*given), 4))  # of four
    with pytest.raises(KeyboardInterrupt):
        classify(prepared)
    assert (run_dir(prepared) / "classify/0.10/done.json").is_file()
    assert not (run_dir(prepared) / "classify/0.30").exists()


@pytest.fixture(scope="module")
def undamaged(labelled: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A configuration that keeps three checkpoints, trained with into run/a; no test changes it."""
    keep = {"save_every": "1 steps", "keep_last": 3, "keep_optimizer": True}
    config = beside(labelled, tmp_path_factory.mktemp("undamaged"), classify={"optim": keep})
    fit(classifier_task(config, 0.1), config.hardware, run_dir(config) / "a", seed=0)
    return config


@pytest.fixture
def three(undamaged: Config, tmp_path: Path) -> list[Path]:
    """The checkpoints in a copy of it, in tmp_path/a, the newest last, which is damaged."""
    shutil.copytree(run_dir(undamaged) / "a", tmp_path / "a")
    folders = finished_folders(tmp_path / "a/checkpoints")
    flip_a_bit(folders[-1] / "model.safetensors")
    return folders


def test_as_many_checkpoints_are_kept_as_are_asked_for(three: list[Path]) -> None:
    assert [folder.name for folder in three] == ["step-00000002", "step-00000003", "step-00000004"]


def test_the_newest_checkpoint_is_the_newest_that_verifies(three: list[Path]) -> None:
    assert manifest_problems(three[-1])
    assert newest_checkpoint(three[-1].parent) == three[-2]


def test_a_damaged_checkpoint_is_made_again_as_it_was(undamaged: Config, three: list[Path], tmp_path: Path) -> None:
    again = fit(classifier_task(undamaged, 0.1), undamaged.hardware, tmp_path / "a", seed=0)
    assert again == three[-1]
    assert weights(again) == weights(run_dir(undamaged) / "a/checkpoints" / again.name)
    assert not manifest_problems(again)


def test_where_no_checkpoint_verifies_nothing_goes_on(three: list[Path]) -> None:
    for folder in three:
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint there verifies"):
        newest_checkpoint(three[-1].parent)


def test_a_half_written_checkpoint_is_none(prepared: Config, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-00000009.tmp").mkdir(parents=True)
    (checkpoints / "step-00000009.tmp/optimizer.pt").write_bytes(b"half")
    (checkpoints / ".LAST.1234.tmp").write_bytes(b"step-")
    assert newest_checkpoint(checkpoints) is None
    fit(classifier_task(prepared, 0.1), prepared.hardware, tmp_path, seed=0)
    assert not list(checkpoints.glob("*.tmp"))
    assert newest_checkpoint(checkpoints) == checkpoints / "step-00000004"


def test_a_disk_too_small_for_the_checkpoints_is_said_before_the_first_step(prepared: Config, tmp_path: Path) -> None:
    task = classifier_task(prepared, 0.1)
    task.optim = task.optim.model_copy(update={"keep_last": 10**9})
    with pytest.raises(RunError, match=r"the checkpoints of a training run: needs about .* GB in .*, found .* GB free"):
        fit(task, prepared.hardware, tmp_path / "a", seed=0)
    assert not list((tmp_path / "a").glob("checkpoints/*"))


def test_a_loss_that_is_not_finite_stops_before_the_step(prepared: Config, tmp_path: Path) -> None:
    task = classifier_task(prepared, 0.1)
    healthy, steps = task.sums, []

    def poisoned(outputs, batch):
        total, parts = healthy(outputs, batch)
        steps.append(1)
        return (total * float("nan") if len(steps) == 3 else total), parts

    task.sums = poisoned
    with pytest.raises(RunError, match="not finite at step 3; images of the ranks concerned") as caught:
        fit(task, prepared.hardware, tmp_path / "a", seed=0)
    keys = [key for record in task.selection.index.shards for key in record.keys]
    assert sum(key in str(caught.value) for key in keys) == 4
    assert all(torch.isfinite(p).all() for p in task.model.parameters())


@dataclass(frozen=True)
class Segmented:
    """A segmenter trained with a quarter of its images held out: its task, what metrics.jsonl says, its folder."""

    task: Task
    lines: list[dict[str, Any]]
    folder: Path

    def scores(self) -> dict[int, float]:
        return {line["step"]: line["heldout_miou"] for line in self.lines if "heldout_miou" in line}


@pytest.fixture(scope="module")
def segmented(labelled: Config, tmp_path_factory: pytest.TempPathFactory) -> Segmented:
    train = {"evaluate_every": "2 steps", "holdout": 0.25}
    config = beside(labelled, tmp_path_factory.mktemp("segmented"), train=train)
    task, folder = segmenter_task(config), run_dir(config)
    fit(task, config.hardware, folder, seed=0)
    return Segmented(task, lines_of(folder), folder)


def test_held_out_images_are_not_trained_on(segmented: Segmented, labelled: Config) -> None:
    pseudo = load_index(pseudo_dir(labelled))
    kept_out = held_out_keys(pseudo, 0.25)
    assert len(kept_out) == 3
    assert set(segmented.task.selection.keys()) == set(pseudo.all().keys()) - kept_out
    assert segmented.task.held_out is not None
    assert set(segmented.task.held_out.keys()) == kept_out


def test_a_segmenter_trains_on_clean_and_noisy_pixels(segmented: Segmented) -> None:
    steps = [line for line in segmented.lines if "loss" in line]
    assert len(steps) == 4
    assert all(0.2 < line["negative_share"] < 0.5 for line in steps)
    assert all(line["positive_share"] + line["negative_share"] == pytest.approx(1) for line in steps)


def test_the_loss_is_the_sum_of_its_parts(segmented: Segmented) -> None:
    for line in [line for line in segmented.lines if "loss" in line]:
        parts = line["positive"] * line["positive_share"] + line["negative"] * line["negative_share"]
        assert line["loss"] == pytest.approx(parts, rel=1e-4)


def test_best_is_the_checkpoint_with_the_highest_score(segmented: Segmented) -> None:
    scores, best = segmented.scores(), read_pointer(segmented.folder / "checkpoints" / "BEST")
    assert set(scores) == {2, 4}
    assert best is not None
    assert scores[int(best.name[5:])] == max(scores.values())


def test_a_checkpoint_knows_its_classes(segmented: Segmented, labelled: Config) -> None:
    last = from_pretrained(segmented.folder / "checkpoints" / "step-00000004")
    assert last.classes == load_index(pseudo_dir(labelled)).classes


def test_a_kill_during_an_evaluation_loses_nothing(tiny, tmp_path: Path, monkeypatch) -> None:
    config = tiny(train={"evaluate_every": "2 steps", "holdout": 0.25})
    prepare(config)
    write_pseudo(config)

    def evaluations(folder: Path) -> tuple[dict[int, float], str]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line[-1] == "}"]
        best = (folder / "checkpoints" / "BEST").read_text()
        return {line["step"]: line["heldout_miou"] for line in lines if "heldout_miou" in line}, best

    whole = fit(segmenter_task(config), config.hardware, tmp_path / "whole", seed=0)
    evaluate, calls = steps.held_out_miou, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) in (1, 3):
            raise SystemError("killed")
        return evaluate(*arguments)

    monkeypatch.setattr(steps, "held_out_miou", killed)
    for step in (2, 4):  # the first evaluation, then the last, after the checkpoint without optimizer state
        with pytest.raises(SystemError):
            fit(segmenter_task(config), config.hardware, tmp_path / "parts", seed=0)
        last = newest_checkpoint(tmp_path / "parts" / "checkpoints")
        assert last is not None
        assert last.name == f"step-{step:08d}"
        with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
            file.write('{"attempt": 0, "st')  # a line cut short
    parts = fit(segmenter_task(config), config.hardware, tmp_path / "parts", seed=0)
    assert weights(parts) == weights(whole)
    assert evaluations(tmp_path / "parts") == evaluations(tmp_path / "whole")
    assert set(evaluations(tmp_path / "parts")[0]) == {2, 4}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_loader_worker_is_one_message(workers: int, prepared: Config, tmp_path: Path) -> None:
    task = classifier_task(prepared, 0.1)
    first = task.selection.index.folder / task.selection.index.shards[0].name
    first.write_bytes(first.read_bytes()[:1000])
    hardware = prepared.hardware.model_copy(update={"loader_workers": workers})
    with pytest.raises(ShardError, match="found 1000 bytes, the index says") as caught:
        fit(task, hardware, tmp_path / "a", seed=0)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("error", [SafetensorError("no space"), RunError("disk full"), OSError(5, "I/O error")])
def test_a_checkpoint_that_cannot_be_written_leaves_nothing(error: Exception, tmp_path: Path, monkeypatch) -> None:
    def fail(weights: dict[str, Tensor], architecture: dict[str, str], folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_weights", fail)
    with pytest.raises(RunError, match="step-00000003: cannot be written"):
        write_checkpoint(tmp_path, {}, {}, None, {"step": 3}, keep_last=1)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def sample(labelled: Config, tmp_path: Path):
    """sample(**train) -> the maps of the first image, as a segmenter with these options is trained on them."""

    def read(**options: Any) -> dict[str, Any]:
        task = segmenter_task(beside(labelled, tmp_path, train=options))
        return task.samples(Sample(0, 0, 0), task.selection.index.key(0, 0))

    return read


def test_a_stricter_threshold_leaves_fewer_clean_pixels_and_the_labels(sample) -> None:
    voted, stricter = sample(), sample(vote_threshold=3)
    assert torch.equal(voted["labels"], stricter["labels"])
    assert 0 < stricter["clean"].sum() < voted["clean"].sum()
    assert not (stricter["clean"] & (stricter["labels"] == 255)).any()


def test_a_threshold_above_the_number_of_seeds_is_refused(sample) -> None:
    with pytest.raises(ConfigError, match=r"allowed: 1\.\.3"):
        sample(vote_threshold=4)


def test_every_labelled_pixel_of_the_truth_is_clean(sample) -> None:
    truth = sample(labels="truth", loss="cross_entropy")
    assert torch.equal(truth["labels"], sample()["labels"])  # the pseudo-labels of this test are the true masks
    assert torch.equal(truth["clean"], truth["labels"] != 255)


def test_cross_entropy_needs_no_complements(sample) -> None:
    assert "complements" not in sample(labels="truth", loss="cross_entropy")


def test_a_complement_is_another_class(sample) -> None:
    voted = sample()
    assert (voted["complements"] != voted["labels"])[voted["labels"] != 255].all()


def test_an_assigned_complement_is_the_label(sample) -> None:
    assigned = sample(complement="assigned")
    assert torch.equal(assigned["complements"], assigned["labels"])


@pytest.fixture(scope="module")
def trained(labelled: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A trained segmenter; no test changes it."""
    config = beside(labelled, tmp_path_factory.mktemp("trained"))
    train(config)
    return config


def test_init_from_takes_weights_only(trained: Config, tmp_path: Path) -> None:
    other, source = beside(trained, tmp_path, train={"optim": {"lr": 1e-12}}), newest(trained, "train")
    train(other, init_from=source)
    start, end = from_pretrained(source).state_dict(), from_pretrained(newest(other, "train")).state_dict()
    assert not [name for name in start if not torch.allclose(start[name], end[name], atol=1e-6)]


def test_init_from_an_absent_folder_is_refused(labelled: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--init-from .*nowhere"):
        train(beside(labelled, tmp_path), init_from=tmp_path / "nowhere")


def test_init_from_a_damaged_checkpoint_is_refused(trained: Config, tmp_path: Path) -> None:
    source = Path(shutil.copytree(newest(trained, "train"), tmp_path / "source"))
    flip_a_bit(source / "model.safetensors")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        train(beside(trained, tmp_path), init_from=source)


def test_metrics_reach_tensorboard_too(tiny, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(hardware={"trackers": ["tensorboard"]})
    prepare(config)
    fit(classifier_task(config, 0.1), config.hardware, tmp_path / "a", seed=0)
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    (folder,) = {
        path.parent for path in (tmp_path / "a").rglob("events.out.tfevents.*") if path.parent.name == "distwsss"
    }
    events = EventAccumulator(str(folder)).Reload()
    found = {event.step: event.value for event in events.Scalars("loss")}
    assert found == {line["step"]: pytest.approx(line["loss"]) for line in lines}


def test_a_tracker_that_is_not_installed_is_an_error(prepared: Config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    hardware = prepared.hardware.model_copy(update={"trackers": ["wandb"]})
    with pytest.raises(ConfigError, match=r"wandb is not installed; run `pip install 'distwsss\[tracking\]'`"):
        fit(classifier_task(prepared, 0.1), hardware, tmp_path / "a", seed=0)


def test_out_of_cuda_memory_names_what_to_change_in_order(prepared: Config, tmp_path: Path) -> None:
    task = classifier_task(prepared, 0.1)

    def too_large(outputs, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    task.sums = too_large
    with pytest.raises(
        RunError, match=r"(?s)asked for 2\.00 GiB.*1\. hardware\.micro_batch: is 4; set 2.*2\. .*3\. "
    ) as caught:
        fit(task, prepared.hardware, tmp_path / "a", seed=0)
    assert caught.value.exit_code == 1
