"""A whole network's published weights to start from, `train.weights`; which file a run starts from. Called by
`segmenters` and `train.task`."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from distwsss.config.networks import BackboneSection
from distwsss.errors import CheckpointError
from distwsss.models.weights.backbone import Rename, beyond_network, left_out, load_exactly
from distwsss.models.weights.caffe_names import network_names
from distwsss.models.weights.files import read_weights, weights_file
from distwsss.models.weights.published import TABLE, fetch
from distwsss.models.weights.transformer_names import mask2former_tensors, segformer_tensors
from distwsss.runtime.artifacts import sha256_file
from distwsss.runtime.progress import log

# kind of segmenter -> its tensors from those of the files users have; what `save_pretrained` wrote stays as it is
NETWORKS: dict[str, Rename] = {
    "deeplab_classic": network_names,
    "segformer": segformer_tensors,
    "mask2former": mask2former_tensors,
}
# kind -> what the names of its classification layer start with
CLASSIFIERS = {
    "deeplab": ("head.branches.", "head.6."),  # ASPP's, LargeFOV's
    "deeplab_classic": "head.branches.",
    "deeplab_codebase": "head.classifier.",
    "segformer": "head.classifier.",
    "mask2former": "class_predictor.",
}


def load_network(model: nn.Module, path: str | Path, kind: str) -> None:
    """Load the file or folder at `path` into a segmenter of `kind`, all or nothing.

    A classification layer for another number of classes is left out, one for as many is loaded; `beyond_network` is
    left out. The log says so. Raises CheckpointError as `read_weights` and `load_exactly`.
    """
    try:
        tensors = NETWORKS.get(kind, dict)(read_weights(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    beyond, own, classifier = beyond_network(tensors, kind), model.state_dict(), CLASSIFIERS.get(kind)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in beyond}
    layer = [name for name in own if classifier and name.startswith(classifier) and name in tensors]
    if all(len(tensors[name]) == len(own[name]) for name in layer):
        layer = []  # for as many classes
    load_exactly(model, tensors | {name: own[name] for name in layer}, path)
    log.info(f"{path}: {len(tensors) - len(layer)} tensors loaded{left_out(layer, beyond)}")


def weights_origin(backbone: BackboneSection, network: str | None = None) -> dict[str, str]:
    """Where the weights that training starts from come from, for the run's records: a path as given, or whose."""
    if network or backbone.weights:
        return {"weights": str(network or backbone.weights)}
    if not backbone.pretrained:
        return {}
    entry = TABLE.get(backbone.name)
    if entry is None:
        return {"weights": f"timm's {backbone.name}"}
    if entry.package:
        return {"weights": entry.package[0]}
    return {"weights": f"{entry.repository} on the Hugging Face hub" if entry.repository else entry.address}


def weights_read(backbone: BackboneSection, network: str | None = None) -> dict[str, str]:
    """The sha256 of the file that training starts from, if it does: part of the run's parameters. The log has its path.

    That is `network` (`train.weights`), the backbone's `weights`, or the published file of a backbone that is no
    package's nor timm's, fetched where it can be. Raises CheckpointError where it is missing.
    """
    source: str | Path | None = network or backbone.weights
    if source is None and backbone.pretrained and backbone.name in TABLE and not TABLE[backbone.name].package:
        source = fetch(backbone.name)
    if source is None:
        return {}
    path = weights_file(source)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; allowed: a file or folder of weights (docs/weights.md)")
    digest = sha256_file(path)
    log.info(f"starts from {path}, sha256 {digest}")
    return {"weights": digest}
