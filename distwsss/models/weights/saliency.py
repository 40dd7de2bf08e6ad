"""Saliency networks by name: where their files are to be had, and where they are looked for here. Called by `saliency`,
`data.saliency` and `planning`.

A file lies in our cache of weights (`published.cache_folder`), fetched once as those of backbones are. All of them were
trained with masks of salient objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distwsss.errors import CheckpointError, relative_to
from distwsss.models.weights.download import asked, download
from distwsss.models.weights.published import cache_folder
from distwsss.runtime.artifacts import sha256_file


@dataclass(frozen=True)
class SaliencyNetwork:
    """A published ONNX file. `bytes`: its size."""

    address: str
    bytes: int
    sha256: str


# the names are those of `config.saliency.NETWORKS`
TABLE: dict[str, SaliencyNetwork] = {
    "u2netp": SaliencyNetwork(  # U2-Net-p, Apache-2.0, trained on DUTS-TR; the file that rembg fetches
        "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2netp.onnx",
        4_574_861,
        "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
    ),
}


def network_path(model: str) -> Path:
    """Where the file of `saliency.model` is, or would be: a name's in our cache, a path's as it says."""
    return cache_folder(model) / f"{model}.onnx" if model in TABLE else Path(model).absolute()


def network_file(model: str) -> Path:
    """The file of `saliency.model`, fetched once where a name's is not here. Raises CheckpointError with address, size
    and the path where it is looked for, and for a file of another sha256."""
    path = network_path(model)
    if model not in TABLE:
        if not path.is_file():
            raise CheckpointError(_no_file(model))
        return path
    if not path.is_file():
        found, reason = download({TABLE[model].address: path})
        if found is None:
            raise CheckpointError(missing(model, reason))
    if (digest := sha256_file(path)) != TABLE[model].sha256:
        raise CheckpointError(
            f"{path}: its sha256 is {digest}; allowed: {TABLE[model].sha256}; remove it and start again"
        )
    return path


def _no_file(model: str) -> str:
    return (
        f"saliency.model: found no file {network_path(model)}{relative_to(model)}; allowed: an ONNX file, or one of "
        f"{', '.join(TABLE)}"
    )


def missing(model: str, reason: str = "") -> str:
    """What to say where a named network's file is not here."""
    entry = TABLE[model]
    return (
        f"saliency.model: the file of {model} is not here{f' ({reason})' if reason else ''}. It is to be had from "
        f"{entry.address}, {entry.bytes:,} bytes, and is looked for as {network_path(model)} (DISTWSSS_CACHE names "
        "another folder). Put it there, or give a file as saliency.model"
    )


def unobtainable(model: str) -> str | None:
    """What to say where the file is not here and no server gives it; None where all is well. Downloads nothing."""
    if network_path(model).is_file():
        return None
    if model not in TABLE:
        return _no_file(model)
    reason = asked([TABLE[model].address])
    return missing(model, reason) if reason else None
