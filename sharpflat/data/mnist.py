"""mnist: handwritten digits, from the published IDX files."""

from __future__ import annotations

import math
import struct
from typing import Annotated, Any

import numpy as np

from sharpflat.batch import Batch
from sharpflat.data.base import Dataset, unit_interval
from sharpflat.data.files import DataFile, read
from sharpflat.registry import dataset
from sharpflat.validation import InputError, Location

_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def _file(name: str, size: int, md5: str) -> DataFile:
    return DataFile("mnist", name, md5, tuple(f"{mirror}{name}.gz" for mirror in _MIRRORS), size)


FILES = {
    "train": (
        _file("train-images-idx3-ubyte", 47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
        _file("train-labels-idx1-ubyte", 60_008, "a25bea736e30d166cdddb491f175f624"),
    ),
    "test": (
        _file("t10k-images-idx3-ubyte", 7_840_016, "2646ac647ad5339dbf082846283269ea"),
        _file("t10k-labels-idx1-ubyte", 10_008, "27ae3e4e09519cfbb04c329615203637"),
    ),
}


@dataset
def mnist(*, data_dir: Annotated[str | None, Location] = None) -> Dataset:
    """60,000 + 10,000 handwritten digits of 28×28 grey pixels in 10 classes.

    Args:
        data_dir: folder with `mnist/train-images-idx3-ubyte` and its three companions, raw or
            gzipped; without it, $SHARPFLAT_DATA, then a verified download.

    Returns:
        Inputs `[n, 28, 28, 1]` in [0, 1] (pixels / 255), in the published order.

    Raises:
        InputError: a file is damaged or cannot be had.

    Source: LeCun, Cortes and Burges (1998), The MNIST database of handwritten digits.
    """
    return Dataset("mnist", _split("train", data_dir), _split("test", data_dir), classes=10)


def _split(split: str, data_dir: str | None) -> Batch:
    images, labels = (
        parse_idx(read(file, data_dir), f"mnist: {file.name}", dimensions)
        for file, dimensions in zip(FILES[split], (3, 1), strict=True)
    )
    return Batch(unit_interval(images)[..., None], labels)


def parse_idx(content: bytes, where: str, dimensions: int) -> Any:
    """The unsigned bytes of an IDX file as a uint8 array.

    The file starts with two zero bytes, the type (0x08: unsigned byte) and the number of
    dimensions; then each dimension as a big-endian 32-bit integer; then the elements, row by row.

    Raises:
        InputError: another magic number, or a size that differs from the dimensions' product.
    """
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise InputError(
            f"{where}: expected the IDX magic number 0x{magic.hex()}, got 0x{content[:4].hex()}"
        )
    if len(content) < header:
        raise InputError(f"{where}: expected {header} bytes of IDX header, got {len(content)}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise InputError(
            f"{where}: expected {header + math.prod(shape)} bytes for shape {shape}, "
            f"got {len(content)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
