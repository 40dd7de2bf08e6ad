"""Names of the published files of MiT, Swin, SegFormer and Mask2Former -> transformers' own. Called by `weights`.

Sources of the names: NVlabs/SegFormer mmseg/models/backbones/mix_transformer.py, microsoft/Swin-Transformer and
facebookresearch/Mask2Former mask2former/modeling; for files of the Hugging Face hub, what transformers' conversion
scripts (convert_segformer_original_to_pytorch.py, convert_mask2former_original_pytorch_checkpoint_to_pytorch.py) wrote.

Each table is a list of (pattern, replacement), all of them tried on a name, in order. A name that nothing matches stays
as it is, for `load_exactly` to refuse; `BEYOND` says what of a file no network of ours has a place for.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Table = list[tuple[str, str | Callable[[re.Match[str]], str]]]


def _one_less(match: re.Match[str]) -> str:
    return str(int(match[0]) - 1)


# the attention and MLP of a block as the hub has them, MiT's and Swin's; a file may be by transformers' own names too
HUB_BLOCK: Table = [
    (r"\battention\.self\.(q)uery\b|\battention\.self\.(k)ey\b|\battention\.self\.(v)alue\b", r"attention.\1\2\3_proj"),
    (r"\battention\.output\.dense\b", "attention.o_proj"),
]
MIT: Table = [
    # the hub
    (r"^(segformer\.)?encoder\.patch_embeddings\.(\d)\.", r"stages.\2.patch_embeddings."),
    (r"^(segformer\.)?encoder\.block\.(\d)\.", r"stages.\2.blocks."),
    (r"^(segformer\.)?encoder\.layer_norm\.(\d)\.", r"stages.\2.layer_norm."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    *HUB_BLOCK,
    (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
    # NVlabs; its levels count from 1
    (r"(?<=^patch_embed)[1-4](?=\.)|(?<=^block)[1-4](?=\.)|(?<=^norm)[1-4](?=\.)", _one_less),
    (r"^patch_embed(\d)\.proj\.", r"stages.\1.patch_embeddings.proj."),
    (r"^patch_embed(\d)\.norm\.", r"stages.\1.patch_embeddings.layer_norm."),
    (r"^norm(\d)\.", r"stages.\1.layer_norm."),
    (r"^block(\d)\.(\d+)\.norm1\.", r"stages.\1.blocks.\2.layernorm_before."),
    (r"^block(\d)\.(\d+)\.norm2\.", r"stages.\1.blocks.\2.layernorm_after."),
    (r"^block(\d)\.", r"stages.\1.blocks."),
    (r"\.attn\.(q|k|v)\.", r".attention.\1_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
]
BIAS_TABLE = ".attention.relative_position_bias.relative_position_bias_table"
SWIN: Table = [
    # the hub: as a backbone, or with `swin.` in front as a classifier
    (r"^(embeddings|encoder)\.", r"swin.\1."),
    *HUB_BLOCK,
    (r"\.attention\.self\.relative_position_bias_table$", BIAS_TABLE),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    # microsoft; detectron2 and other detectors have a norm per stage too
    (r"^patch_embed\.proj\.", "swin.embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "swin.embeddings.norm."),
    (r"^layers\.", "swin.encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.(q|k|v)\.", r".attention.\1_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.relative_position_bias_table$", BIAS_TABLE),
    (r"^norm([0-3])\.", lambda match: f"hidden_states_norms.stage{int(match[1]) + 1}."),
]
# detectron2's, with or without `pixel_decoder.`, `static_query` or `query_feat`: it renamed both between versions
MASK2FORMER: Table = [
    # the hub
    (r"^model\.pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^model\.transformer_module\.", "decoder."),
    # detectron2
    (r"^sem_seg_head\.(?!predictor\.)(pixel_decoder\.)?", "pixel_decoder."),
    (r"^pixel_decoder\.(adapter_1|layer_1)\.(weight|bias)$", r"pixel_decoder.\1.0.\2"),
    (r"^pixel_decoder\.(adapter_1|layer_1)\.norm\.", r"pixel_decoder.\1.1."),
    (r"^pixel_decoder\.input_proj\.", "pixel_decoder.input_projections."),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_projection."),
    (r"^pixel_decoder\.transformer\.", "pixel_decoder."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+)\.linear([12])\.", r"\1.fc\2."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"^sem_seg_head\.predictor\.class_embed\.", "class_predictor."),
    (r"^sem_seg_head\.predictor\.query_embed\.", "decoder.queries_embedder."),
    (r"^sem_seg_head\.predictor\.(query_feat|static_query)\.", "decoder.queries_features."),
    (r"^sem_seg_head\.predictor\.level_embed\.", "decoder.level_embed."),
    (r"^sem_seg_head\.predictor\.decoder_norm\.", "decoder.decoder.layernorm."),
    (r"^sem_seg_head\.predictor\.mask_embed\.layers\.(\d)\.", r"decoder.decoder.mask_predictor.mask_embedder.\1.0."),
    (r"^sem_seg_head\.predictor\.transformer_(self|cross)_attention_layers\.(\d+)\.norm\.",
     r"decoder.decoder.layers.\2.\1_attn_layer_norm."),
    (r"^sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.", r"decoder.decoder.layers.\1."),
    (r"^sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.",
     r"decoder.decoder.layers.\1.cross_attn."),
    (r"^sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.linear([12])\.", r"decoder.decoder.layers.\1.fc\2."),
    (r"^sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.norm\.",
     r"decoder.decoder.layers.\1.final_layer_norm."),
]  # fmt: skip
SEGFORMER: Table = [
    (r"^decode_head\.linear_c\.(\d)\.", r"head.linear_projections.\1."),  # the hub
    (r"^decode_head\.linear_c([1-4])\.", lambda match: f"head.linear_projections.{int(match[1]) - 1}."),  # NVlabs
    (r"^decode_head\.linear_fuse\.conv\.", "head.linear_fuse."),
    (r"^decode_head\.linear_fuse\.bn\.", "head.batch_norm."),
    (r"^decode_head\.linear_pred\.", "head.classifier."),
    (r"^decode_head\.(?!conv_seg)", "head."),
]


# what files hold beyond the network, by backbone or network, under the names the tables give: constants that follow
# from sizes; the norm in front of a classifier; the one-layer head that mmsegmentation keeps beside SegFormer's
BUFFERS = r"(.*\.)?(relative_position_index|attn_mask)|criterion\.empty_weight"
BEYOND = {
    "swin_": re.compile(rf"{BUFFERS}|(swin\.layer)?norm\.(weight|bias)"),
    "mask2former": re.compile(rf"{BUFFERS}|backbone\.(swin\.layer)?norm\.(weight|bias)"),
    "segformer": re.compile(r"decode_head\.conv_seg\.(weight|bias)"),
}


def _renamed(tensors: Tensors, table: Table, prefix: str = "") -> Tensors:
    """`tensors` with the part of each name that follows `prefix` put through `table`."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        new = name.removeprefix(prefix)
        for pattern, replacement in table:
            new = re.sub(pattern, replacement, new)
        if prefix + new in found:
            raise ValueError(f"two of its names mean {prefix + new}; allowed: each once")
        found[prefix + new] = tensor
    return found


def _split(tensors: Tensors, fused: str, parts: list[str]) -> Tensors:
    """`tensors` with each `fused` matrix or bias cut into as many equal ones as `parts`, its rows in their order."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        match = re.search(fused, name)
        if match is None:
            found[name] = tensor
            continue
        if len(tensor) % len(parts):
            raise ValueError(f"{name} has {len(tensor)} rows; allowed: a multiple of {len(parts)}")
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            found[name[: match.start()] + part + name[match.end() :]] = rows
    return found


def mit_tensors(tensors: Tensors) -> Tensors:
    """NVlabs' `mit_b*.pth` and the hub's `nvidia/mit-b*`; the former keeps keys and values in one matrix `kv`."""
    return _renamed(_split(tensors, r"(?<=\.attn\.)kv(?=\.(weight|bias)$)", ["k", "v"]), MIT)


def swin_tensors(tensors: Tensors) -> Tensors:
    """microsoft's `swin_*.pth`, detectron2's `.pkl` of it and the hub's `microsoft/swin-*`.

    Where a file has no norm per stage, as a classifier has none, they start as new ones: 1 and 0. A patch is merged in
    the same order in all of them: top left, bottom left, top right, bottom right.
    """
    found = _renamed(_split(tensors, r"(?<=\.attn\.)qkv(?=\.(weight|bias)$)", ["q", "k", "v"]), SWIN)
    if not any(name.startswith("hidden_states_norms.") for name in found):
        for stage in range(4):
            like = found.get(f"swin.encoder.layers.{stage}.blocks.0.layernorm_before.bias", torch.empty(0))
            found[f"hidden_states_norms.stage{stage + 1}.weight"] = torch.ones_like(like)
            found[f"hidden_states_norms.stage{stage + 1}.bias"] = torch.zeros_like(like)
    return found


def _with_backbone(tensors: Tensors, prefix: str, rename: Callable[[Tensors], Tensors], table: Table) -> Tensors:
    """A whole network's tensors: the backbone's, found under `prefix`, through `rename`, the others through `table`."""
    backbone = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    others = {name: t for name, t in tensors.items() if not name.startswith(prefix)}
    return {**{f"backbone.{name}": t for name, t in rename(backbone).items()}, **_renamed(others, table)}


def segformer_tensors(tensors: Tensors) -> Tensors:
    """NVlabs' `segformer.b*.pth` and the hub's `nvidia/segformer-*`."""
    hub = any(name.startswith("segformer.") for name in tensors)
    return _with_backbone(tensors, "segformer." if hub else "backbone.", mit_tensors, SEGFORMER)


def mask2former_tensors(tensors: Tensors) -> Tensors:
    """detectron2's `model_final_*.pkl` and the hub's `facebook/mask2former-swin-*`."""
    hub = any(name.startswith("model.pixel_level_module.encoder.") for name in tensors)
    split = _split(tensors, r"(?<=\.self_attn\.)in_proj_(?=(weight|bias)$)", ["q_proj.", "k_proj.", "v_proj."])
    return _with_backbone(split, "model.pixel_level_module.encoder." if hub else "backbone.", swin_tensors, MASK2FORMER)
