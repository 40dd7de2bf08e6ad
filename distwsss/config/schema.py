"""The whole configuration: its sections and what they must agree on. Built only by `config.load`; read by every stage.

Strict pydantic models, one file per kind of section; every default is METHOD's reading. Torch-free, so that
`distwsss config validate` answers at once.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from distwsss.config.data import DataSection, PrepareSection
from distwsss.config.hardware import HardwareSection, PathsSection
from distwsss.config.networks import FROM_FILE
from distwsss.config.saliency import SaliencySection
from distwsss.config.section import Section
from distwsss.config.stages import (
    MEANS,
    SALIENCY,
    SELECTED,
    ClassifySection,
    EvaluateSection,
    ReportSection,
    SeedsSection,
    TrainSection,
)


class Config(Section):
    """The whole configuration."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-]+$", description="what run and folders are called; without it as the file is"
    )
    seed: int = Field(0, ge=0, description="of all random numbers but the generated data set's")
    paths: PathsSection = PathsSection()
    hardware: HardwareSection = HardwareSection()
    data: DataSection
    prepare: PrepareSection = PrepareSection()
    saliency: SaliencySection = SaliencySection()
    classify: ClassifySection = ClassifySection()
    seeds: SeedsSection = SeedsSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    report: ReportSection = ReportSection()

    def seed_names(self) -> list[str]:
        """All candidate seeds in order, p outermost: `0.05-1.00`, `0.05-1.20`, ..."""
        return [f"{p:.2f}-{scale:.2f}" for p in self.classify.dropouts for scale in self.seeds.scales]

    def map_names(self) -> list[str]:
        """All label maps of a seed shard in order: the seeds, those of all of them together, the saliency voter."""
        return [*self.seed_names(), *MEANS, *([SALIENCY] if self.seeds.saliency_voter else [])]

    def possible_voters(self) -> list[str]:
        return [name for name in self.map_names() if name not in MEANS]

    def voting_seeds(self) -> list[str]:
        """Those that vote; with `vote_on: selected` those that may."""
        return self.possible_voters() if self.seeds.vote_on in (None, SELECTED) else list(self.seeds.vote_on or [])

    def vote_keys(self) -> dict[str, Any]:
        """What a vote over given seeds depends on."""
        return {
            "label": self.seeds.label,
            "vote_on": SELECTED if self.seeds.vote_on == SELECTED else self.voting_seeds(),
            "threshold": self.vote_threshold(),
            "ties": self.seeds.ties,
        }

    def resolved_seeds(self) -> SeedsSection:
        """The `seeds` section with the stride that its null means."""
        backbone = self.classify.backbone
        coarse = backbone.output_stride == 32 and not backbone.name.startswith(("mit_", "swin_"))
        stride = self.seeds.output_stride or (16 if coarse else None)
        return self.seeds.model_copy(update={"output_stride": stride})

    def segmenter_seed(self) -> int:
        """Of the random numbers of the segmenter's training."""
        return self.seed if self.train.seed is None else self.train.seed

    def vote_threshold(self) -> int | None:
        """t of the pseudo-label shards; None: as many as will be selected."""
        unknown = self.seeds.vote_on == SELECTED and self.seeds.threshold is None
        return None if unknown else self.seeds.threshold or len(self.voting_seeds())

    def saliency_users(self) -> list[str]:
        """The keys that make use of saliency maps."""
        used = {
            "classify.saliency": self.classify.saliency is not None,
            "seeds.saliency_unary": self.seeds.saliency_unary,
            "seeds.saliency_voter": self.seeds.saliency_voter,
        }
        return [key for key, on in used.items() if on]

    def cue(self) -> str:
        """What the pseudo-labels are made of, as every report says: `tags`, or `tags + saliency (u2netp)`, whose
        network was trained with masks."""
        return f"tags + saliency ({self.saliency.name})" if self.saliency_users() else "tags"

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        """Raises ValueError with a line `key: problem` for everything in which two sections do not fit."""
        faults = [*self._seed_faults(), *self._vote_faults(), *self._saliency_faults(), *self._later_faults()]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _seed_faults(self) -> list[str]:
        faults = []
        for key, values in (("classify.dropouts", self.classify.dropouts), ("seeds.scales", self.seeds.scales)):
            if len({f"{value:.2f}" for value in values}) != len(values):
                faults.append(f"{key}: found {values}, names of seeds collide; allowed: values differing in 2 decimals")
        if self.seeds.dropout_passes and self.classify.dropout_layer != "dropout7":
            faults.append(
                f"seeds.dropout_passes: found {self.seeds.dropout_passes}, but classify.dropout_layer is "
                f"{self.classify.dropout_layer!r}; allowed: 0, or with dropout7"
            )
        stride = self.seeds.output_stride
        backbone = self.classify.backbone.name
        if backbone in ("tiny", *FROM_FILE) and stride not in (None, 8):
            faults.append(f"seeds.output_stride: found {stride}; allowed for backbone `{backbone}`: null or 8")
        return faults

    def _vote_faults(self) -> list[str]:
        names, voters = self.possible_voters(), self.voting_seeds()
        faults = []
        for name in dict.fromkeys([] if self.seeds.vote_on == SELECTED else self.seeds.vote_on or []):
            if name not in names:
                faults.append(f"seeds.vote_on: found {name!r}; allowed: {', '.join(names)}, or `selected` alone")
            elif voters.count(name) > 1:
                faults.append(f"seeds.vote_on: found {name!r} {voters.count(name)} times; allowed: each once")
        for key, t in (("seeds.threshold", self.seeds.threshold), ("train.vote_threshold", self.train.vote_threshold)):
            if t is not None and t > len(voters):
                voting = "1 seed votes" if len(voters) == 1 else f"{len(voters)} seeds vote"
                faults.append(f"{key}: found {t}, but only {voting}; allowed: 1..{len(voters)}")
        return faults

    def _saliency_faults(self) -> list[str]:
        if self.saliency.name is not None:
            return []
        return [
            f"{key}: is set, but saliency.model and saliency.folder are null, so that there are no maps; allowed: with "
            "one of them, such as saliency.model: u2netp (docs/saliency.md)"
            for key in self.saliency_users()
        ]

    def _later_faults(self) -> list[str]:
        """What a stage would find only after those before it have run."""
        train, names, faults = self.train, self.map_names(), []
        if train.labels.startswith("seed:"):
            if train.labels[5:] not in names:
                faults.append(f"train.labels: found seed {train.labels[5:]!r}; allowed: {', '.join(names)}")
            if not self.seeds.keep_maps:
                faults.append(
                    f"seeds.keep_maps: found False, but train.labels is {train.labels!r}, read from the seed shards; "
                    "allowed: true, or train.labels: vote"
                )
        if self.evaluate.checkpoint == "BEST" and (train.evaluate_every is None or not train.holdout):
            faults.append(
                f"evaluate.checkpoint: found 'BEST', but train.evaluate_every is {train.evaluate_every!r} and "
                f"train.holdout is {train.holdout}, so that there will be none; allowed: LAST, or set both"
            )
        return faults
