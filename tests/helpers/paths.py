"""Where the repository is, and the real photographs beside it, which may be absent."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
VOC_MINI = Path(os.environ.get("DISTWSSS_DATA", REPOSITORY.parent / "shared" / "data" / "voc_mini"))
U2NETP = VOC_MINI.parent / "models" / "u2netp.onnx"


def only(folder: Path) -> Path:
    """The one folder in `folder`: of pseudo-labels that of the vote, whose name holds a digest."""
    (found,) = folder.iterdir()
    return found
