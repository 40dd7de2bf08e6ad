"""Random generators that depend on names only (seed, epoch, key, ...), never on worker, rank or loop state."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(*parts: int | str | float) -> int:
    """63-bit seed from the parts, by sha256: equal parts give equal seeds on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(*parts: int | str | float) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=derive_seed(*parts)))


def torch_generator(*parts: int | str | float) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))


def permutation(count: int, *parts: int | str | float) -> np.ndarray:
    """A permutation of range(count) from Philox's raw stream, which numpy keeps equal across releases."""
    return np.argsort(np.random.Philox(key=derive_seed(*parts)).random_raw(count), kind="stable")
