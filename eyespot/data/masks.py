"""Pictures with a mask of class numbers for each pixel: where they lie, and how a mask is read.

    a folder         image/... beside mask/..., the same names below both (the suffix may differ); also train/image/...
                     beside train/mask/..., and image/train/... beside mask/train/...
    Parquet files    a column `mask` beside the column of pictures
    mosaic:PATH      made from labelled pictures (mosaic.py)
    objects:train    made of shapes, the numbers of the objects (objects.py)
    a map-style data set whose samples are (picture, mask), or dictionaries with "mask"

A mask is a picture of numbers without loss: grey or palette PNG, TIFF or BMP of 1, 8 or 16 bits. The numbers are taken
as they are stored, so a palette's entries count, not its colours.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eyespot.data.decode import BadFile, reason_of
from eyespot.data.names import Files
from eyespot.data.picture import READ_ERRORS, refuse_too_large
from eyespot.data.sources import Shape, Source, open_source
from eyespot.errors import UserError

PICTURES = ("image", "images")
MASKS = ("mask", "masks", "annotations")
"""Names of the two parallel folders; the last also of columns and keys."""
LOSSY = ("JPEG", "MPO", "JPEG2000")
REMEDY = (
    "give a folder with image/ beside mask/, a Parquet file with the columns image and mask (--mask-column), "
    "or mosaic:PATH"
)

ReadMask = Callable[[int], Tensor]


class MaskedSource(Source):
    """Pictures and their masks.

    Args:
        pictures: where the pictures are.
        rows: int64 [n], which of them have a mask.
        read: the mask int64 [H, W] of a row; raises BadFile.
        mask_names: {value: name} of the classes where they are known.
    """

    def __init__(self, pictures: Source, rows: np.ndarray, read: ReadMask, mask_names: Mapping[int, str] | None = None):
        self.pictures, self.rows, self.read = pictures, np.asarray(rows, np.int64), read
        self.name, self.threads, self.refused = pictures.name, pictures.threads, pictures.refused
        self.mask_names = dict(mask_names or {})

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, i: int) -> str:
        return self.pictures.path(int(self.rows[i]))

    def load(self, i: int, *, channels: int | None = None, plan: dict[str, Any] | None = None) -> Tensor:
        return self.pictures.load(int(self.rows[i]), channels=channels, plan=plan)

    def shape(self, i: int) -> Shape:
        return self.pictures.shape(int(self.rows[i]))

    def prepare(self) -> None:
        self.pictures.prepare()

    def mask(self, i: int) -> Tensor:
        """int64 [H, W], of the size of picture i. Raises BadFile."""
        return self.read(int(self.rows[i]))


def open_masked(
    data: Any, *, split: str | None = None, image_column: str | None = None, mask_column: str | None = None
) -> MaskedSource:
    """The pictures of a path, a name or an object that have a mask.

    Args:
        mask_column: column of Parquet files that holds the masks; None finds it.

    Raises:
        UserError: there are no masks.
    """
    if isinstance(data, MaskedSource):
        return data
    from eyespot.data.dataset import DatasetSource
    from eyespot.data.folder import FileSource
    from eyespot.data.mosaic import MosaicSource
    from eyespot.data.objects import ObjectSource
    from eyespot.data.parquet import ParquetSource

    source = open_source(data, split=split, image_column=image_column)
    everything = np.arange(len(source))
    if isinstance(source, MosaicSource):
        return MaskedSource(source, everything, source.mask, dict(enumerate(source.mask_names)))
    if isinstance(source, ObjectSource):
        return MaskedSource(source, everything, source.mask)
    if isinstance(source, ParquetSource):
        column = mask_column or next((n for n in MASKS if n in source.pictures), None)
        if column is not None:
            masks = source.other(column)
            return MaskedSource(source, everything, lambda i: read_mask(masks.raw(i), masks.path(i)))
    if isinstance(source, FileSource) and isinstance(data, str | Path):
        rows, files = _parallel(source)
        if len(rows):
            return MaskedSource(source, rows, lambda i: read_mask(files[i], str(files[i])))
    if isinstance(source, DatasetSource) and _mask_in(source.sample(0)) is not None:
        return MaskedSource(source, everything, lambda i: _of_sample(source, i))
    raise UserError(f"'{source.name}' has no masks to evaluate with; {REMEDY}.")


# --- parallel folders -----------------------------------------------------------------------------------------
def mask_folders(folders: Sequence[str]) -> set[str]:
    """The folders of masks among folders that are relative to a root, each with a slash at its end.

    A folder lies among masks when a part of its path is named so and a folder named as pictures stands beside it.
    """
    known = {folder[: k + 1] for folder in folders for k, letter in enumerate(folder) if letter == "/"}

    def has_sibling(parts: list[str], place: int) -> bool:
        front = "".join(f"{p}/" for p in parts[:place])
        return parts[place].lower() in MASKS and any(f"{front}{name}/" in known for name in PICTURES)

    paths = {folder: folder.split("/")[:-1] for folder in folders}
    return {f for f, parts in paths.items() if any(has_sibling(parts, k) for k in range(len(parts)))}


def without_masks(root: Path, files: Files) -> tuple[Path, Files]:
    """The pictures of a folder that also holds masks; below one folder of pictures that becomes the root."""
    masks = mask_folders(list(files.folders))
    if not masks:
        return root, files
    names = (files[i][len(files.prefix) :] for i in range(len(files)))
    kept = [name for name in names if name[: name.rfind("/") + 1] not in masks]
    front = kept[0].split("/")[0] if kept else ""
    if front in PICTURES and all(name.startswith(f"{front}/") for name in kept):
        root, kept = root / front, [name[len(front) + 1 :] for name in kept]
    return root, Files.of(str(root), kept)


def _parallel(source: Any) -> tuple[np.ndarray, list[Path]]:
    """Rows of pictures that have a mask in a parallel folder, and for every picture the file of its mask."""
    listed: dict[Path, dict[str, Path]] = {}
    rows, files = [], []
    for i in range(len(source)):
        found = _mask_file(Path(source.files[i]), listed)
        files.append(found or Path())
        if found is not None:
            rows.append(i)
    return np.array(rows, np.int64), files


def _mask_file(picture: Path, listed: dict[Path, dict[str, Path]]) -> Path | None:
    """The mask of a picture: under the same name, where the nearest folder named as pictures is one of masks."""
    parts = picture.parent.parts
    for place in range(len(parts) - 1, -1, -1):
        if parts[place].lower() in PICTURES:
            for name in MASKS:
                folder = Path(*parts[:place], name, *parts[place + 1 :])
                if folder not in listed:
                    inside = sorted(folder.iterdir()) if folder.is_dir() else []
                    listed[folder] = {file.stem: file for file in inside if not file.name.startswith(".")}
                if picture.stem in listed[folder]:
                    return listed[folder][picture.stem]
    return None


# --- samples of a data set object -----------------------------------------------------------------------------
def _mask_in(sample: Any) -> Any:
    """The mask in a sample, or None."""
    if isinstance(sample, Mapping):
        value = next((sample[key] for key in MASKS if key in sample), None)
    else:
        value = sample[1] if isinstance(sample, tuple | list) and len(sample) > 1 else None
    plane = isinstance(value, Image.Image) or getattr(value, "ndim", 0) in (2, 3)
    return value if plane else None


def _of_sample(source: Any, i: int) -> Tensor:
    try:
        mask = _mask_in(source.sample(i))
        if mask is None:
            raise ValueError("has no mask")
        return torch.from_numpy(_numbers(np.asarray(mask)))
    except READ_ERRORS as error:
        raise BadFile(source.path(i), reason_of(error)) from error


# --- one mask -------------------------------------------------------------------------------------------------
def read_mask(raw: bytes | Path, name: str) -> Tensor:
    """The numbers of an encoded mask, int64 [H, W]. Raises BadFile."""
    try:
        with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw) as image:
            refuse_too_large(image.height, image.width)
            if image.format in LOSSY:
                raise ValueError(f"is a {image.format}, which changes the numbers of a mask: save it as PNG")
            return torch.from_numpy(_numbers(np.asarray(image)))
    except READ_ERRORS as error:
        raise BadFile(name, reason_of(error)) from error


def _numbers(array: np.ndarray) -> np.ndarray:
    """Whole numbers [H, W] of a stored mask; a plane that is written three times counts once. Raises ValueError."""
    if array.ndim == 3:
        array = array if array.shape[2] in (1, 3) else array.transpose(1, 2, 0)
        if array.shape[2] not in (1, 3) or (array != array[:, :, :1]).any():
            raise ValueError("holds colours where class numbers are needed: save it as a grey or palette PNG")
        array = array[:, :, 0]
    if array.ndim != 2 or array.dtype.kind not in "uib":
        raise ValueError(f"holds {array.dtype} of shape {array.shape} where class numbers are needed")
    return array.astype(np.int64)
