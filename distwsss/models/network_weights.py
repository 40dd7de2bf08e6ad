"""A whole network's published weights to start from: `train.weights`. Called by `segmenters`."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from distwsss.errors import CheckpointError
from distwsss.models.transformer_names import mask2former_tensors, segformer_tensors
from distwsss.models.weight_files import read_weights
from distwsss.models.weights import Rename, beyond_network, left_out, load_exactly
from distwsss.runtime.progress import log

# kind of segmenter -> its tensors from those of the files users have; one of ours, as `save_pretrained` writes it, stays
NETWORKS: dict[str, Rename] = {"segformer": segformer_tensors, "mask2former": mask2former_tensors}
# kind -> what the names of its classification layer start with
CLASSIFIERS = {"segformer": "head.classifier.", "mask2former": "class_predictor."}


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
