"""A small ablation as the command runs it: what is missing, once; what is killed goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml

from helpers.command import run_distwsss
from helpers.small import TINY_OPTIM, write_config

VARIANTS = {"hybrid": {"train.loss": "hybrid"}, "positive": {"train.loss": "positive"}}
ROWS = ["hybrid/0", "hybrid/1", "positive/0", "positive/1"]


def write_ablation(folder: Path) -> Path:
    """own.yaml on tiny.yaml: two variants, two random seeds, two steps of training each."""
    optim = {**TINY_OPTIM, "duration": "2 steps"}
    write_config(
        folder,
        paths={"run": None, "shards": None},
        data={"shapes": {"train": 8, "val": 3}},
        classify={"dropouts": [0.1], "optim": optim},
        seeds={"threshold": 2},
        train={"optim": optim},
        evaluate={"scales": [1.0], "crf": None},
    )
    tree = {"base": "tiny.yaml", "random_seeds": {"values": [0, 1]}, "baseline": "positive", "variants": VARIANTS}
    (folder / "own.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the ablation was run, and what it printed."""
    folder = write_ablation(tmp_path_factory.mktemp("ablation"))
    finished = run_distwsss("ablate", "own.yaml", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder, finished.stdout


def told(folder: Path, row: str) -> str:
    return (folder / "runs/own" / f"{row}.log").read_text()


def times(folder: Path) -> dict[str, int]:
    files = [*folder.rglob("*.tar"), *folder.rglob("*.safetensors"), *folder.rglob("*.log"), *folder.rglob("val.json")]
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_the_table_is_of_the_runs(done: tuple[Path, str]) -> None:
    folder, printed = done
    table = json.loads((folder / "runs/own/table.json").read_text())
    assert (table["split"], table["images"], table["scored"], len(table["ids"])) == ("val", 3, 4, 3)
    for line in table["variants"]:
        for seed, value in line["miou"].items():
            record = json.loads((folder / f"runs/own/{line['name']}/{seed}/evaluate/val.json").read_text())
            assert record["miou"]["single"] == value
        assert line["mean"] == pytest.approx(sum(line["miou"].values()) / 2)
        row = next(row for row in printed.splitlines() if row.startswith(line["name"]))
        assert f"2 of 2  {100 * line['mean']:.2f}" in " ".join(row.split("   "))
    assert "scored in this ablation: val, 4 times" in printed
    assert (folder / "runs/own/table.tex").is_file()
    assert (folder / "runs/own/table.csv").is_file()


def test_random_seeds_make_other_segmenters_on_the_same_labels(done: tuple[Path, str]) -> None:
    folder, _ = done
    networks = {path.read_bytes() for path in folder.glob("runs/own/*/*/train/checkpoints/*/model.safetensors")}
    assert len(networks) == 4


def test_equal_stages_are_run_once(done: tuple[Path, str]) -> None:
    folder, _ = done
    for stage in ("prepare", "classify 0.10", "seeds"):
        skipped = [f"{stage}: complete, skipped" in told(folder, row).replace(" train", "") for row in ROWS]
        assert skipped == [False, True, True, True], stage
    assert [path.name for path in (folder / "shards").iterdir()] == ["tiny"]


def test_a_second_call_runs_nothing(done: tuple[Path, str]) -> None:
    folder, printed = done
    before = times(folder)
    again = run_distwsss("ablate", "own.yaml", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert again.stdout == printed
    assert [line for line in again.stderr.splitlines() if "complete, skipped" in line] == [
        f"ablate: {row}: complete, skipped" for row in ROWS
    ]
    assert times(folder) == before


@pytest.mark.slow
def test_what_was_killed_goes_on(done: tuple[Path, str]) -> None:
    """`ablate` is killed, whose child goes on and is waited for; then a child while it trains, which the same command
    ends later."""
    folder, _ = done
    command = ["ablate", "own.yaml", "--only", "hybrid", "--output", "other"]
    killed = run_distwsss(*command, cwd=folder, fault="ablate-started")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    failed = run_distwsss(*command, cwd=folder, fault="before-publish:step-00000002")
    assert failed.returncode == 1
    assert "hybrid/1: ended by SIGKILL (out of memory?)" in failed.stderr
    finished = run_distwsss(*command, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    first, second = (json.loads((folder / name / "table.json").read_text()) for name in ("runs/own", "other"))
    assert second["variants"][0]["miou"] == first["variants"][0]["miou"]
    assert second["variants"][1]["state"] == "not run"
