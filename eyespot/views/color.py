"""Colour jitter and grey on a batch, one set of factors a picture: torchvision's operations, or one matrix a picture.

*Exact* mode applies torchvision's brightness, contrast, saturation and hue (in HSV) one after the other, in an order
drawn per sample, clamped after each, on floating pictures. *Linear* mode folds the four and grey into one 3 x 4 matrix
a picture, applied once and clamped once. It differs from the exact mode in three ways: hue turns the colours about the
grey axis in RGB, which keeps r + g + b, where HSV keeps max(r, g, b); values are clamped at the end only; and the order
is fixed (brightness, contrast, saturation, hue, grey). On photographs jittered with (0.4, 0.4, 0.4, 0.1) the two modes
differ by 0.012 a pixel on average, where the jitter itself moves a pixel by 0.093.

Pictures that do not have three channels get brightness and contrast (about the mean of all channels) in both modes;
saturation, hue and grey have no meaning there and are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.views.resample import piece

LUMA = (0.2989, 0.587, 0.114)
"""Weights of grey (ITU-R 601-2, with the digits that torchvision uses)."""
GREY = tuple(weight / sum(LUMA) for weight in LUMA)
"""The same with sum 1, for the linear mode: no matrix changes a grey picture."""

Strength = tuple[float, float, float, float]
"""Strengths of brightness, contrast, saturation and hue."""


@dataclass
class ColorDraw:
    """What happens to the colours of each picture, on the host."""

    jittered: np.ndarray
    """bool [B], whether the picture is jittered."""
    factors: np.ndarray
    """float64 [B, 4] brightness, contrast, saturation and hue; (1, 1, 1, 0) where not jittered."""
    order: np.ndarray
    """int64 [B, 4], which operation comes first, second, third and fourth (exact mode)."""
    grey: np.ndarray
    """bool [B], whether the picture loses its colours."""

    def rows(self, rows: slice | np.ndarray) -> ColorDraw:
        """The draws of some rows of the batch."""
        return ColorDraw(self.jittered[rows], self.factors[rows], self.order[rows], self.grey[rows])


def draw_color(draws: Draws, jitter: Strength | None, jitter_p: float, grey_p: float, channels: int) -> ColorDraw:
    """Draws as torchvision's ColorJitter in RandomApply, then RandomGrayscale: factors uniform in
    [max(0, 1 - s), 1 + s] for brightness, contrast and saturation of strength s, hue uniform in [-s, s]."""
    batch, colored = len(draws), channels == 3
    factors = np.tile([1.0, 1.0, 1.0, 0.0], (batch, 1))
    jittered = np.zeros(batch, dtype=bool)
    order = np.tile(np.arange(4), (batch, 1))
    if jitter is not None and any(jitter) and jitter_p > 0:
        strength = np.array(jitter) * ([1, 1, 1, 1] if colored else [1, 1, 0, 0])
        low = np.array([*np.maximum(0.0, 1.0 - strength[:3]), -strength[3]])
        high = np.array([*(1.0 + strength[:3]), strength[3]])
        jittered = draws.uniform64("jitter") < jitter_p
        drawn = low + (high - low) * draws.uniform64("factors", 4)
        factors = np.where(jittered[:, None], drawn, factors)
        order = draws.uniform64("order", 4).argsort(1, kind="stable")
    grey = draws.uniform64("grey") < grey_p if colored and grey_p > 0 else np.zeros(batch, dtype=bool)
    return ColorDraw(jittered, factors, order, grey)


# --- exact: torchvision's operations, in place on floating [B, C, H, W] with one factor a picture -------------------
def _column(factor: Tensor, x: Tensor) -> Tensor:
    return factor.to(x).view(-1, 1, 1, 1)


def grey(x: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W], `rgb_to_grayscale`."""
    return x[:, :1].mul(LUMA[0]).add_(x[:, 1:2], alpha=LUMA[1]).add_(x[:, 2:], alpha=LUMA[2])


def _blend_(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).add_(other.mul_(1.0 - factor)).clamp_(0, 1)


def brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """`adjust_brightness` in place, factor [B]."""
    return x.mul_(_column(factor, x)).clamp_(0, 1)


def contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """`adjust_contrast` in place: away from the mean grey of the picture, factor [B]."""
    mean = x.mean((2, 3), keepdim=True)
    mean = grey(mean) if x.shape[1] == 3 else mean.mean(1, keepdim=True)
    return _blend_(x, mean, _column(factor, x))


def saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """`adjust_saturation` in place, factor [B]; three channels."""
    return _blend_(x, grey(x), _column(factor, x))


def hue_(x: Tensor, shift: Tensor) -> Tensor:
    """`adjust_hue` in place: the hue of HSV moved by `shift` [B] of a full turn; three channels.

    With hue h in sixths of a turn, red is value - chroma * clamp(2 - |h - 3|, 0, 1), green and blue are
    value - chroma * clamp(|h - p| - 1, 0, 1) with p = 2 and 4.
    """
    r, g, b = x.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    inverse = chroma.clamp_min(1e-12).reciprocal_()  # where chroma is 0 so are the differences
    hue = torch.where(value == g, (b - r).mul_(inverse).add_(2), (r - g).mul_(inverse).add_(4))
    hue = torch.where(value == r, (g - b).mul_(inverse), hue)
    hue.add_(shift.to(x).view(-1, 1, 1), alpha=6)
    hue.sub_(inverse.copy_(hue).div_(6).floor_(), alpha=6)
    for channel, peak in ((r, 3), (g, 2), (b, 4)):
        t = torch.sub(hue, peak, out=inverse).abs_()
        t = t.neg_().add_(2) if peak == 3 else t.sub_(1)
        torch.sub(value, t.clamp_(0, 1).mul_(chroma), out=channel)
    return x


def grey_(x: Tensor) -> Tensor:
    """Three equal channels of grey, in place."""
    return x.copy_(grey(x).expand_as(x))


def exact_(x: Tensor, draw: ColorDraw, strength: Strength | None) -> Tensor:
    """Jitter and grey in place, as torchvision's functions one after the other.

    Args:
        x: floating [B, C, S, S] in [0, 1].
        draw: the draws of these pictures, see `draw_color`.
        strength: strengths of the jitter; an operation of strength 0 is left out.
    """
    for rows in _groups(draw, piece(2 * x[0].numel(), x.device)):
        index = torch.from_numpy(rows).to(x.device)
        part = x[index] if len(rows) > 1 else x[rows[0] : rows[0] + 1]
        factors = torch.from_numpy(draw.factors[rows]).to(part)
        if draw.jittered[rows[0]] and strength is not None:
            for which in draw.order[rows[0]].tolist():
                if strength[which] and (x.shape[1] == 3 or which < 2):
                    OPERATIONS[which](part, factors[:, which])
        if draw.grey[rows[0]]:
            grey_(part)
        if len(rows) > 1:
            x[index] = part
    return x


def _groups(draw: ColorDraw, most: int) -> list[np.ndarray]:
    """Rows that go through the same operations in the same order, at most `most` together; untouched rows left out."""
    key = draw.order @ np.array([64, 16, 4, 1]) * 2
    key = np.where(draw.jittered, key, 1 << 10) + draw.grey
    rows = np.flatnonzero(draw.jittered | draw.grey)
    rows = rows[np.argsort(key[rows], kind="stable")]
    cuts = np.flatnonzero(np.diff(key[rows])) + 1
    groups = np.split(rows, cuts) if len(rows) else []
    return [group[a : a + most] for group in groups for a in range(0, len(group), most)]


OPERATIONS = (brightness_, contrast_, saturation_, hue_)


# --- linear: one matrix a picture -----------------------------------------------------------------------------------
def hue_matrix(shift: np.ndarray) -> np.ndarray:
    """Rotations [B, 3, 3] about the grey axis of RGB by `shift` [B] of a full turn; a third takes red to green."""
    turn = 2 * math.pi * shift[:, None, None]
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return np.cos(turn) * np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) / 3


def color_matrix(draw: ColorDraw, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The linear mode: y = A x + k * mean grey of the picture.

    Returns:
        A float64 [B, C, C] (its rows sum to brightness x contrast), and k float64 [B], what contrast adds of the mean.
    """
    brightness, contrast, saturation, shift = draw.factors.T
    scale, added = brightness * contrast, (1 - contrast) * brightness
    if channels != 3:
        return scale[:, None, None] * np.eye(channels), added
    luma = np.tile(GREY, (3, 1))
    s = saturation[:, None, None]
    matrix = hue_matrix(shift) @ (s * np.eye(3) + (1 - s) * luma)
    matrix = np.where(draw.grey[:, None, None], luma @ matrix, matrix)
    return scale[:, None, None] * matrix, added


@dataclass
class LinearPlan:
    """The matrices of a batch, on its device."""

    touched: np.ndarray
    """bool [B], which pictures change."""
    matrix: Tensor
    """[B, C, C]."""
    added: Tensor
    """[B]."""

    @classmethod
    def of(cls, draw: ColorDraw, like: Tensor) -> LinearPlan:
        """For the draws of a batch and a tensor [B, C, ...] of the type and device wanted."""
        matrix, added = (torch.from_numpy(a).to(like) for a in color_matrix(draw, like.shape[1]))
        return cls(draw.jittered | draw.grey, matrix, added)

    def apply_(self, x: Tensor, rows: slice) -> Tensor:
        """Jitter and grey of a piece of the batch in place, then one clamp: floating [n, C, S, S] in [0, 1]."""
        touched = np.flatnonzero(self.touched[rows])
        if not len(touched):
            return x
        matrix, added = self.matrix[rows], self.added[rows]
        if len(touched) > len(x) // 2:
            return _affine_(x, matrix, added)
        index = torch.from_numpy(touched).to(x.device)
        x[index] = _affine_(x[index], matrix[index], added[index])
        return x


def _affine_(x: Tensor, matrix: Tensor, added: Tensor) -> Tensor:
    flat = x.flatten(2)
    mean = flat.mean(2)  # [B, C]
    if x.shape[1] != 3:
        offset = (mean.mean(1) * added)[:, None, None]
        flat.mul_(matrix[:, :1, :1]).add_(offset).clamp_(0, 1)
        return x
    offset = (mean @ mean.new_tensor(GREY) * added)[:, None, None].expand(-1, 3, 1)
    torch.clamp(torch.baddbmm(offset, matrix, flat), 0, 1, out=flat)
    return x
