"""Linear probe of frozen features: multinomial logistic regression by L-BFGS, version 1.

    minimise  mean_i CE(W x_i + b, y_i) + strength / 2 |W|^2        (b is not penalised)

on features standardised by the training statistics. The strength is chosen from a fixed grid on a stratified fifth
of the TRAINING samples, then the classifier is fitted again on all of them; the test samples are used once.

How it relates to the probes of the papers. Those train a linear layer for 80-100 epochs of SGD on randomly cropped
and flipped pictures, each with its own rate, schedule and decay (MoCo lr 30, SimCLR 0.1, DINO 0.001 and so on); MAE
puts a batch norm without affine parameters before it. This probe fits the same model, a linear layer on (like
MAE's) standardised pooled features, to its optimum on the clean view. It needs no rate or schedule, gives the same
result every time, takes seconds, and compares representations rather than schedules; it sees one view of each
picture, so its numbers are usually a little below those of an SGD probe with augmented pictures, and are not to be
mixed with them. It is the logistic regression of CLIP (Radford et al.; ICML 2021; arXiv 2103.00020, appendix A.3)
but for the standardisation and the shorter grid. scikit-learn's C is 1 / (n * strength).

L-BFGS runs in coordinates in which the curvature is bounded by about one: the Hessian of the mean cross-entropy is
at most half the covariance of x (Boehning 1992, Annals of the Institute of Statistical Mathematics 44), so the
weights are expressed in the eigenvectors of that covariance and divided by sqrt(eigenvalue / 2 + strength). The
optimum is the same, the steps are few whatever the conditioning of the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.evaluate.splits import stratified_split
from eyespot.metrics.classification import top_k_accuracy

NAME = "linear"
VERSION = 1
STRENGTHS = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00001)
"""The grid, strong to weak; each fit starts from the one before."""
VALIDATION = 0.2
"""Share of the training samples on which the strength is chosen."""
MAX_ITER = 100
"""Iterations of L-BFGS for each strength of the grid; the last fit may take four times as many."""
TOLERANCE = 1e-6
"""A fit of the grid ends when no entry of its gradient, in the coordinates above, is larger; the last at a tenth."""

CHUNK = 8192
SMALL = 20_000_000


@dataclass(frozen=True)
class Standardiser:
    """Zero mean and unit variance by training statistics; dimensions that do not vary are dropped (become 0)."""

    mean: Tensor
    scale: Tensor

    @staticmethod
    def of(features: Tensor) -> Standardiser:
        var, mean = torch.var_mean(features, dim=0, correction=0)
        # relative to the value's own rounding error, so that scale does not matter
        floor = (mean.abs() * torch.finfo(features.dtype).eps * 8).square()
        varies = var > floor
        scale = torch.where(varies, var.clamp_min(torch.finfo(var.dtype).tiny).rsqrt(), torch.zeros_like(var))
        return Standardiser(mean, scale)

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale


class Fit:
    """Logistic regression on standardised [n, D] features, for several strengths one after the other.

    Args:
        x: [n, D] standardised features; y: int64 [n] below `classes`.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int):
        self.y, self.classes = y, classes
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        self.values = values.clamp_min(0)  # [D]
        self.vectors = vectors  # [D, D]
        self.z = x @ vectors  # features in the eigenvectors of their covariance
        self.weight = x.new_zeros(x.shape[1], classes)  # in the same coordinates
        self.bias = torch.bincount(y, minlength=classes).to(x).add(1e-3).log()
        self.bias -= self.bias.mean()

    def loss_and_gradient(self, weight: Tensor, bias: Tensor, strength: float) -> tuple[Tensor, Tensor, Tensor]:
        n = len(self.z)
        loss = strength / 2 * weight.square().sum()
        dw, db = strength * weight, torch.zeros_like(bias)
        for start in range(0, n, CHUNK):
            z, y = self.z[start : start + CHUNK], self.y[start : start + CHUNK]
            logp = F.log_softmax(z @ weight + bias, dim=1)
            loss = loss - logp.gather(1, y[:, None]).sum() / n
            error = logp.exp() / n
            error[torch.arange(len(y), device=y.device), y] -= 1 / n
            dw = dw + z.T @ error
            db = db + error.sum(0)
        return loss, dw, db

    def fit(self, strength: float, max_iter: int = MAX_ITER, tolerance: float = TOLERANCE) -> None:
        """Minimise at this strength, from the weights of the last fit."""
        scale = (self.values / 2 + strength).rsqrt()[:, None]
        v = (self.weight / scale).requires_grad_()
        b = (self.bias / 2**0.5).requires_grad_()
        solver = torch.optim.LBFGS(
            [v, b],
            max_iter=max_iter,
            tolerance_grad=tolerance,
            tolerance_change=torch.finfo(v.dtype).eps,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            with torch.no_grad():
                loss, dw, db = self.loss_and_gradient(v * scale, b * 2**0.5, strength)
                v.grad, b.grad = dw * scale, db * 2**0.5
            return loss

        solver.step(closure)  # type: ignore[arg-type]
        with torch.no_grad():
            self.weight, self.bias = v.detach() * scale, b.detach() * 2**0.5

    def scores(self, x: Tensor) -> Tensor:
        """Logits [m, classes] of standardised features [m, D]."""
        return x @ (self.vectors @ self.weight) + self.bias


def choose_strength(x: Tensor, y: Tensor, classes: int, seed: int) -> float | None:
    """The strength with the best accuracy, then the lowest cross-entropy, on a held-out part of the training
    samples; None when no class has two samples."""
    fit_rows, held = stratified_split(y.cpu().numpy(), VALIDATION, seed, "linear probe validation")
    if len(held) == 0:
        return None
    kept, out = torch.from_numpy(fit_rows).to(y.device), torch.from_numpy(held).to(y.device)
    standardise = Standardiser.of(x[kept])
    fit = Fit(standardise(x[kept]), y[kept], classes)
    x_out, y_out = standardise(x[out]), y[out]
    results = []
    for strength in STRENGTHS:
        fit.fit(strength)
        scores = fit.scores(x_out)
        results.append((-top_k_accuracy(scores, y_out, 1), float(F.cross_entropy(scores, y_out)), strength))
    return min(results)[2]


def run(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], dict[str, Any]]:
    """The protocol: accuracies in percent, and the constants it used.

    Args:
        train, test: float32 or float64 features [n, D] and [m, D]; the fit runs in their type.
        train_labels, test_labels: int64 class numbers below `classes`.
        seed: draws the validation part of the training samples.
        device: where the fit runs.
    """
    scores, config = scores_of(train, train_labels, test, classes, seed=seed, device=device)
    labels = test_labels.to(scores.device)
    return {f"top{k}": top_k_accuracy(scores, labels, k) for k in (1, 5)}, config


def scores_of(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, dict[str, Any]]:
    """Logits [m, classes] of the test features, and the constants used; arguments as for `run`."""
    with few_threads(train.numel() * classes):
        return _scores(train.to(device), train_labels.to(device), test.to(device), classes, seed)


@contextmanager
def few_threads(work: int) -> Iterator[None]:
    """One thread for small work: starting several for each of hundreds of short products takes longer than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if work < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scores(x: Tensor, y: Tensor, test: Tensor, classes: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    config: dict[str, Any] = {"grid": list(STRENGTHS), "validation": VALIDATION, "max_iter": MAX_ITER}
    strength = choose_strength(x, y, classes, seed)
    if strength is None:
        strength = STRENGTHS[len(STRENGTHS) // 2]
        config["note"] = "no class has two training samples, so the strength could not be chosen"
    standardise = Standardiser.of(x)
    fit = Fit(standardise(x), y, classes)
    fit.fit(strength, 4 * MAX_ITER, TOLERANCE / 10)
    config["strength"] = strength
    return fit.scores(standardise(test)), config
