"""Where results go and what the machine offers: sections that change no result. Read by `config.schema`."""

from __future__ import annotations

import importlib.util
import re
from typing import Literal

from pydantic import Field, field_validator

from distwsss.config.section import Positive, Section

CREDENTIALS = re.compile(r"(\w+://)[^/@\s]+@")  # in a URL, never to be shown: `without_credentials`
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol of a URL -> our extra that installs its package


def without_credentials(text: str) -> str:
    """`text` with stars for the credentials of the URLs in it."""
    return CREDENTIALS.sub(r"\1***@", text)


class PathsSection(Section):
    """Where results go; relative to the current folder. Left out of fingerprints."""

    run: str | None = Field(None, description="run folder; null: runs/NAME")
    classifiers: str | None = Field(
        None,
        description="folder of the classifiers, shared by runs that differ later; null: classify in the run folder",
    )
    shards: str | None = Field(None, description="shard folder, or a URL such as s3://BUCKET/PREFIX; null: shards/NAME")

    @field_validator("shards")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        """Raises ValueError for a URL of a protocol that is unknown, or whose package is not installed."""
        protocol, found, rest = (value or "").partition("://")
        if not found or protocol == "file":
            return value
        from fsspec.registry import known_implementations, registry  # no package of a store is imported for this

        if protocol not in registry and protocol not in known_implementations:
            raise ValueError("allowed: a folder, or a URL such as s3://BUCKET/PREFIX")
        module = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
        if protocol not in registry and importlib.util.find_spec(module) is None:
            package = f"distwsss[{EXTRAS[protocol]}]" if protocol in EXTRAS else module
            raise ValueError(f"{protocol}:// needs a package that is not installed; run `pip install '{package}'`")
        if not rest.rpartition("@")[2].strip("/"):
            raise ValueError("allowed: a URL with a bucket, such as s3://BUCKET/PREFIX")
        return value

    @field_validator("run", "classifiers")
    @classmethod
    def _local(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError("allowed: a folder on a file system (lock, checkpoints); only `shards` may be a URL")
        return value


class RaySection(Section):
    """Ray, for the executor `ray`: the cluster that RAY_ADDRESS names, else one on this machine (a local Ray)."""

    temp_dir: str | None = Field(None, description="a local Ray's logs and sockets; null: Ray's own folder")
    spill_dir: str | None = Field(None, description="where a local Ray's object store spills; null: `temp_dir`")
    object_store_mb: int | None = Field(
        None, ge=75, description="memory of a local Ray's object store, in MB; null: Ray's own"
    )
    cam_gpus: float = Field(1.0, gt=0.0, le=1.0, description="share of a GPU that one CAM actor takes")
    cam_actors: int | None = Field(
        None, ge=1, description="CAM actors; null: as many as the GPUs allow, else one a CPU"
    )
    crf_workers: int | None = Field(
        None, ge=1, description="CRF workers; null: one a CPU that CAM actors on GPUs leave"
    )
    attempts: int = Field(3, ge=1, description="times one piece of work is tried when the process doing it dies")
    item_minutes: Positive = Field(
        60.0, description="one piece of work that takes more minutes counts as a failed attempt"
    )


class HardwareSection(Section):
    """What the machine offers. Left out of fingerprints; `--profile` overlays it."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="what networks run on; auto: the rank's GPU where there is one, else the CPU"
    )
    executor: Literal["auto", "ray", "local"] = Field(
        "auto",
        description="what works in parallel; auto: Ray for `seeds`, where it is installed and `workers` > 0; for "
        "`classify` only if named",
    )
    ray: RaySection = RaySection()
    cam_batch: int = Field(1, ge=1, description="images of equal size that one forward of the CAM stage takes")
    workers: int = Field(2, ge=0, description="processes of prepare, seeds and the CRF in evaluation; 0: this one")
    loader_workers: int = Field(2, ge=0, description="data loading processes per rank")
    scratch: str | None = Field(
        None, description="folder on a local disk that keeps shards read from a URL; null: none are kept"
    )
    scratch_gb: Positive = Field(
        20.0, description="size of `scratch` in GB; the least recently used shards go, one always stays"
    )
    card: Literal["rtx3090", "a100", "h100"] | None = Field(
        None, description="the GPU that `estimate` reckons with; nothing else reads it"
    )
    cards: int = Field(1, ge=1, description="how many of `card`, for `estimate`; launchers start the ranks")
    micro_batch: int | None = Field(None, ge=1, description="images per rank and forward; null: `global_batch` / ranks")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no",
        description="what the forward of training, and on GPUs of CAMs, computes in; weights, losses and optimizer "
        "states are float32; fp16 not with DeepSpeed",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute the backbone's blocks in backward rather than keep what they computed"
    )
    tf32: bool = Field(True, description="TensorFloat-32 in float32 products on GPUs that have it")
    deepspeed: str | None = Field(None, description="DeepSpeed's JSON, or its NAME in configs/deepspeed/; null: DDP")
    timeout_seconds: int = Field(600, ge=1, description="collectives that take more seconds end the run")
    shutdown_seconds: int = Field(
        30, ge=0, description="seconds that the launcher leaves a process to save in after SIGTERM, SIGUSR1 or Ctrl-C"
    )
    trackers: list[Literal["tensorboard", "wandb"]] = Field([], description="where metrics go beside metrics.jsonl")
