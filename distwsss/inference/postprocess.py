"""Dense CRF over a segmenter's probabilities, in processes of its own. Called by `evaluate` and `inference.segmenter`.

Imports no torch: these functions run in spawned processes, which should start fast and stay small.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import numpy as np

from distwsss.config.crf import CRFParams
from distwsss.errors import RunError
from distwsss.inference.enlarge import enlarged_labels
from distwsss.maths.crf import refine
from distwsss.runtime.pool import spawn_pool


def crf_labels(
    image: np.ndarray,
    probabilities: np.ndarray,
    params: CRFParams,
    classes: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """image uint8[H,W,3], probabilities float[K,H,W] (any float dtype) -> class ids uint8[H,W] after a CRF over K; of
    another `size` those of the marginals brought to it.

    Classes below `params.clip` everywhere in the image are left out. Their unary would be -log(clip) at every pixel, so
    they can never win; what their marginals (about `clip`) would take from the others' messages is below 1e-3.
    `classes` are the ids of the planes where some were left out already (`views.crf_planes`); default 0..K-1.
    """
    present, marginals = _refined(image, probabilities, params)
    ids = present if classes is None else classes[present]
    return ids[enlarged_labels(marginals, size or image.shape[:2])].astype(np.uint8)


def crf_marginals(image: np.ndarray, probabilities: np.ndarray, params: CRFParams) -> np.ndarray:
    """What `crf_labels` takes the labels from, float32[K,H,W]; 0 for the classes that were left out."""
    present, marginals = _refined(image, probabilities, params)
    found = np.zeros(probabilities.shape, np.float32)
    found[present] = marginals
    return found


def _refined(image: np.ndarray, probabilities: np.ndarray, params: CRFParams) -> tuple[np.ndarray, np.ndarray]:
    """The planes that reach `params.clip` somewhere, and their marginals."""
    present = np.flatnonzero(probabilities.max(axis=(1, 2)) >= params.clip)
    kept = probabilities[present].astype(np.float32)
    kept /= kept.sum(axis=0, keepdims=True)
    return present, refine(image, kept[None], params)[0]


@contextmanager
def bounded_pool(workers: int) -> Iterator[Callable[..., None]]:
    """Yields `submit(consume, function, *arguments)`: `consume(function(*arguments))`, the function in a process.

    Results are consumed here, in the order submitted, all of them before the block ends; at most 2 * workers calls are
    in flight, so memory stays bounded. `workers` 0 calls in this process. Raises RunError when a worker is killed.
    """
    if workers == 0:
        yield lambda consume, function, *arguments: consume(function(*arguments))
        return
    pending: deque[tuple[Callable[[Any], None], Future[Any]]] = deque()

    def consume_oldest() -> None:
        consume, future = pending.popleft()
        consume(future.result())

    def submit(consume: Callable[[Any], None], function: Callable[..., Any], *arguments: Any) -> None:
        if len(pending) >= 2 * workers:
            consume_oldest()
        pending.append((consume, pool.submit(function, *arguments)))

    try:
        with spawn_pool(workers) as pool:
            yield submit
            while pending:
                consume_oldest()
    except BrokenProcessPool as error:
        raise RunError("a child process was killed (out of memory?); lower hardware.workers and run again") from error
