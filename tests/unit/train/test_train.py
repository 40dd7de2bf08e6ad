"""The training loop in one process: resume, damage, refusal, finiteness, and what it must not depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from distwsss.config import Config
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.errors import CheckpointError, ConfigError, RunError, ShardError
from distwsss.models.export import from_pretrained
from distwsss.runtime.artifacts import manifest_problems, read_pointer
from distwsss.runtime.layout import pseudo_dir, run_dir
from distwsss.train import checkpoint, loop, steps
from distwsss.train.checkpoint import finished_folders, newest_checkpoint, write_checkpoint
from distwsss.train.loop import fit
from distwsss.train.stages import classify, train
from distwsss.train.task import classifier_task, held_out_keys, segmenter_task
from helpers.dist_run import make_pseudo, weights


def stopping_at(look: int) -> type[loop.StopSignal]:
    """A StopSignal that is asked to stop at the loop's `look`-th look at it: one a step, one after the end."""

    class Stopping(loop.StopSignal):
        looks = 0

        @property
        def asked(self) -> bool:
            Stopping.looks += 1
            return Stopping.looks == look

        @asked.setter
        def asked(self, value: bool) -> None:
            pass

    return Stopping


def test_interrupted_and_resumed_equals_uninterrupted(prepared: Config, tmp_path: Path, monkeypatch) -> None:
    whole = fit(classifier_task(prepared, 0.3), prepared.hardware, tmp_path / "whole", seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopSignal", stopping_at(3))
        with pytest.raises(KeyboardInterrupt):
            fit(classifier_task(prepared, 0.3), prepared.hardware, tmp_path / "parts", seed=0)
    parts = tmp_path / "parts" / "checkpoints"
    assert [folder.name for folder in finished_folders(parts)][-1] == "step-00000002"
    assert (parts / "step-00000002" / "optimizer.pt").is_file()
    resumed = fit(classifier_task(prepared, 0.3), prepared.hardware, tmp_path / "parts", seed=0)
    assert weights(resumed) == weights(whole)
    assert not list(parts.rglob("optimizer.pt"))
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["attempt"], line["step"]) for line in lines] == [(0, 1), (0, 2), (1, 3), (1, 4)]
    reference = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [line["loss"] for line in reference]


def test_loader_workers_do_not_change_the_result(prepared: Config, tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        hardware = prepared.hardware.model_copy(update={"loader_workers": workers})
        folder = tmp_path / str(workers)
        results.append(weights(fit(classifier_task(prepared, 0.1), hardware, folder, seed=0)))
    assert results[0] == results[1]


def test_stages_skip_refuse_and_resume_modes(prepared: Config, tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        classify(prepared, resume="must")
    classify(prepared)
    last = read_pointer(run_dir(prepared) / "classify/0.10/checkpoints/LAST")
    assert last is not None
    before = (last / "model.safetensors").stat().st_mtime_ns
    classify(prepared)
    assert (last / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"classify\.optim\.lr: was 0\.01, now 0\.02"):
        classify(tiny(classify={"optim": {"lr": 0.02}}))
    with pytest.raises(ConfigError, match="already holds a run"):
        classify(prepared, resume="never")
    # killed between its last checkpoint and done.json: nothing is left to train
    done = run_dir(prepared) / "classify/0.10/done.json"
    record = done.read_bytes()
    done.unlink()
    classify(prepared)
    assert done.read_bytes() == record
    assert (last / "model.safetensors").stat().st_mtime_ns == before
    # refused, it must not leave its configuration beside the other's results
    written = run_dir(prepared) / "classify/0.10/config.yaml"
    assert "lr: 0.01\n" in written.read_text()
    done.unlink()
    with pytest.raises(ConfigError, match="was made with other parameters"):
        classify(tiny(classify={"optim": {"lr": 0.02}}))
    assert "lr: 0.01\n" in written.read_text()
    # from another folder: there is nothing to go on with
    shutil.rmtree(run_dir(prepared) / "classify/0.30")
    with pytest.raises(CheckpointError, match="--init-from"):
        fit(classifier_task(prepared, 0.1), prepared.hardware, tmp_path / "new", seed=0, resume=str(last))


def test_a_stop_after_the_last_step_completes_the_run_and_stops_what_follows(prepared: Config, monkeypatch) -> None:
    monkeypatch.setattr(loop, "StopSignal", stopping_at(5))  # four steps
    with pytest.raises(KeyboardInterrupt):
        classify(prepared)
    assert (run_dir(prepared) / "classify/0.10/done.json").is_file()
    assert not (run_dir(prepared) / "classify/0.30").exists()


def test_damaged_newest_falls_back_and_all_damaged_refuses(tiny, tmp_path: Path, caplog) -> None:
    config = tiny(classify={"optim": {"save_every": "1 steps", "keep_last": 3, "keep_optimizer": True}})
    prepare(config)
    reference = weights(fit(classifier_task(config, 0.1), config.hardware, tmp_path / "a", seed=0))
    folders = finished_folders(tmp_path / "a" / "checkpoints")
    assert [folder.name for folder in folders] == ["step-00000002", "step-00000003", "step-00000004"]
    data = bytearray((folders[-1] / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folders[-1] / "model.safetensors").write_bytes(bytes(data))
    assert manifest_problems(folders[-1])
    assert newest_checkpoint(tmp_path / "a" / "checkpoints") == folders[-2]
    again = fit(classifier_task(config, 0.1), config.hardware, tmp_path / "a", seed=0)
    assert weights(again) == reference
    assert not manifest_problems(again)
    for folder in finished_folders(tmp_path / "a" / "checkpoints"):
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint there verifies"):
        newest_checkpoint(tmp_path / "a" / "checkpoints")


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


def test_segmenter_trains_on_clean_and_noisy_and_drops_held_out_images(tiny, tmp_path: Path) -> None:
    config = tiny(train={"evaluate_every": "2 steps", "holdout": 0.25}, seeds={"vote_on": None})
    prepare(config)
    make_pseudo(config)
    task = segmenter_task(config)
    pseudo = load_index(pseudo_dir(config))
    kept_out = held_out_keys(pseudo, 0.25)
    assert len(kept_out) == 3
    assert set(task.selection.keys()) == set(pseudo.all().keys()) - kept_out
    assert task.held_out is not None
    assert set(task.held_out.keys()) == kept_out
    last = fit(task, config.hardware, tmp_path / "a", seed=0)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert all(0.2 < line["negative_share"] < 0.5 for line in steps)
    assert all(line["positive_share"] + line["negative_share"] == pytest.approx(1) for line in steps)
    for line in steps:
        parts = line["positive"] * line["positive_share"] + line["negative"] * line["negative_share"]
        assert line["loss"] == pytest.approx(parts, rel=1e-4)
    scores = {line["step"]: line["heldout_miou"] for line in lines if "heldout_miou" in line}
    assert set(scores) == {2, 4}
    best = read_pointer(tmp_path / "a" / "checkpoints" / "BEST")
    assert best is not None
    assert scores[int(best.name[5:])] == max(scores.values())
    assert from_pretrained(last).classes == pseudo.classes


def test_a_kill_during_an_evaluation_loses_nothing(tiny, tmp_path: Path, monkeypatch) -> None:
    config = tiny(train={"evaluate_every": "2 steps", "holdout": 0.25})
    prepare(config)
    make_pseudo(config)

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


def test_threshold_labels_and_loss_choices(tiny, tmp_path: Path) -> None:
    base = tiny()
    prepare(base)
    make_pseudo(base)

    def first_batch(**options):
        task = segmenter_task(tiny(train=options))
        from distwsss.data.batches.plan import Sample

        sample = Sample(0, 0, 0)
        return task.samples(sample, task.selection.index.key(0, 0))

    voted, stricter = first_batch(), first_batch(vote_threshold=3)
    assert torch.equal(voted["labels"], stricter["labels"])
    assert 0 < stricter["clean"].sum() < voted["clean"].sum()
    assert not (stricter["clean"] & (stricter["labels"] == 255)).any()
    truth = first_batch(labels="truth", loss="cross_entropy")
    assert torch.equal(truth["labels"], voted["labels"])  # the pseudo-labels of this test are the true masks
    assert torch.equal(truth["clean"], truth["labels"] != 255)
    assert "complements" not in truth
    valid = voted["labels"] != 255
    assert (voted["complements"] != voted["labels"])[valid].all()
    assigned = first_batch(complement="assigned")
    assert torch.equal(assigned["complements"], assigned["labels"])
    with pytest.raises(ConfigError, match=r"allowed: 1\.\.3"):
        segmenter_task(tiny(train={"vote_threshold": 4}))


def test_init_from_takes_weights_only(prepared: Config, tiny, tmp_path: Path) -> None:
    make_pseudo(prepared)
    train(prepared)
    source = read_pointer(run_dir(prepared) / "train/checkpoints/LAST")
    assert source is not None
    other = tiny(paths={"run": str(tmp_path / "other")}, train={"optim": {"lr": 1e-12}})
    train(other, init_from=source)
    result = read_pointer(run_dir(other) / "train/checkpoints/LAST")
    start, end = from_pretrained(source).state_dict(), from_pretrained(result).state_dict()
    assert not [name for name in start if not torch.allclose(start[name], end[name], atol=1e-6)]
    with pytest.raises(CheckpointError, match=r"--init-from .*nowhere"):
        train(other, init_from=tmp_path / "nowhere")
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        train(other, init_from=source)


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
