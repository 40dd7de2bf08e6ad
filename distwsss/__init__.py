"""distwsss: weakly supervised semantic segmentation from image-level labels, from one machine to a cluster.

From Python: `load_config`, `run` and `Segmenter` (docs/python.md). They are loaded when first used: importing this
package loads neither torch nor numpy.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distwsss.config.load import load_config as load_config
    from distwsss.inference.segmenter import Segmenter as Segmenter
    from distwsss.pipeline import run as run

# Threads that wait for each other sleep, where OpenMP would let them spin: beside any other busy process a spinning
# thread keeps the core that the awaited one needs (benchmarks/README.md). Read when torch is first imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["Segmenter", "load_config", "run"]

_HOMES = {
    "load_config": "distwsss.config.load",
    "run": "distwsss.pipeline",
    "Segmenter": "distwsss.inference.segmenter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
