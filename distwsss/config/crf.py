"""Parameters of the dense CRF, and those of published work by name. Read by `config.stages` and `maths.crf`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from distwsss.config.section import Positive, Section


class CRFParams(Section):
    """Dense CRF of Kraehenbuehl and Koltun (2011) as pydensecrf takes it.

    Defaults: `cam_label`.
    """

    iterations: int = Field(10, ge=1, description="mean-field steps")
    gaussian_sxy: Positive = Field(3.0, description="smoothness term: standard deviation of positions, in pixels")
    gaussian_compat: float = Field(3.0, description="smoothness term: weight (Potts)")
    bilateral_sxy: Positive = Field(80.0, description="appearance term: standard deviation of positions, in pixels")
    bilateral_srgb: Positive = Field(
        13.0, description="appearance term: standard deviation of colours, in values of 0..255"
    )
    bilateral_compat: float = Field(10.0, description="appearance term: weight (Potts)")
    clip: float = Field(1e-5, gt=0.0, lt=0.5, description="probabilities below this are raised to it in the unary")


def _crf(gaussian: tuple[float, float], bilateral: tuple[float, float, float], iterations: int = 10) -> CRFParams:
    """(sxy, compat), (sxy, srgb, compat), as REFERENCE 4.5 writes them."""
    return CRFParams(
        iterations=iterations,
        gaussian_sxy=gaussian[0],
        gaussian_compat=gaussian[1],
        bilateral_sxy=bilateral[0],
        bilateral_srgb=bilateral[1],
        bilateral_compat=bilateral[2],
    )


CRF_PARAMS: dict[str, CRFParams] = {
    "cam_label": CRFParams(),  # CAM to label: psa (alpha 4 and 16 to 32), SEAM and EPS (4 and 24 to 32), RCA, OC-CSE
    "ppc": _crf((3, 3), (80, 13, 10), iterations=5),  # CAM to label: PPC on EPS (alpha 8)
    "irn": _crf((3, 3), (50, 5, 10)),  # labels: IRN, ReCAM, AdvCAM, W-OoD, RIB, SIPE, FPR, AFA
    "puzzlecam": _crf((3, 3), (50, 5, 10), iterations=1),  # labels: PuzzleCAM
    "toco_coco": _crf((3, 3), (36, 3, 4)),  # CAM to label on COCO: ToCo
    "deeplab_v2": _crf((1, 3), (67, 3, 4)),  # segmenters: deeplab-pytorch, BECO, L2G, OAA; EPS; CLIP-ES's labels
    "codebase": _crf((3, 3), (32, 13, 10), iterations=1),  # segmenters: semantic-segmentation-codebase (SEAM), ADELE
    "afa": _crf((3, 3), (64, 5, 4)),  # segmenters: AFA, WeCLIP
    "toco": _crf((1, 1), (121, 5, 4)),  # segmenters: ToCo, DuPL, SeCo
    "mctformer": _crf((4, 3), (83, 5, 3)),  # segmenters: MCTformer
}


def _crf_by_name(value: Any) -> Any:
    if isinstance(value, str):
        if value not in CRF_PARAMS:
            raise ValueError(f"allowed: one of {', '.join(CRF_PARAMS)}, or a mapping of CRF parameters")
        return CRF_PARAMS[value]
    return value


NamedCRF = Annotated[CRFParams, BeforeValidator(_crf_by_name)]
