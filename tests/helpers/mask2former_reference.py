"""detectron2's Mask2Former head from its state dict alone: names and shapes typed out, a forward in plain functions.

After facebookresearch/Mask2Former mask2former/modeling (pixel_decoder/msdeformattn.py, transformer_decoder/
mask2former_transformer_decoder.py): what each published name does, written anew, for a Swin of width C in float64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
HEADS, POINTS, LEVELS = 8, 4, 3
PIXELS, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."


def head_shapes(width: int, hidden: int, feedforward: int, encoder: int, decoder: int, queries: int, classes: int):
    """Name -> shape of every tensor of a detectron2 file that is not the backbone's."""
    shapes: dict[str, tuple[int, ...]] = {"criterion.empty_weight": (classes + 1,)}

    def add(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    for level, factor in enumerate((8, 4, 2)):
        add(f"{PIXELS}input_proj.{level}.0", hidden, factor * width, 1, 1)
        add(f"{PIXELS}input_proj.{level}.1", hidden)
    shapes[f"{PIXELS}transformer.level_embed"] = (LEVELS, hidden)
    for i in range(encoder):
        layer = f"{PIXELS}transformer.encoder.layers.{i}."
        add(f"{layer}self_attn.sampling_offsets", HEADS * LEVELS * POINTS * 2, hidden)
        add(f"{layer}self_attn.attention_weights", HEADS * LEVELS * POINTS, hidden)
        add(f"{layer}self_attn.value_proj", hidden, hidden)
        add(f"{layer}self_attn.output_proj", hidden, hidden)
        add(f"{layer}norm1", hidden)
        add(f"{layer}linear1", feedforward // 2, hidden)
        add(f"{layer}linear2", hidden, feedforward // 2)
        add(f"{layer}norm2", hidden)
    add(f"{PIXELS}mask_features", hidden, hidden, 1, 1)
    add(f"{PIXELS}adapter_1", hidden, width, 1, 1, bias=False)
    add(f"{PIXELS}adapter_1.norm", hidden)
    add(f"{PIXELS}layer_1", hidden, hidden, 3, 3, bias=False)
    add(f"{PIXELS}layer_1.norm", hidden)
    for i in range(decoder):
        for kind, inner in (("self", "self_attn"), ("cross", "multihead_attn")):
            layer = f"{PREDICTOR}transformer_{kind}_attention_layers.{i}."
            shapes[f"{layer}{inner}.in_proj_weight"] = (3 * hidden, hidden)
            shapes[f"{layer}{inner}.in_proj_bias"] = (3 * hidden,)
            add(f"{layer}{inner}.out_proj", hidden, hidden)
            add(f"{layer}norm", hidden)
        add(f"{PREDICTOR}transformer_ffn_layers.{i}.linear1", feedforward, hidden)
        add(f"{PREDICTOR}transformer_ffn_layers.{i}.linear2", hidden, feedforward)
        add(f"{PREDICTOR}transformer_ffn_layers.{i}.norm", hidden)
    add(f"{PREDICTOR}decoder_norm", hidden)
    for name, rows in (("query_feat", queries), ("query_embed", queries), ("level_embed", LEVELS)):
        add(f"{PREDICTOR}{name}", rows, hidden, bias=False)
    add(f"{PREDICTOR}class_embed", classes + 1, hidden)
    for i in range(3):
        add(f"{PREDICTOR}mask_embed.layers.{i}", hidden, hidden)
    return shapes


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(x: Tensor, state: State, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _groups(x: Tensor, state: State, name: str) -> Tensor:
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"])


def _positions(height: int, width: int, hidden: int) -> Tensor:
    """hidden,H,W: sines and cosines of y, then of x, both scaled to 2 pi over the image."""
    half, found = hidden // 2, torch.zeros(hidden, height, width, dtype=torch.float64)
    for k in range(half):
        rate = 10000 ** (2 * (k // 2) / half)
        wave = math.cos if k % 2 else math.sin
        for y in range(height):
            found[k, y] = wave(2 * math.pi * (y + 1) / (height + 1e-6) / rate)
        for x in range(width):
            found[half + k, :, x] = wave(2 * math.pi * (x + 1) / (width + 1e-6) / rate)
    return found


def _deformable(query: Tensor, value: Tensor, sizes: list[tuple[int, int]], state: State, name: str) -> Tensor:
    """query, value: N,hidden of all levels' pixels -> N,hidden."""
    count, hidden = query.shape
    values = _linear(value, state, f"{name}.value_proj").view(count, HEADS, -1)
    offsets = _linear(query, state, f"{name}.sampling_offsets").view(count, HEADS, LEVELS, POINTS, 2)
    weights = _linear(query, state, f"{name}.attention_weights").view(count, HEADS, -1).softmax(-1)
    weights = weights.view(count, HEADS, LEVELS, POINTS)
    centres = torch.cat([
        torch.tensor([[(x + 0.5) / w, (y + 0.5) / h] for y in range(h) for x in range(w)], dtype=torch.float64)
        for h, w in sizes
    ])  # fmt: skip
    result, start = torch.zeros(count, HEADS, hidden // HEADS, dtype=torch.float64), 0
    for level, (h, w) in enumerate(sizes):
        maps = values[start : start + h * w].permute(1, 2, 0).reshape(HEADS, -1, h, w)
        places = centres[:, None, None] + offsets[:, :, level] / torch.tensor([w, h])  # N,heads,points,2
        sampled = F.grid_sample(maps, 2 * places.transpose(0, 1) - 1, align_corners=False)  # heads,d,N,points
        result += torch.einsum("mdnp,nmp->nmd", sampled, weights[:, :, level])
        start += h * w
    return _linear(result.reshape(count, hidden), state, f"{name}.output_proj")


def _attention(query: Tensor, key: Tensor, value: Tensor, hidden_from: Tensor | None, state: State, name: str):
    """Multi-head attention, Q,hidden on N,hidden; `hidden_from`: bool Q,N, which keys a query does not see."""
    matrices, biases = state[f"{name}.in_proj_weight"].chunk(3), state[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (F.linear(x, m, b) for x, m, b in zip((query, key, value), matrices, biases, strict=True))
    found = []
    for q_, k_, v_ in zip(q.chunk(HEADS, -1), k.chunk(HEADS, -1), v.chunk(HEADS, -1), strict=True):
        scores = q_ @ k_.T / math.sqrt(q_.shape[-1])
        if hidden_from is not None:
            scores = scores.masked_fill(hidden_from, -math.inf)
        found.append(scores.softmax(-1) @ v_)
    return _linear(torch.cat(found, -1), state, f"{name}.out_proj")


def pixel_decoder(state: State, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """features: C,h,w from stride 4 to 32 -> maps hidden,h,w of strides 32, 16, 8, and mask features of stride 4."""
    inputs = [
        _groups(F.conv2d(f[None], state[f"{PIXELS}input_proj.{i}.0.weight"], state[f"{PIXELS}input_proj.{i}.0.bias"]),
                state, f"{PIXELS}input_proj.{i}.1")[0]
        for i, f in enumerate(features[:0:-1])
    ]  # fmt: skip
    sizes = [(x.shape[1], x.shape[2]) for x in inputs]
    tokens = torch.cat([x.flatten(1).T for x in inputs])
    embed = state[f"{PIXELS}transformer.level_embed"]
    positions = [_positions(h, w, len(x)).flatten(1).T for x, (h, w) in zip(inputs, sizes, strict=True)]
    where = torch.cat([p + e for p, e in zip(positions, embed, strict=True)])
    layer = 0
    while f"{PIXELS}transformer.encoder.layers.{layer}.norm1.weight" in state:
        name = f"{PIXELS}transformer.encoder.layers.{layer}"
        tokens = _norm(
            tokens + _deformable(tokens + where, tokens, sizes, state, f"{name}.self_attn"), state, f"{name}.norm1"
        )
        inner = _linear(_linear(tokens, state, f"{name}.linear1").relu(), state, f"{name}.linear2")
        tokens = _norm(tokens + inner, state, f"{name}.norm2")
        layer += 1
    parts = tokens.split([h * w for h, w in sizes])
    maps = [part.T.reshape(-1, h, w) for part, (h, w) in zip(parts, sizes, strict=True)]
    lateral = _groups(F.conv2d(features[0][None], state[f"{PIXELS}adapter_1.weight"]), state, f"{PIXELS}adapter_1.norm")
    finest = lateral + F.interpolate(maps[-1][None], lateral.shape[-2:], mode="bilinear", align_corners=False)
    finest = F.conv2d(finest, state[f"{PIXELS}layer_1.weight"], padding=1)
    finest = _groups(finest, state, f"{PIXELS}layer_1.norm").relu()
    projected = F.conv2d(finest, state[f"{PIXELS}mask_features.weight"], state[f"{PIXELS}mask_features.bias"])
    return maps, projected[0]


def predictions(state: State, features: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Class logits Q,K+1 and mask logits Q,h,w from the queries alone and after each decoder layer."""
    maps, pixels = pixel_decoder(state, features)
    embed = state[f"{PREDICTOR}level_embed.weight"]
    keys = [m.flatten(1).T + e for m, e in zip(maps, embed, strict=True)]
    positions = [_positions(*m.shape[1:], len(m)).flatten(1).T for m in maps]
    x, where = state[f"{PREDICTOR}query_feat.weight"], state[f"{PREDICTOR}query_embed.weight"]

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        x = _norm(x, state, f"{PREDICTOR}decoder_norm")
        masks = x
        for i in range(3):
            masks = _linear(masks, state, f"{PREDICTOR}mask_embed.layers.{i}")
            masks = masks.relu() if i < 2 else masks
        return _linear(x, state, f"{PREDICTOR}class_embed"), torch.einsum("qc,chw->qhw", masks, pixels)

    found = [predict(x)]
    while f"{PREDICTOR}transformer_ffn_layers.{len(found) - 1}.norm.weight" in state:
        i = len(found) - 1
        level = i % LEVELS
        masks = F.interpolate(found[-1][1][None], maps[level].shape[1:], mode="bilinear", align_corners=False)[0]
        unseen = masks.flatten(1) < 0  # sigmoid below one half
        unseen[unseen.all(1)] = False
        name = f"{PREDICTOR}transformer_cross_attention_layers.{i}"
        seen = _attention(
            x + where, keys[level] + positions[level], keys[level], unseen, state, f"{name}.multihead_attn"
        )
        x = _norm(x + seen, state, f"{name}.norm")
        name = f"{PREDICTOR}transformer_self_attention_layers.{i}"
        x = _norm(x + _attention(x + where, x + where, x, None, state, f"{name}.self_attn"), state, f"{name}.norm")
        name = f"{PREDICTOR}transformer_ffn_layers.{i}"
        inner = _linear(_linear(x, state, f"{name}.linear1").relu(), state, f"{name}.linear2")
        x = _norm(x + inner, state, f"{name}.norm")
        found.append(predict(x))
    return found
