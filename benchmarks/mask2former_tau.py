"""What the prediction constraint makes of Mask2Former's pixels: p* and the gradient of the positive loss, by tau.

    python benchmarks/mask2former_tau.py [--taus 1 0.25 0.1 0.07 0.04 none]

A pixel is a semantic map S over K classes, the label first; its logits z are log(S + 1e-6) less their mean, as
`models.mask2former.semantic_logits` has them. `before`: log-probabilities, not centred, as they once were. Each cell:
p* of the label, and the norm of dL/dz (Eq. 8, float64).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from distwsss.losses.hybrid import constrained_log_softmax, positive_loss
from distwsss.models.mask2former import FLOOR

PIXELS = {  # shares of the label, of one other class; what is left is spread over the rest
    "perfect": (1.0, 0.0),
    "half-sure, two classes": (0.5, 0.5),
    "half-sure, all others alike": (0.5, None),
    "wrong, 9 to 1": (0.1, 0.9),
    "near uniform": None,
}


def scores(kind: str, classes: int) -> Tensor:
    """float64[K], the semantic map of a pixel; near uniform: as of an untrained network, a tenth of spread."""
    shares = PIXELS[kind]
    if shares is None:
        noise = torch.randn(classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return (0.1 * noise).softmax(0)
    label, other = shares
    found = torch.zeros(classes, dtype=torch.float64)
    if other is None:
        found[1:] = (1 - label) / (classes - 1)
    else:
        found[1] = other
    found[0] = label
    return found


def row(z: Tensor, tau: float | None) -> str:
    """p* of the label and |dL/dz| of logits K."""
    leaf = z[None, :, None, None].clone().requires_grad_()
    where = torch.zeros(1, 1, 1, dtype=torch.int64)
    positive_loss(leaf, where, where == 0, temperature=tau)[0].backward()
    p_star = constrained_log_softmax(leaf.detach(), tau)[0, 0, 0, 0].exp()
    gradient = float(leaf.grad.norm())
    return f"{p_star:.4f}, {gradient if gradient > 1e-9 else 0:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--taus", nargs="+", default=["1", "0.25", "0.1", "0.07", "0.04", "none"])
    taus = parser.parse_args().taus
    print("| K | pixel | p | norm of z | " + " | ".join(f"tau {tau}" for tau in taus) + " |")
    for classes in (21, 81):
        for kind in PIXELS:
            logs = (scores(kind, classes) + FLOOR).log()
            found = {"": logs - logs.mean()}
            if kind == "perfect":
                found[", before"] = logs.log_softmax(0)
            for mark, z in found.items():
                cells = [row(z, None if tau == "none" else float(tau)) for tau in taus]
                about = f"{classes} | {kind}{mark} | {z.softmax(0)[0]:.4f} | {z.norm():.3g}"
                print(f"| {about} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
