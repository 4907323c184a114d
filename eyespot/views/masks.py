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


def context_and_targets(
    draws: Draws,
    grid: int | tuple[int, int],
    targets: int = 4,
    *,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    least: int = 10,
    attempts: int = 20,
    name: str = "blocks",
) -> tuple[Tensor, Tensor]:
    """I-JEPA's blocks (Assran et al. 2023, section 3): some target blocks, and a large context block without them.

    Sizes are drawn once for the whole global batch, places for every sample. A block of share s of the N tokens and
    aspect a has round(sqrt(N s a)) rows and round(sqrt(N s / a)) columns; the context has aspect 1. Where the targets
    leave less than `least` tokens of the context, the sample's places are drawn again; after `attempts` draws the one
    that leaves most is taken. (The authors' code lets context and targets overlap then; here they never do.)

    Args:
        draws: B draws.
        grid: patches a side, or (rows, columns).
        targets: number T of target blocks; they may overlap each other.

    Returns:
        context: bool [B, rows, columns], true where the context is.
        ids: int64 [B, T, n], the tokens of each target block, row-major.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    scale, aspect, wide = draws.step_uniform(f"{name}/size", 3).tolist()
    size = _block_size(rows, columns, _between(target_scale, scale), _between(target_aspect, aspect))
    large = _block_size(rows, columns, _between(context_scale, wide), 1.0)
    context = np.zeros((len(draws), rows, columns), dtype=bool)
    tokens = np.zeros((len(draws), targets, size[0] * size[1]), dtype=np.int64)
    left = np.full(len(draws), -1)
    for attempt in range(attempts):
        u = draws.uniform64(f"{name}{attempt}", 2 * targets + 2).reshape(len(draws), targets + 1, 2)
        places, ids = _place(u[:, 1:], size, rows, columns)
        seen = _place(u[:, :1], large, rows, columns)[0][:, 0] & ~places.any(1)
        count = seen.sum((1, 2))
        better = (left < least) & (count > left)
        context[better], tokens[better], left[better] = seen[better], ids[better], count[better]
        if (left >= least).all():
            break
    return torch.from_numpy(context).to(draws.device), torch.from_numpy(tokens).to(draws.device)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share


def _block_size(rows: int, columns: int, scale: float, aspect: float) -> tuple[int, int]:
    area = rows * columns * scale
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(rows, max(1, height)), min(columns, max(1, width))


def _place(u: np.ndarray, size: tuple[int, int], rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of one size at places u [B, T, 2] in [0, 1): bool [B, T, rows, columns], and their tokens [B, T, n]."""
    (height, width), (b, t) = size, u.shape[:2]
    top = np.floor(u[..., 0] * (rows - height + 1)).astype(np.int64)[..., None, None]
    start = np.floor(u[..., 1] * (columns - width + 1)).astype(np.int64)[..., None, None]
    ids = ((top + np.arange(height)[:, None]) * columns + start + np.arange(width)).reshape(b, t, height * width)
    block = np.zeros((b, t, rows * columns), dtype=bool)
    np.put_along_axis(block, ids, True, axis=2)
    return block.reshape(b, t, rows, columns), ids


def first_tokens(mask: Tensor, count: int) -> Tensor:
    """The first `count` places where each row of the mask [B, L] is true: int64 [B, count], in their order."""
    return (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, :count]


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
