"""Views of pictures, made in batches on the device of the draws, with their geometry.

    >>> spec = ViewSpec(size=32)
    >>> images = torch.randint(0, 256, (8, 3, 40, 48), dtype=torch.uint8)   # or a list of [C, H, W] of any sizes
    >>> a = view(images, draws.scope("view1"), spec)
    >>> b = view(images, draws.scope("view2"), spec, overlap_with=a)
    >>> a.pixels, a.box                   # [8, 3, 32, 32] in [0, 1]; [8, 4] top, left, height, width
    >>> overlap_boxes(a, b)               # the shared region, as each view sees it

The order is torchvision's usual one: random resized crop, flips, rotation, colour jitter, grey, blur, solarise. The
view of a sample is a function of (seed, epoch, sample, scope) alone, whatever the batch. Pixels are in [0, 1]; views
never normalise, the backbone does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.errors import UserError, unknown
from eyespot.views import crop, filters
from eyespot.views.color import LinearPlan, Strength, draw_color, exact_
from eyespot.views.resample import Images, each, nearest, piece, resize, resized_crops, rotate, to_unit


@dataclass(frozen=True)
class ViewSpec:
    """How a view is drawn. Probabilities and ranges are those of torchvision's transforms."""

    size: int
    """Side of the view in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that the crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the crop."""
    centre_box: float | None = None
    """Side of a box in the middle of the picture, as a share, in which the crop's centre lies; None: anywhere."""
    centre_beta: float = 0.1
    """a of Beta(a, a), by which the centre is drawn in that box; small values keep it near the box's edges."""
    flip: float = 0.5
    """Probability of a left-right mirror."""
    vertical_flip: float = 0.0
    """Probability of an up-down mirror."""
    rotation: float = 0.0
    """Largest angle in degrees, to both sides; corners that come from outside the crop are 0."""
    jitter: Strength | None = (0.4, 0.4, 0.4, 0.1)
    """Strengths of brightness, contrast, saturation and hue."""
    jitter_p: float = 0.8
    """Probability of the colour jitter."""
    grey_p: float = 0.2
    """Probability of losing the colours."""
    blur_p: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of its sigma in pixels of the view; the kernel reaches three times the largest."""
    solarize_p: float = 0.0
    """Probability of solarisation."""
    solarize_threshold: float = 0.5
    """Values from here on are inverted."""
    interpolation: str = "bilinear"
    """"bilinear" or "bicubic", antialiased."""
    color: str = "exact"
    """"exact" (torchvision's operations) or "linear" (one matrix a picture); see `eyespot.views.color`."""

    def __post_init__(self) -> None:
        for name in ("flip", "vertical_flip", "jitter_p", "grey_p", "blur_p", "solarize_p", "solarize_threshold"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        _require(self.size >= 1, "size", self.size, "at least 1 pixel")
        _require(0 < self.scale[0] <= self.scale[1] <= 1, "scale", self.scale, "two increasing shares in (0, 1]")
        _require(0 < self.ratio[0] <= self.ratio[1], "ratio", self.ratio, "two increasing positive numbers")
        _require(0 < self.blur_sigma[0] <= self.blur_sigma[1], "blur_sigma", self.blur_sigma, "increasing, above 0")
        _require(self.centre_box is None or 0 <= self.centre_box <= 1, "centre_box", self.centre_box, "between 0 and 1")
        _require(self.centre_beta > 0, "centre_beta", self.centre_beta, "above 0")
        _require(0 <= self.rotation <= 180, "rotation", self.rotation, "between 0 and 180 degrees")
        strong = self.jitter is None or (len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= 0.5)
        _require(strong, "jitter", self.jitter, "four strengths of at least 0, the last (hue) at most 0.5, or None")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise unknown("interpolation", self.interpolation, ("bilinear", "bicubic"))
        if self.color not in ("exact", "linear"):
            raise unknown("color mode", self.color, ("exact", "linear"))


def _require(good: bool, name: str, value: object, rule: str) -> None:
    if not good:
        raise UserError(f"{name}={value} of a view must be {rule}.")


@dataclass
class View:
    """Pixels and where they come from; all tensors on the device of the draws."""

    pixels: Tensor
    """[B, C, S, S] in [0, 1]."""
    box: Tensor
    """float32 [B, 4] (top, left, height, width) of the crop in source pixels."""
    source: Tensor
    """float32 [B, 2] (height, width) of the pictures."""
    flip: Tensor
    """bool [B], mirrored left-right."""
    vflip: Tensor
    """bool [B], mirrored up-down."""
    angle: Tensor
    """float32 [B] degrees counter-clockwise, applied after the mirrors."""
    jitter: Tensor
    """float32 [B, 4] factors of brightness, contrast, saturation and hue; (1, 1, 1, 0) where not jittered."""
    grey: Tensor
    """bool [B], colours removed."""
    blur: Tensor
    """float32 [B] sigma in pixels, 0 where not blurred."""
    solarized: Tensor
    """bool [B], solarised."""

    def to_source(self, points: Tensor) -> Tensor:
        """Where points [B, N, 2] (x, y) in the view's [0, 1] coordinates lie in source pixels, [B, N, 2] (x, y)."""
        return crop.to_source(points, self.box, self.flip, self.vflip, self.angle)


@torch.no_grad()
def view(
    images: Images,
    draws: Draws,
    spec: ViewSpec,
    *,
    overlap_with: View | None = None,
    min_overlap: float = 0.01,
    tries: int = 10,
) -> View:
    """One view of every picture.

    Args:
        images: uint8 [B, C, H, W] or floating in [0, 1], or a list of B pictures [C, H, W] of any sizes.
        draws: B draws; two views of a batch come from two scopes, `draws.scope("view1")` and `draws.scope("view2")`.
        spec: how the view is drawn.
        overlap_with: another view of the same pictures. The crop is then drawn again, up to `tries` times, until it
            shares `min_overlap` of its own area with that view's crop; else it is unconstrained (SlotCon's rule).

    Raises:
        UserError: for an empty batch, pictures of no size or of different channels, or another number of draws.
    """
    images = _checked(images, len(draws))
    source = _sides(images)
    flip, vflip = draws.uniform64("flip") < spec.flip, draws.uniform64("vflip") < spec.vertical_flip
    if overlap_with is None and spec.centre_box is not None:
        boxes = crop.centred_boxes(draws, source, spec.scale, spec.ratio, spec.centre_box, spec.centre_beta)
    elif overlap_with is None:
        boxes = crop.random_boxes(draws, source, spec.scale, spec.ratio)
    else:
        other = overlap_with.box.cpu().numpy()
        boxes = crop.overlapping_boxes(
            draws, source, other, spec.scale, spec.ratio, min_overlap=min_overlap, tries=tries
        )
    with torch.autocast(draws.device.type, enabled=False):
        pixels = resized_crops(images, boxes, flip, vflip, spec.size, spec.interpolation, draws.device)
        angle = (2 * draws.uniform64("rotation") - 1) * spec.rotation
        if spec.rotation > 0:
            pixels = rotate(to_unit(pixels), _tensor(angle, draws))
        look = _appearance(pixels, draws, spec)
    return View(
        box=_tensor(boxes, draws),
        source=_tensor(source, draws),
        flip=torch.from_numpy(flip).to(draws.device),
        vflip=torch.from_numpy(vflip).to(draws.device),
        angle=_tensor(angle, draws),
        **look,
    )


def _tensor(values: np.ndarray, draws: Draws) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(draws.device)


def _appearance(pixels: Tensor, draws: Draws, spec: ViewSpec) -> dict[str, Tensor]:
    """Colour, blur and solarisation, piece by piece so that a piece stays in the cache; what was drawn goes along."""
    color = draw_color(draws, spec.jitter, spec.jitter_p, spec.grey_p, pixels.shape[1])
    low, high = spec.blur_sigma
    sigma = (low + (high - low) * draws.uniform64("sigma")) * (draws.uniform64("blur") < spec.blur_p)
    solarized = draws.uniform64("solarize") < spec.solarize_p
    radius = filters.blur_radius(high, spec.size)
    # contiguous even where the pictures came channels last: what follows works in place on flat views of it
    dtype = pixels.dtype if pixels.is_floating_point() else torch.float32
    out = pixels if pixels.dtype == dtype and pixels.is_contiguous() else pixels.new_empty(pixels.shape, dtype=dtype)
    linear = LinearPlan.of(color, out) if spec.color == "linear" else None
    # The exact mode finds its own pieces among pictures with the same order of operations: give it more to group.
    step = piece(2 * pixels[0].numel(), pixels.device) * (1 if linear is not None else 16)
    for a in range(0, len(pixels), step):
        rows = slice(a, a + step)
        x = out[rows]
        if out is not pixels:
            x.copy_(pixels[rows])
        if not pixels.is_floating_point():
            x.mul_(1 / 255)
        else:
            # rounding of the resize may leave [0, 1]; colours clamp that, but not in every batch for every picture
            x.clamp_(0, 1)
        if linear is not None:
            linear.apply_(x, rows)
        else:
            exact_(x, color.rows(rows), spec.jitter)
        blurred = np.flatnonzero(sigma[rows])
        filters.blur_(x, _index(blurred, draws), _tensor(sigma[rows][blurred], draws), radius)
        filters.solarize_(x, _index(np.flatnonzero(solarized[rows]), draws), spec.solarize_threshold)
    return {
        "pixels": out,
        "jitter": _tensor(color.factors, draws),
        "grey": torch.from_numpy(color.grey).to(draws.device),
        "blur": _tensor(sigma, draws),
        "solarized": torch.from_numpy(solarized).to(draws.device),
    }


def _index(rows: np.ndarray, draws: Draws) -> Tensor:
    return torch.from_numpy(rows).to(draws.device)


def _checked(images: Images, count: int | None = None) -> Images:
    """The pictures, of one type that the room works with."""
    if isinstance(images, Tensor) and images.dim() != 4:
        raise UserError(f"A batch of pictures must be [B, C, H, W]; got a tensor of shape {list(images.shape)}.")
    if not len(images):
        raise UserError("There are no pictures in the batch; give at least one.")
    if count is not None and len(images) != count:
        raise UserError(f"{len(images)} pictures came with draws for {count}; give draws one index a picture.")
    shapes = {tuple(image.shape) for image in ([images[0]] if isinstance(images, Tensor) else images)}
    wrong = next((shape for shape in shapes if len(shape) != 3 or 0 in shape), None)
    if wrong is not None:
        raise UserError(f"A picture must be [C, H, W] with at least one pixel; got shape {list(wrong)}.")
    if len({shape[0] for shape in shapes}) > 1:
        raise UserError(f"Pictures of {sorted({s[0] for s in shapes})} channels are in one batch; decode all alike.")
    types = {images.dtype} if isinstance(images, Tensor) else {image.dtype for image in images}
    if not all(t == torch.uint8 or t.is_floating_point for t in types):
        raise UserError(f"Pictures of type {types.pop()} are not known; give uint8, or floating values in [0, 1].")
    if len(types) == 1 and types <= {torch.uint8, torch.float32, torch.float64}:
        return images
    return to_unit(images) if isinstance(images, Tensor) else [to_unit(image).float() for image in images]


def _sides(images: Images) -> np.ndarray:
    """int64 [B, 2], height and width."""
    if isinstance(images, Tensor):
        return np.tile(np.array(images.shape[-2:]), (len(images), 1))
    return np.array([image.shape[-2:] for image in images])


def two_views(images: Images, draws: Draws, spec1: ViewSpec, spec2: ViewSpec | None = None) -> dict[str, Tensor]:
    """{"view1": [B, C, S, S], "view2": ...}, from the scopes of the same names; `spec2` defaults to `spec1`."""
    return {
        "view1": view(images, draws.scope("view1"), spec1).pixels,
        "view2": view(images, draws.scope("view2"), spec2 or spec1).pixels,
    }


def multi_crop(
    images: Images, draws: Draws, globals_: Sequence[ViewSpec], locals_: ViewSpec, n_local: int
) -> list[View]:
    """Large views by `globals_` (scopes "view1", "view2", ...), then `n_local` small ones (scopes "local1", ...),
    as SwAV and DINO draw them."""
    large = [view(images, draws.scope(f"view{i + 1}"), spec) for i, spec in enumerate(globals_)]
    return large + [view(images, draws.scope(f"local{i + 1}"), locals_) for i in range(n_local)]


def overlap_boxes(a: View, b: View) -> tuple[Tensor, Tensor]:
    """The region that two views share, in the [0, 1] coordinates of each, mirrored where that view was mirrored.

    Returns:
        Two [B, 4] (x1, y1, x2, y2); boxes of no area where the views share nothing.

    Raises:
        UserError: for rotated views, whose shared region is no box.
    """
    if bool(a.angle.any()) or bool(b.angle.any()):
        raise UserError("Rotated views share no box; set rotation=0, or map points with View.to_source.")
    return crop.overlap_box(a.box, b.box, a.flip, a.vflip), crop.overlap_box(b.box, a.box, b.flip, b.vflip)


@torch.no_grad()
def clean(
    images: Images,
    size: int,
    *,
    crop_ratio: float | None = None,
    interpolation: str = "bilinear",
    device: torch.device | str | None = None,
) -> Tensor:
    """The evaluation view: antialiased resize of the shorter side to size / crop_ratio, then the central crop.

    Args:
        images: as for `view`.
        size: side of the view.
        crop_ratio: share of the shorter side that is kept; None is 0.875 above 64 pixels and 1 up to there, where
            pictures are small already. A picture of size x size stays as it is.
        device: where the result is made; None leaves it where the pictures are.

    Returns:
        [B, C, size, size] in [0, 1].
    """
    images = _checked(images)
    ratio = crop_ratio if crop_ratio is not None else (1.0 if size <= 64 else 0.875)
    _require(0 < ratio <= 1, "crop_ratio", crop_ratio, "in (0, 1]")
    short, where = round(size / ratio), torch.device(device) if device is not None else images[0].device

    def one(i: int) -> Tensor:
        return _central(images[i].to(where), size, short, interpolation)

    with torch.autocast(where.type, enabled=False):
        if isinstance(images, Tensor) and tuple(images.shape[-2:]) == (size, size):
            return to_unit(images.to(where))
        parts = each(one, len(images), threads=images[0].dtype == torch.uint8 and where.type == "cpu")
        if any(part.dtype != parts[0].dtype for part in parts):
            parts = [to_unit(part) for part in parts]
        return to_unit(torch.stack(parts))


def _central(image: Tensor, size: int, short: int, interpolation: str) -> Tensor:
    height, width = image.shape[-2:]
    if (height, width) == (size, size):
        return image
    # Only the middle of a very long picture is seen; resizing the rest could take any amount of memory.
    most = 8 * min(height, width)
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    image = image[:, top : height - top, left : width - left]
    height, width = image.shape[-2:]
    scaled = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    image = nearest(image, scaled) if interpolation == "nearest" else resize(image, scaled, interpolation)
    top, left = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return image[:, top : top + size, left : left + size]


def clean_masks(masks: Sequence[Tensor], size: int) -> Tensor:
    """What `clean` with a crop ratio of 1 makes of the masks of its pictures: int64 [B, size, size].

    Args:
        masks: whole numbers [H, W] each, of the size of its picture; a pixel takes the number at its middle.
    """
    return torch.stack([_central(mask[None], size, size, "nearest")[0] for mask in masks])
