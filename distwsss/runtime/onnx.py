"""Networks in ONNX files; the only file that imports onnxruntime, and only when a network is opened. Called by
`saliency.network`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distwsss.errors import CheckpointError, ConfigError

EXTRA = "distwsss[saliency]"
ERRORS_ONLY = 3  # of onnxruntime's levels: its warnings are about how networks were exported


@dataclass(frozen=True)
class OnnxNetwork:
    """A network with one picture as its input. height, width: of that picture, which the file fixes."""

    session: Any
    input: str
    height: int
    width: int

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """float32[1,3,height,width] -> its first output, of whatever shape."""
        names = [self.session.get_outputs()[0].name]
        return np.asarray(self.session.run(names, {self.input: pixels})[0])


def open_network(path: Path, threads: int = 1) -> OnnxNetwork:
    """The network of an ONNX file, on the CPU. threads: within an operation; their number may change its sums.

    Raises ConfigError without onnxruntime, CheckpointError for a file that is no such network: it must take one input,
    float32 [1 or any, 3, H, W] of fixed H and W.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"{path}: needs onnxruntime, which is not installed; run `pip install \"{EXTRA}\"`"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions, one for each status
        said = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a network that onnxruntime can read ({said}); give another file") from error
    return OnnxNetwork(session, *_only_input(session, path))


def _only_input(session: Any, path: Path) -> tuple[str, int, int]:
    """Name, height and width of the picture that a network takes."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs)
        raise CheckpointError(f"{path}: found {len(inputs)} inputs ({names}); allowed: one, a picture")
    found = f"{path}: input `{inputs[0].name}`: found {inputs[0].type} {inputs[0].shape}"
    shape = inputs[0].shape
    batch = shape[0] if len(shape) == 4 else 0
    if inputs[0].type != "tensor(float)" or shape[1:2] != [3] or (isinstance(batch, int) and batch != 1):
        raise CheckpointError(f"{found}; allowed: tensor(float) [1, 3, H, W]")
    if not all(isinstance(side, int) for side in shape[2:]):
        raise CheckpointError(
            f"{found}, whose size is dynamic, so that the size it was trained for is not known; allowed: fixed H and "
            "W; export it with the size that it was trained for"
        )
    return inputs[0].name, shape[2], shape[3]
