"""Any map-style PyTorch data set, or any sequence of pictures, as a source.

A sample may be a pillow image, a tensor [C, H, W] or [H, W], a numpy array [H, W, C] or [H, W], a tuple that begins
with one (an integer second is the label), or a dictionary with "image" and perhaps "label". Random transforms must be
left out of the data set: pictures are kept in memory, and the methods make the views.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from eyespot.data.decode import BadFile, apply_plan, reason_of, tensor_of, with_channels
from eyespot.data.picture import from_pillow, refuse_too_large, unit
from eyespot.data.sources import Shape, Source, numbered
from eyespot.errors import UserError

IMAGE_KEYS = ("image", "img", "pixel_values", "picture", "x")
LABEL_KEYS = ("label", "labels", "target", "fine_label", "class", "y")
LABEL_ATTRIBUTES = ("targets", "labels", "_labels")
SAMPLE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What reading one sample may raise because of its file; anything else is an error in the data set's own code."""


class DatasetSource(Source):
    """Samples of an object with `len()` and `[i]`.

    Args:
        dataset: the object; its `targets` (or `labels`) and `classes` are used when they are there, otherwise the
            labels are read from the samples.
        image_key, label_key: keys of samples that are dictionaries; None finds them.

    Raises:
        UserError: the object is no map-style data set, is empty, or its first sample holds no picture.
    """

    threads = False  # nothing is known about the object's own state

    def __init__(self, dataset: Any, *, name: str = "", image_key: str | None = None, label_key: str | None = None):
        kind = type(dataset).__name__
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise UserError(f"A {kind} cannot be read by sample number; give a path or a map-style data set.")
        if isinstance(dataset, Mapping):
            raise UserError(f"A {kind} maps names to data; give one of its parts: {', '.join(map(str, dataset))[:80]}.")
        if len(dataset) == 0:
            raise UserError(f"The data set {kind} is empty.")
        self.dataset, self.name = dataset, name or kind
        self.image_key, self.label_key = image_key, label_key
        first = self.sample(0)
        self._image(first)
        self.labels, self.class_names = self._labels(first)

    def __len__(self) -> int:
        return len(self.dataset)

    def path(self, i: int) -> str:
        return f"{self.name}#{i}"

    def load(self, i: int, *, channels: int | None = None, plan: dict[str, Any] | None = None) -> Tensor:
        try:
            image = self._image(self.sample(i))
            if isinstance(image, Image.Image):
                return tensor_of(from_pillow(image), channels, plan)
            return apply_plan(with_channels(_planes(image), channels), plan)
        except SAMPLE_ERRORS as error:
            raise BadFile(self.path(i), reason_of(error)) from error

    def shape(self, i: int) -> Shape:
        image = self.load(i)
        channels, height, width = image.shape
        return channels, height, width, image.dtype != torch.uint8

    def sample(self, i: int) -> Any:
        """Sample i as the data set returns it."""
        try:
            return self.dataset[i]
        except KeyError as error:
            raise UserError(f"The data set {self.name} has no sample number {i}; give a map-style data set.") from error

    def _image(self, sample: Any) -> Any:
        """The picture in a sample."""
        image = sample
        if isinstance(sample, Mapping):
            key = self.image_key or next((k for k in IMAGE_KEYS if k in sample), None)
            if key is None or key not in sample:
                raise UserError(
                    f"A sample of {self.name} has no key '{key or 'image'}' (it has {', '.join(map(str, sample))}); "
                    "name the key that holds the picture."
                )
            image = sample[key]
        elif isinstance(sample, tuple | list) and len(sample):
            image = sample[0]
        if not isinstance(image, Image.Image | Tensor | np.ndarray):
            raise UserError(
                f"A sample of {self.name} holds a {type(image).__name__} where a picture is needed; return a pillow "
                "image, a tensor [C, H, W] or an array [H, W, C]."
            )
        return image

    def _label(self, sample: Any) -> Any:
        """The label in a sample: an integer or a word, or None."""
        value = None
        if isinstance(sample, Mapping):
            key = self.label_key or next((k for k in LABEL_KEYS if k in sample), None)
            if self.label_key is not None and self.label_key not in sample:
                raise UserError(f"A sample of {self.name} has no key '{self.label_key}' for the label.")
            value = sample[key] if key is not None else None
        elif isinstance(sample, tuple | list) and len(sample) > 1:
            value = sample[1]
        if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
            value = value.item()
        return value if isinstance(value, int | str) and not isinstance(value, bool) else None

    def _labels(self, first: Any) -> tuple[np.ndarray | None, tuple[str, ...]]:
        if self._label(first) is None:
            return None, ()
        known = tuple(str(c) for c in getattr(_inner(self.dataset), "classes", ()) or ())
        key = self.label_key or (
            next((k for k in LABEL_KEYS if k in first), None) if isinstance(first, Mapping) else None
        )
        columns = getattr(self.dataset, "column_names", None)
        if isinstance(columns, list) and key in columns:  # a table of the Hugging Face library: one column at once
            known = known or tuple(getattr(self.dataset.features[key], "names", None) or ())
            return numbered(list(self.dataset[key]), known)
        values = None if self.label_key else _stored_labels(self.dataset)
        if values is None:
            values = [self._label_of(i) for i in range(len(self))]
        return numbered(values, known)

    def _label_of(self, i: int) -> Any:
        try:
            return self._label(self.sample(i))
        except SAMPLE_ERRORS:
            return None  # the picture is reported when it is read


def _inner(dataset: Any) -> Any:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def _stored_labels(dataset: Any) -> list[Any] | None:
    """Labels that the data set keeps beside its pictures: `targets` as torchvision names them."""
    if isinstance(dataset, Subset):
        inner = _stored_labels(dataset.dataset)
        return None if inner is None else [inner[int(i)] for i in dataset.indices]
    for attribute in LABEL_ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if isinstance(values, list | tuple | np.ndarray | Tensor) and len(values) == len(dataset):
            plain = values if isinstance(values, list | tuple) else values.tolist()
            if all(isinstance(v, int | str | np.integer) for v in plain):
                return [v if isinstance(v, str) else int(v) for v in plain]
    return None


def _planes(image: Tensor | np.ndarray) -> Tensor:
    """[C, H, W] uint8, or float32 in [0, 1]. Raises ValueError."""
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if array.ndim == 2:
        array = array[None] if isinstance(image, Tensor) else array[:, :, None]
    if array.ndim != 3:
        raise ValueError(f"an array of shape {tuple(array.shape)} is no picture")
    planes = array if isinstance(image, Tensor) else array.transpose(2, 0, 1)
    refuse_too_large(planes.shape[1], planes.shape[2], planes.shape[0])
    return torch.from_numpy(np.array(unit(planes), order="C", copy=True))
