"""What SegFormer and Mask2Former do alike with their backbones: weights to start from, freezing, checkpointing.

transformers itself is imported by `segformer` and `mask2former` alone, when such a network is built. Parameters carry
the names transformers' own modules give them; `transformer_names` has those of the files users have.
"""

from __future__ import annotations

from torch import Tensor, nn

from distwsss.config.networks import BackboneSection
from distwsss.errors import ConfigError
from distwsss.models.weights.backbone import load_file_into
from distwsss.models.weights.published import fetch


def prepare(backbone: nn.Module, section: BackboneSection) -> None:
    """Weights to start from, if `section` asks for them, then its `freeze`.

    They come from the file or folder `weights`, else by name (`published`). `output_stride`
    has no meaning here, features are at strides 4, 8, 16 and 32; the configuration refuses 8. Raises CheckpointError
    for weights that are missing or do not fit, ConfigError for a `freeze` that names nothing.
    """
    if section.pretrained:
        load_file_into(backbone, section.weights or fetch(section.name), section.name)
    for prefix in section.freeze or []:
        matching = [p for name, p in backbone.named_parameters() if name.startswith(prefix)]
        if not matching:
            raise ConfigError(f"backbone {section.name!r}: freeze: no parameter starts with {prefix!r}")
        for parameter in matching:
            parameter.requires_grad_(False)


def described(section: BackboneSection) -> dict[str, object]:
    """`section` as a checkpoint keeps it: the network, not the file it started from."""
    return section.model_copy(update={"weights": None}).model_dump()


def checkpoint_blocks(backbone: nn.Module, blocks: list[nn.Module]) -> None:
    """Keep no activations inside `blocks`, the transformer layers of transformers' `backbone`: recompute them."""
    # the newer and the older name; without arguments both use non-reentrant checkpoints
    getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)()
    for module in backbone.modules():
        if hasattr(module, "gradient_checkpointing"):  # Swin's stages would be checkpoints too, around their blocks
            module.gradient_checkpointing = any(module is block for block in blocks)


def _drop_branch(mlp: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return mlp.drop_path(output)


def drop_both_branches(block: nn.Module) -> None:
    """Stochastic depth on a Swin block's MLP too, as published: transformers has it on the attention only."""
    block.mlp.drop_path = block.drop_path
    block.mlp.register_forward_hook(_drop_branch)
