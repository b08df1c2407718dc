"""Dataset: a checked train and test split in NumPy arrays, with a digest of their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sharpflat.batch import Batch
from sharpflat.validation import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of one data set, as read-only NumPy arrays.

    Any real inputs and labels are accepted and kept as float32 inputs and int32 labels (float32
    labels for regression).

    Attributes:
        name: the registered name.
        train: inputs `[n, ...]` and labels `[n]` (regression: `[n, ...]`).
        test: the same, with inputs of the same shape but for the number of examples.
        classes: number of classes, at least 2; None means regression.
        note: a label that results on this data must carry, such as "JPEG-compressed".

    Raises:
        InputError: an empty split, inputs and labels of different lengths, numbers that are not
            finite, labels that are not integers in 0..classes-1, or splits of different shapes.
    """

    name: str
    train: Batch
    test: Batch
    classes: int | None
    note: str = ""

    def __post_init__(self) -> None:
        """Check both splits and fix their dtypes."""
        if self.classes is not None and self.classes < 2:
            raise InputError(f"{self.name}: expected at least 2 classes, got {self.classes}")
        for split in ("train", "test"):
            checked = _checked(getattr(self, split), self.classes, f"{self.name}: {split}")
            object.__setattr__(self, split, checked)
        for part in Batch._fields:
            train, test = (getattr(split, part).shape[1:] for split in (self.train, self.test))
            if train != test:
                raise InputError(
                    f"{self.name}: one example of {part} has shape {train} in train, {test} in test"
                )

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of dtype, shape and bytes of the four arrays.

        The order is train inputs, train labels, test inputs, test labels.
        """
        total = hashlib.sha256()
        for array in (*self.train, *self.test):
            total.update(f"{array.dtype} {array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()[:16]


def unit_interval(pixels: np.ndarray) -> Any:
    """Pixels 0..255 as float32 in [0, 1]."""
    scaled = pixels.astype(np.float32)
    scaled /= 255
    return scaled


def _checked(split: Batch, classes: int | None, where: str) -> Batch:
    inputs, labels = np.asarray(split.inputs), np.asarray(split.labels)
    for part, array in (("inputs", inputs), ("labels", labels)):
        if array.dtype.kind not in "buif":
            raise InputError(f"{where} {part}: expected real numbers, got dtype {array.dtype}")
        if array.ndim == 0:
            raise InputError(f"{where} {part}: expected an array of examples, got a single number")
    if len(inputs) != len(labels):
        raise InputError(f"{where}: {len(inputs)} inputs, but {len(labels)} labels")
    if not inputs.size or not labels.size:
        raise InputError(f"{where}: is empty (inputs {inputs.shape}, labels {labels.shape})")
    labels = _floats(labels, f"{where} labels") if classes is None else labels
    if classes is not None:
        _check_classes(labels, classes, where)
        labels = labels.astype(np.int32, copy=False)
    parts: list[Any] = [_read_only(_floats(inputs, f"{where} inputs")), _read_only(labels)]
    return Batch(*parts)


def _floats(array: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows float32 is reported below
        array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        count = int(finite.size - np.count_nonzero(finite))
        raise InputError(f"{where}: {count} of {finite.size} numbers are not finite in float32")
    return array


def _check_classes(labels: np.ndarray, classes: int, where: str) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise InputError(
            f"{where} labels: expected integers of shape [n], got {labels.dtype} {labels.shape}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(f"{where} labels: expected 0..{classes - 1}, got {low}..{high}")


def _read_only(array: np.ndarray) -> np.ndarray:
    # A view: the caller's own array stays writable.
    view = array.view()
    view.setflags(write=False)
    return view
