"""Published backbones on the Hugging Face hub, by name. Called by `backbones.transformers`; needs the network once."""

from __future__ import annotations

from pathlib import Path

from distwsss.errors import CheckpointError
from distwsss.models.weights.files import FOLDER_FILES

# backbone -> repository with its ImageNet weights, those that published runs start from
REPOSITORIES = {
    **{f"mit_b{i}": f"nvidia/mit-b{i}" for i in range(6)},
    "swin_tiny": "microsoft/swin-tiny-patch4-window7-224",
    "swin_small": "microsoft/swin-small-patch4-window7-224",
    "swin_base": "microsoft/swin-base-patch4-window12-384-in22k",
    "swin_large": "microsoft/swin-large-patch4-window12-384-in22k",
}


def hub_folder(backbone: str) -> Path:
    """The hub's copy of `backbone`, fetched unless it was before. Raises CheckpointError where it cannot be had."""
    from huggingface_hub import hf_hub_download

    repository, found = REPOSITORIES[backbone], ""
    for name in FOLDER_FILES:
        try:
            return Path(hf_hub_download(repository, name)).parent
        except Exception as error:  # what it raises offline depends on its version and on the HTTP library it uses
            found = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    raise CheckpointError(
        f"backbone {backbone}: {repository} could not be had from the Hugging Face hub ({found}); give a file or "
        "folder as backbone.weights (docs/weights.md), or set backbone.pretrained: false"
    )
