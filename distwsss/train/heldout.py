"""mIoU on train ids kept out of training: single scale, no CRF. Called by `train.steps` at `train.evaluate_every`."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from distwsss.data.images import decode_image
from distwsss.data.shards.index import Selection
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.inference.views import Views, labels_at, predict_probabilities
from distwsss.maths.miou import ConfusionMatrix
from distwsss.train.engine.accelerate import all_sum


def held_out_miou(model: nn.Module, selection: Selection, accelerator: Accelerator) -> float:
    """mIoU in 0..1 over the selection's images that have a mask; rank r scores images r, r + world, ..."""
    model.eval()
    confusion = ConfusionMatrix(len(selection.index.classes))
    for shard, position in selection.places()[accelerator.process_index :: accelerator.num_processes]:
        truth = read_truth(selection.index, shard, position)
        if truth is not None:
            jpg = read_fields(selection.index, shard, position, ["jpg"])["jpg"]
            image = decode_image(jpg, selection.index.key(shard, position))
            probabilities = predict_probabilities(model, image, Views(), accelerator.device)
            confusion.update(labels_at(probabilities, (truth.shape[0], truth.shape[1])), truth)
    confusion.matrix = all_sum(accelerator, torch.from_numpy(confusion.matrix)).cpu().numpy()
    return confusion.miou()
