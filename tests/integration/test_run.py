"""The whole line through the command line, on generated data: what it leaves, skips, refuses and returns."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from distwsss.cli import main
from distwsss.config.load import check_config
from distwsss.data.scoring import read_image_counts
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.runtime.layout import counts_file, images_dir
from helpers.paths import only
from helpers.small import merged, snapshot, tiny_tree


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    tree = merged(tiny_tree(folder), {"evaluate": {"scales": [1.0]}, "train": {"evaluate_every": "50%"}})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, "-m", "distwsss", "run", "--config", str(folder / "tiny.yaml")],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_run_leaves_what_design_names(finished: Path) -> None:
    run, shards = finished / "run", finished / "shards"
    for name in ("config.yaml", "command.txt", "env.json", "exit.json", "seeds/quality.json", "evaluate/val.json",
                 "report/index.html", "classify/0.10/metrics.jsonl", "classify/0.30/checkpoints/LAST",
                 "train/metrics.jsonl", "train/checkpoints/LAST", "train/checkpoints/BEST"):  # fmt: skip
        assert (run / name).is_file(), name
    for folder in (shards / "images/train", shards / "images/val", shards / "seeds", only(shards / "pseudo")):
        assert (folder / "index.json").is_file(), folder
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    printed = (finished / "stdout").read_text()
    assert "mIoU" in printed
    assert str((run / "report/index.html").resolve()) in printed


def test_rerun_skips_every_stage_and_touches_nothing(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = [*finished.rglob("*.tar"), *finished.rglob("*.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in results}
    assert before
    assert main(["run", "--config", str(finished / "tiny.yaml")]) == 0
    assert len(re.findall("skipped", capfd.readouterr().err)) >= 7
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_verify_finds_a_flipped_bit_and_says_where(finished: Path, tmp_path: Path, capfd) -> None:
    assert main(["verify", str(finished / "shards")]) == 0
    shutil.copytree(finished / "shards", tmp_path / "shards")
    victim = only(tmp_path / "shards/pseudo") / "pseudo-00001.tar"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(bytes(data))
    assert main(["verify", str(tmp_path / "shards")]) == 3
    assert "pseudo-00001.tar" in capfd.readouterr().err


def test_predict_writes_palette_and_overlay(finished: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.b.jpg", "sub/c.png"):
        Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(tmp_path / "in" / name)
    arguments = ["predict", "--config", str(finished / "tiny.yaml"), str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    masks = sorted((tmp_path / "out").rglob("*.png"))
    assert len(masks) == 2
    assert len(list((tmp_path / "out").rglob("*.overlay.jpg"))) == 2
    for path in masks:
        mask = Image.open(path)
        assert (mask.mode, mask.size) == ("P", (56, 40))


def test_another_vote_needs_no_new_seeds_and_mixing_is_refused(finished: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(finished / "shards", tmp_path / "shards")
    arguments = ["seeds", "--config", str(finished / "tiny.yaml"), "--set", f"paths.shards={tmp_path}/shards"]
    assert main([*arguments, "--set", "seeds.alpha=2"]) == 2
    assert "seeds.alpha: was 8.0, now 2" in capfd.readouterr().err
    first = snapshot(tmp_path / "shards")
    seeds = (tmp_path / "shards/seeds/seeds-00000.tar").stat().st_mtime_ns
    assert main([*arguments, "--set", "seeds.threshold=2"]) == 0
    assert (tmp_path / "shards/seeds/seeds-00000.tar").stat().st_mtime_ns == seeds
    both = snapshot(tmp_path / "shards")
    assert first.items() < both.items()
    assert {Path(name).parts[0] for name in both.keys() - first.keys()} == {"pseudo"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--config", "missing.yaml"], 2, "missing.yaml"),
        (["train", "--set", "train.optim.lr=-1"], 2, "train.optim.lr"),
        (["prepare", "--set", "data.dataset=voc", "--set", "data.root=/nonexistent"], 3, "/nonexistent"),
        (["classify", "--set", "paths.shards=/nonexistent/shards"], 3, "distwsss prepare"),
        (["evaluate", "--set", "paths.run={tmp}/empty"], 4, "distwsss train"),
        (["seeds", "--set", "paths.run={tmp}/empty", "--set", "paths.shards={tmp}/shards"], 3, "distwsss prepare"),
        (["verify", "/nonexistent"], 3, "/nonexistent"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_users_mistake_is_one_message_and_a_code(
    arguments: list[str], code: int, message: str, finished: Path, tmp_path: Path, capfd
) -> None:
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    if arguments[0] != "verify" and "--config" not in arguments:
        arguments += ["--config", str(finished / "tiny.yaml")]
    if "--set" in arguments and not any("paths.run" in argument for argument in arguments):
        arguments += ["--set", f"paths.run={tmp_path}/run"]
    assert main(arguments) == code
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_truth_reaches_no_training(finished: Path, tmp_path: Path) -> None:
    """The same run from image shards without truth members: the same weights and the same shards, byte for byte.

    Without masks nothing is held out of the segmenter's training; its twin holds out nothing.
    """
    twin = ["train", "--config", str(finished / "tiny.yaml"), "--set", "train.holdout=0.0"]
    assert main([*twin, "--set", f"paths.run={tmp_path}/twin"]) == 0
    config = check_config(merged(tiny_tree(finished), {}))
    bare = tmp_path / "shards"
    for split in ("train", "val"):
        index, records = load_index(images_dir(config, split)), []
        for shard, record in enumerate(index.shards):
            samples = [(key, dict(members)) for key, members in iter_shard(index, shard, ["jpg", "json"])]
            records.append(write_shard(bare / "images" / split / record.name, samples))
        extra = {**index.extra, "truth": None}
        write_index(bare / "images" / split, records, index.parameters, index.classes, "images", extra)
    tree = merged(tiny_tree(tmp_path), {"paths": {"shards": str(bare)}, "train": {"evaluate_every": "50%"}})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    for verb in ("classify", "seeds", "stats", "train", "evaluate", "report"):
        assert main([verb, "--config", str(tmp_path / "tiny.yaml")]) == 0, verb
    compared = 0
    patterns = [("run", "**/step-*/model.safetensors"), ("shards", "[sp]*/**/*.tar"), ("shards", "[sp]*/**/index.json")]
    for root, pattern in patterns:
        for path in sorted((tmp_path / root).glob(pattern)):
            below = path.relative_to(tmp_path / root)
            twin_of = tmp_path / "twin" if below.parts[0] == "train" else finished / root
            assert path.read_bytes() == (twin_of / below).read_bytes(), path
            compared += 1
    assert compared >= 3 + 6 + 2
    assert not (tmp_path / "run/train/checkpoints/BEST").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves_and_returns_130(number: int, finished: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "distwsss", "classify", "--config", str(finished / "tiny.yaml"),
        "--set", f"paths.run={tmp_path}/run", "--set", "classify.optim.duration=100000 steps",
        "--set", "hardware.loader_workers=1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics = tmp_path / "run/classify/0.10/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "run the same command to go on" in error
    assert (tmp_path / "run/classify/0.10/checkpoints/LAST").is_file()
    assert json.loads((tmp_path / "run/exit.json").read_text())["code"] == 130


def test_a_second_process_on_the_same_run_is_told_it_is_locked(finished: Path, capfd) -> None:
    from filelock import FileLock

    with FileLock(finished / "run/lock"):
        assert main(["report", "--config", str(finished / "tiny.yaml")]) == 1
    assert "locked" in capfd.readouterr().err


def test_help_teaches_every_verb(capfd) -> None:
    stages = ("prepare", "saliency", "classify", "seeds", "stats", "train", "evaluate", "report")
    for verb in ("run", *stages, "predict", "verify", "ablate"):
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0
    assert "--multi-scale" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_scores_every_image_once(distwsss, finished: Path, tmp_path: Path, ranks: int) -> None:
    """Four images on three ranks: two of them look at one twice. Another list is prepared by rank 0 for all."""
    config = ["--config", finished / "tiny.yaml"]
    other = ["--set", "data.shapes.val=5", "--set", f"paths.run={tmp_path / 'run'}", "--checkpoint", finished / "run"]
    alone = json.loads((finished / "run/evaluate/val.json").read_text())
    done = distwsss("evaluate", *config, "--checkpoint", finished / "run", ranks=ranks)
    assert done.returncode == 0, done.stderr
    (written,) = (finished / "run/evaluate").glob("val-step-*.json")
    assert json.loads(written.read_text())["confusion"] == alone["confusion"]
    counts = [read_image_counts(counts_file(path)) for path in (finished / "run/evaluate/val.json", written)]
    assert counts[0].keys == counts[1].keys
    assert all((counts[0].columns[name] == counts[1].columns[name]).all() for name in alone["miou"])
    written.unlink()
    done = distwsss("evaluate", *config, *other, ranks=ranks)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "run/evaluate").glob("val-*-step-*.json")
    assert json.loads(written.read_text())["scored"] == 5


@pytest.mark.parametrize("arguments", ["config show --describe", "stats --config tiny.yaml"])
def test_a_reader_that_has_gone_is_no_error(finished: Path, arguments: str) -> None:
    """`| head -1`: no traceback, and what writes results is done all the same."""
    shell = f"{sys.executable} -m distwsss {arguments} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=finished, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert "rror" not in done.stderr
    assert "Broken" not in done.stderr


def test_no_stdout_is_no_error(finished: Path) -> None:
    shell = f"{sys.executable} -m distwsss config show --config tiny.yaml >&-"
    done = subprocess.run(["bash", "-c", shell], cwd=finished, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_labels_without_foreground_end_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its second attempt too, which finds `seeds` complete; nothing downstream is made."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(merged(tiny_tree(tmp_path), {"seeds": {"alpha": 1e-9, "normalise": "sum"}})))
    for _ in range(2):
        assert main(["run", "--config", str(path)]) == 1
        said = capfd.readouterr().err
        assert "none of 12 tagged photographs has a pixel of any class" in said
        assert "plan:" in said
    assert json.loads((tmp_path / "run/exit.json").read_text())["code"] == 1
    assert list(json.loads((tmp_path / "run/times.json").read_text())) == ["classify", "prepare"]
    assert not (tmp_path / "run/train").exists()
