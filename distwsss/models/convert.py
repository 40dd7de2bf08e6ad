"""`distwsss convert-weights`: any file of weights as one safetensors file, under our names. Called by `pipeline`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distwsss.config.networks import FROM_FILE, BackboneSection
from distwsss.config.stages import TrainSection
from distwsss.errors import ConfigError
from distwsss.models.backbones.build import Backbone
from distwsss.models.segmenters import build_segmenter
from distwsss.models.weights.backbone import Tensors, fitted
from distwsss.models.weights.files import read_weights, weights_file
from distwsss.runtime.artifacts import sha256_file, write_bytes

SUFFIX = ".safetensors"
WITH_SEGMENTER = {"mit_": "segformer", "swin_": "mask2former"}  # backbones that only their segmenters build


def convert_weights(source: Path, output: Path, backbone: str | None = None) -> str:
    """Write `source` to `output`; returns what a user wants to know about it.

    With `backbone` the names become that backbone's, classification layers are left out, and the rest must fit it
    exactly; without, names stay. The metadata say where the weights come from: file name, its format and sha256; equal
    input gives equal bytes. Raises CheckpointError as `read_weights` and `weights.fitted`, ConfigError for an `output`
    that is no safetensors file, is the source, or is a file that this did not write.
    """
    if output.suffix != SUFFIX or output.resolve() == source.resolve():
        raise ConfigError(f"-o {output}: allowed: another file than the source, named *{SUFFIX}")
    if os.path.lexists(output) and not _is_converted(output):
        raise ConfigError(f"-o {output}: is there, and convert-weights did not write it; name another, or move it away")
    path, rest = weights_file(source), ""
    if backbone is None:
        tensors = read_weights(path)
    else:
        wanted = _state(backbone)
        found, rest = fitted(wanted, path, backbone)
        tensors = {name: tensor.to(wanted[name].dtype) for name, tensor in found.items() if not tensor.is_meta}
    origin = {"origin": source.name, "sha256": sha256_file(path), "source_format": path.suffix}
    metadata = {"format": "pt", **origin, **({"backbone": backbone} if backbone else {})}
    packed = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_bytes(output, _ordered(save(packed, metadata)))
    return _summary(output, tensors, metadata, rest)


def _is_converted(path: Path) -> bool:
    """Whether this module wrote the file: only it says where the weights were read from."""
    try:
        with safe_open(path, "pt") as file:
            return {"origin", "sha256", "source_format"} <= (file.metadata() or {}).keys()
    except (OSError, SafetensorError):
        return False


def _state(backbone: str) -> Tensors:
    """Names, shapes and dtypes of a backbone's weights, without values."""
    segmenter = next((model for prefix, model in WITH_SEGMENTER.items() if backbone.startswith(prefix)), None)
    stride = 8 if backbone in ("tiny", *FROM_FILE) else 32
    section = BackboneSection.model_validate({"name": backbone, "pretrained": False, "output_stride": stride})
    with torch.device("meta"):
        if segmenter:
            train = TrainSection.model_validate({"model": segmenter, "backbone": section})
            return build_segmenter(train, ["background", "other"]).backbone.state_dict()
        net = Backbone(section).net
        return getattr(net, "net", net).state_dict()


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order: the library writes them in any."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _summary(output: Path, tensors: dict[str, Tensor], metadata: dict[str, str], rest: str) -> str:
    values = sum(tensor.numel() for tensor in tensors.values())
    lines = [
        f"{output}: {len(tensors)} tensors, {values:,} values{rest}",
        f"from {metadata['origin']}, sha256 {metadata['sha256']}",
    ]
    if "backbone" in metadata:
        lines.append(f"to use it: backbone.name: {metadata['backbone']}, backbone.weights: {output}")
    return "\n".join(lines)
