"""What tests share: builders of small runs, references written independently of the code, and launching of ranks.

conftest imports it first, so that torch, which reads OMP_NUM_THREADS when it is loaded, finds one thread.
"""

from __future__ import annotations

import os

from helpers.paths import REPOSITORY

os.environ.setdefault("OMP_NUM_THREADS", "1")
# what DeepSpeed compiles at its first start, once for all tests
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(REPOSITORY / "build" / "torch_extensions"))
