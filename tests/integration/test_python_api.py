"""docs/python.md as a notebook user runs it, and the same segmenter from the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from distwsss.data.images import decode_mask
from helpers.command import run_distwsss
from helpers.paths import REPOSITORY
from helpers.small import merged, picture, tiny_tree


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the page's Python ran, and what it printed. The demo is `tiny` here: seconds, not minutes."""
    folder = tmp_path_factory.mktemp("notebook")
    small = merged(tiny_tree(folder), {"name": "demo"})
    del small["paths"], small["evaluate"]  # a checkpoint alone is read by the defaults
    (folder / "tiny.yaml").write_text(yaml.safe_dump(small))
    (folder / "photo.jpg").write_bytes(picture(0, 48, 64))
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(blocks).replace("demo/shapes", "tiny.yaml")
    assert "tiny.yaml" in code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_page_trains_loads_predicts_and_shows(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert "['background', 'boat', 'drum', 'fan', 'kite', 'lamp', 'tent']" in printed
    assert "(48, 64) (7, 48, 64)" in printed
    assert Image.open(folder / "out/photo.overlay.jpg").size[0] == 64
    assert (folder / "runs/demo/report/index.html").is_file()


def test_labels_are_those_of_the_command_line(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    given = {"config": ["--config", "tiny.yaml"], "checkpoint": ["--checkpoint", "runs/demo"]}
    for name, options in given.items():
        done = run_distwsss("predict", *options, "photo.jpg", "-o", name, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert (folder / name / "photo.png").read_bytes() == (folder / "out/photo.png").read_bytes()


def test_a_run_from_python_says_so(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    assert (folder / "runs/demo/command.txt").read_text() == "(from Python, no command line)\n"
    assert '"code": 0' in (folder / "runs/demo/exit.json").read_text()


def test_a_checkpoint_alone_is_evaluated_on_named_data(trained: tuple[Path, str], tmp_path: Path) -> None:
    """Elsewhere, without its run's configuration: the data are named by hand."""
    folder, _ = trained
    checkpoint = ["--checkpoint", folder / "runs/demo", "--set", "hardware.workers=0"]
    data = ["--set", "data.dataset=shapes", "--set", "data.shapes={train: 12, val: 4, size: 64}"]
    alone = run_distwsss("evaluate", *checkpoint, *data, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    with_run = run_distwsss("evaluate", "--config", "tiny.yaml", cwd=folder)
    assert with_run.returncode == 0, with_run.stderr
    assert alone.stdout.endswith(with_run.stdout[with_run.stdout.index("IoU (%)") :])


def test_a_checkpoint_alone_says_what_is_missing(trained: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = trained
    no_data = run_distwsss("evaluate", "--checkpoint", folder / "runs/demo", cwd=tmp_path)
    assert no_data.returncode == 2
    assert "`data.dataset`: missing" in no_data.stderr
    neither = run_distwsss("predict", "x.jpg", "-o", "out", cwd=tmp_path)
    assert neither.returncode == 2
    assert "neither --config nor --checkpoint" in neither.stderr


def test_the_saved_png_holds_the_labels(trained: tuple[Path, str]) -> None:
    from distwsss import Segmenter

    folder, _ = trained
    segmenter = Segmenter.from_pretrained(folder / "runs/demo/train/checkpoints/LAST")
    for image in (folder / "photo.jpg", Image.open(folder / "photo.jpg"), np.asarray(Image.open(folder / "photo.jpg"))):
        prediction = segmenter.predict(image)
        assert np.array_equal(prediction.labels, decode_mask((folder / "out/photo.png").read_bytes(), "photo"))
        assert np.array_equal(prediction.labels, prediction.probabilities.argmax(0))
