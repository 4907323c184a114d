"""Masks over patches, tubes and frequencies. Token masks are boolean and true where a token is hidden (removed)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.errors import UserError


def _share(ratio: float) -> float:
    if not 0 <= ratio <= 1:
        raise UserError(f"mask ratio {ratio} must be between 0 and 1.")
    return ratio


def random_mask(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """MAE's random mask (He et al. 2022): the tokens with the least noise stay.

    Args:
        noise: [B, L] uniform.
        ratio: share that is removed; int(L (1 - ratio)) tokens stay.

    Returns:
        keep: int64 [B, K] indices of the tokens that stay, in the order of their noise.
        mask: bool [B, L], true where removed.
        restore: int64 [B, L], puts (kept, removed) tokens back in order: `torch.cat([kept, tokens], 1).gather(1, ...)`.
    """
    count = int(noise.shape[1] * (1 - _share(ratio)))
    order = noise.argsort(dim=1, stable=True)
    restore = order.argsort(1)
    return order[:, :count], restore >= count, restore


def tube_mask(noise: Tensor, ratio: float, slices: int) -> Tensor:
    """VideoMAE's tube mask (Tong et al. 2022): one spatial mask repeated over all slices of time.

    Args:
        noise: [B, L] uniform over the places of one slice.
        ratio: share that is hidden, int(ratio L) places in every slice.
        slices: T.

    Returns:
        bool [B, T * L], slice by slice.
    """
    hidden = int(_share(ratio) * noise.shape[1])
    rank = noise.argsort(dim=1, stable=True).argsort(1)
    return (rank < hidden).repeat(1, slices)


def simmim_mask(noise: Tensor, size: int, unit: int, patch: int, ratio: float = 0.6) -> Tensor:
    """SimMIM's mask of square units (Xie et al. 2022), larger than the patches of the model.

    Args:
        noise: [B, (size / unit)^2] uniform.
        size, unit, patch: sides in pixels of picture, masked unit and patch; each divides the one before.
        ratio: share of units that are hidden, ceil(ratio n) of n.

    Returns:
        bool [B, size / patch, size / patch].
    """
    if size % unit or unit % patch:
        raise UserError(f"Mask unit {unit} must divide the picture's {size} px and be a multiple of patch {patch}.")
    side = size // unit
    if noise.shape[1] != side * side:
        raise UserError(f"A picture of {size} px has {side * side} units of {unit} px, but noise for {noise.shape[1]}.")
    # rounded before ceil: 0.6 * 25 is 15.000000000000002
    hidden = math.ceil(round(_share(ratio) * side * side, 9))
    rank = noise.argsort(dim=1, stable=True).argsort(1)
    units = (rank < hidden).view(-1, side, side)
    return units.repeat_interleave(unit // patch, 1).repeat_interleave(unit // patch, 2)


def block_mask(
    draws: Draws,
    grid: int | tuple[int, int],
    hidden: int | Tensor | np.ndarray,
    *,
    min_area: int = 16,
    min_aspect: float = 0.3,
    attempts: int = 10,
    name: str = "block",
) -> Tensor:
    """Masks of rectangular blocks (BEiT, Bao et al. 2022; iBOT, Zhou et al. 2022), added until enough is hidden.

    Each block has an area uniform in [min_area, what is left to hide] and a log-uniform aspect, at a random place; it
    is taken when it is smaller than the grid on both sides and hides at least one new token and no more than what is
    left. A sample is done when its count is reached or `attempts` blocks in a row were refused, so at most `hidden`
    tokens are.

    Args:
        draws: B draws.
        grid: patches a side, or (rows, columns).
        hidden: how many tokens to hide, one number or [B].
        min_area: least area of a block in tokens; 16 in BEiT, (min(rows, columns) // 3)^2 in iBOT.
        min_aspect: aspects lie in [min_aspect, 1 / min_aspect].

    Returns:
        bool [B, rows, columns] on the device of the draws.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    wanted = hidden.cpu().numpy() if isinstance(hidden, Tensor) else np.asarray(hidden)
    wanted = np.broadcast_to(wanted, (len(draws),)).astype(np.int64)
    mask = np.zeros((len(draws), rows, columns), dtype=bool)
    refused = np.zeros(len(draws), dtype=np.int64)
    down, across = np.arange(rows)[:, None], np.arange(columns)
    for attempt in range(attempts * rows * columns):
        left = wanted - mask.sum((1, 2))
        active = (left > 0) & (refused < attempts)
        if not active.any():
            break
        u = draws.uniform64(f"{name}{attempt}", 4)
        area = min_area + u[:, 0] * (left - min_area)
        aspect = np.exp(math.log(min_aspect) * (1 - 2 * u[:, 1]))
        height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        top, start = np.floor(u[:, 2] * (rows - height + 1)), np.floor(u[:, 3] * (columns - width + 1))
        top, start, bottom, end = (v[:, None, None] for v in (top, start, top + height, start + width))
        block = (down >= top) & (down < bottom) & (across >= start) & (across < end)
        new = (block & ~mask).sum((1, 2))
        taken = active & (height < rows) & (width < columns) & (new > 0) & (new <= left)
        mask |= block & taken[:, None, None]
        refused = np.where(taken, 0, refused + 1)
    return torch.from_numpy(mask).to(draws.device)


def frequency_mask(
    size: int | tuple[int, int], radius1: float, radius2: float, low_pass: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """MFM's disc of frequencies (Xie et al. 2023), over a shifted spectrum whose zero frequency is at (H // 2, W // 2).

    Args:
        size: side, or (H, W).
        radius1: frequencies nearer than this are the low ones.
        radius2: frequencies from here on count with the low ones; larger than the picture switches that off.
        low_pass: bool [B], true keeps the low frequencies, false the others.

    Returns:
        [B, 1, H, W], 1 where a frequency is kept.
    """
    height, width = (size, size) if isinstance(size, int) else size
    y = torch.arange(height, device=low_pass.device)[:, None] - height // 2
    x = torch.arange(width, device=low_pass.device) - width // 2
    distance = y.square() + x.square()
    low = (distance < radius1**2) | (distance >= radius2**2)
    return torch.where(low_pass[:, None, None, None], low, ~low).to(dtype)
