"""cifar10, cifar100: small colour photographs, from the published binary versions."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from sharpflat.batch import Batch
from sharpflat.data import files
from sharpflat.data.base import Dataset, unit_interval
from sharpflat.registry import dataset
from sharpflat.validation import InputError, Location

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Binary:
    """Layout of a binary version: records of label bytes (the last is the class) and 3 planes."""

    archive: files.DataFile
    folder: str
    train: Mapping[str, int]  # file name: number of examples
    test: Mapping[str, int]
    label_bytes: int
    classes: int

    @property
    def name(self) -> str:
        return self.archive.dataset


def _archive(name: str, file: str, md5: str) -> files.DataFile:
    return files.DataFile(name, file, md5, (f"https://www.cs.toronto.edu/~kriz/{file}",))


BINARIES = {
    "cifar10": _Binary(
        _archive("cifar10", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        folder="cifar-10-batches-bin",
        train={f"data_batch_{number}.bin": 10_000 for number in range(1, 6)},
        test={"test_batch.bin": 10_000},
        label_bytes=1,
        classes=10,
    ),
    "cifar100": _Binary(
        _archive("cifar100", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        folder="cifar-100-binary",
        train={"train.bin": 50_000},
        test={"test.bin": 10_000},
        label_bytes=2,
        classes=100,
    ),
}


@dataset
def cifar10(*, data_dir: Annotated[str | None, Location] = None) -> Dataset:
    """50,000 + 10,000 colour photographs of 32×32 pixels in 10 classes.

    The published archive is verified by its MD5. For extracted `.bin` files no digest is
    published: sizes, labels and equal class counts are checked, altered pixels go unnoticed.

    Args:
        data_dir: folder with `cifar10/cifar-10-binary.tar.gz`, or with its `.bin` files in
            `cifar10/` or `cifar10/cifar-10-batches-bin/`; without it, $SHARPFLAT_DATA, then a
            verified download.

    Returns:
        Inputs `[n, 32, 32, 3]` in [0, 1] (pixels / 255), in the published order.

    Raises:
        InputError: a file is damaged or cannot be had.

    Source: Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
    """
    return _load(BINARIES["cifar10"], data_dir)


@dataset
def cifar100(*, data_dir: Annotated[str | None, Location] = None) -> Dataset:
    """50,000 + 10,000 colour photographs of 32×32 pixels in 100 (fine) classes.

    The published archive is verified by its MD5. For extracted `.bin` files no digest is
    published: sizes, labels and equal class counts are checked, altered pixels go unnoticed.

    Args:
        data_dir: folder with `cifar100/cifar-100-binary.tar.gz`, or with its `.bin` files in
            `cifar100/` or `cifar100/cifar-100-binary/`; without it, $SHARPFLAT_DATA, then a
            verified download.

    Returns:
        Inputs `[n, 32, 32, 3]` in [0, 1] (pixels / 255), in the published order.

    Raises:
        InputError: a file is damaged or cannot be had.

    Source: Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
    """
    return _load(BINARIES["cifar100"], data_dir)


def _load(binary: _Binary, data_dir: str | None) -> Dataset:
    place, contents = _contents(binary, data_dir)
    where = f"{binary.name}: {place}"
    train, test = (
        _split(binary, contents, counts, where) for counts in (binary.train, binary.test)
    )
    return Dataset(binary.name, train, test, binary.classes)


def _contents(binary: _Binary, data_dir: str | None) -> tuple[Path, dict[str, bytes]]:
    """The `.bin` files by name, from the first place that has the archive or all of them."""
    names = [*binary.train, *binary.test]
    for place in files.folders(binary.name, data_dir):
        archive = place / binary.archive.name
        if archive.is_file():
            return archive, _members(binary, files.content(binary.archive, archive), archive)
        for folder in (place, place / binary.folder):
            if all((folder / name).is_file() for name in names):
                return folder, {name: _read(binary, folder / name) for name in names}
    archive = files.cache_folder(binary.name) / binary.archive.name
    return archive, _members(binary, files.download(binary.archive, data_dir), archive)


def _read(binary: _Binary, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{binary.name}: {path}: cannot be read ({error.strerror})") from None


def _members(binary: _Binary, content: bytes, path: Path) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for name in (*binary.train, *binary.test):
                member = archive.extractfile(f"{binary.folder}/{name}")
                found[name] = member.read() if member else b""
    except (KeyError, EOFError, OSError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{binary.name}: {path}: {error}") from None
    return found


def _split(
    binary: _Binary, contents: Mapping[str, bytes], counts: Mapping[str, int], where: str
) -> Batch:
    length = binary.label_bytes + PIXELS
    for name, count in counts.items():
        if len(contents[name]) != count * length:
            raise InputError(
                f"{where}: {name}: expected {count} records of {length} bytes "
                f"({count * length} in all), got {len(contents[name])} bytes"
            )
    records = np.frombuffer(b"".join(contents[name] for name in counts), np.uint8)
    records = records.reshape(-1, length)
    labels: Any = records[:, binary.label_bytes - 1]
    _check_labels(labels, binary.classes, f"{where}: {', '.join(counts)}")
    planes = records[:, binary.label_bytes :].reshape(-1, 3, 32, 32)
    return Batch(unit_interval(planes.transpose(0, 2, 3, 1)), labels)


def _check_labels(labels: np.ndarray, classes: int, where: str) -> None:
    if labels.max() >= classes:
        raise InputError(f"{where}: expected labels 0..{classes - 1}, got {labels.max()}")
    each, counts = len(labels) // classes, np.bincount(labels, minlength=classes)
    if (counts != each).any():
        label = int(np.argmax(counts != each))
        raise InputError(
            f"{where}: expected {each} examples of every class, got {counts[label]} of {label}"
        )
