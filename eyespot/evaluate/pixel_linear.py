"""Per-pixel linear probe of feature maps, version 1: one linear layer labels every pixel.

    minimise  mean over drawn pixels of CE(W x + b, y) + strength / 2 |W|^2        (b is not penalised)

with x the bilinearly interpolated feature at the pixel, standardised by the training pixels. Since a linear layer and
bilinear interpolation may be exchanged, this is the linear head on the feature map whose logits are brought to the size
of the picture before the cross entropy, as linear segmentation probes are built (DINOv2, Oquab et al.; TMLR 2024; arXiv
2304.07193, section 7.4); papers train it by SGD for some epochs on augmented crops, here it is fitted to its optimum by
L-BFGS on about 25,000 pixels of clean pictures, see `eyespot.evaluate.linear` and `eyespot.evaluate.dense`. The
strength is chosen from a grid by the accuracy on the pixels of a fifth of the training PICTURES (pixels of one picture
are alike), then the layer is fitted again on all.

    mIoU        mean over the classes in truth or prediction of TP / (TP + FP + FN), over all test pixels together
    accuracy    share of the test pixels with the right class
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.evaluate.dense import PIXELS, Drawn, Fitted
from eyespot.evaluate.linear import MAX_ITER, TOLERANCE, Fit, Standardiser, few_threads
from eyespot.metrics.classification import top_k_accuracy

NAME = "pixel_linear"
VERSION = 1
MAPS = "features"
SETTINGS = ("image_size",)
STRENGTHS = (0.1, 0.01, 0.001, 0.0001, 0.00001)
"""The grid, strong to weak; each fit starts from the one before."""
VALIDATION = 0.2
"""Share of the training pictures on whose pixels the strength is chosen."""


def fit(drawn: Drawn, *, seed: int = 0, device: torch.device | str = "cpu") -> Fitted:
    """The probe of one network.

    Args:
        seed: draws the validation pictures.
        device: where the fit runs.
    """
    x, y = drawn.pixels.to(device), drawn.labels.to(device)
    with few_threads(x.numel() * drawn.classes):
        held = torch.from_numpy(Draws(seed, index=drawn.pictures, prefix="dense/").uniform64("held") < VALIDATION)
        strength = choose_strength(x, y, drawn.classes, held.flatten().to(device))
        standardise = Standardiser.of(x)
        solved = Fit(standardise(x), y, drawn.classes)
        solved.fit(strength, 4 * MAX_ITER, TOLERANCE / 10)
    weight, bias = as_layer(solved, standardise)
    config = {
        "pixels": len(x),
        "drawn": PIXELS,
        "grid": list(STRENGTHS),
        "validation": VALIDATION,
        "strength": strength,
    }
    return Fitted(lambda found: logits(found, weight, bias), drawn.classes, config=config)


def choose_strength(x: Tensor, y: Tensor, classes: int, held: Tensor) -> float:
    """The strength with the best accuracy, then the lowest cross entropy, on held-out rows (bool [P]); the middle of
    the grid where all or none are held out."""
    if held.all() or not held.any():
        return STRENGTHS[len(STRENGTHS) // 2]
    standardise = Standardiser.of(x[~held])
    solved = Fit(standardise(x[~held]), y[~held], classes)
    x_held, y_held = standardise(x[held]), y[held]
    results = []
    for strength in STRENGTHS:
        solved.fit(strength)
        scores = solved.scores(x_held)
        results.append((-top_k_accuracy(scores, y_held, 1), float(F.cross_entropy(scores, y_held)), strength))
    return min(results)[2]


def as_layer(solved: Fit, standardise: Standardiser) -> tuple[Tensor, Tensor]:
    """Weight [classes, D] and bias [classes] on features as they are."""
    weight = (solved.vectors @ solved.weight) * standardise.scale[:, None]
    return weight.T.contiguous(), solved.bias - standardise.mean @ weight


def logits(found: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer at every place of a map [B, D, h, w]: [B, classes, h, w]."""
    return F.conv2d(found, weight[:, :, None, None].to(found), bias.to(found))
