"""MNIST: the IDX format, and the real files where SHARPFLAT_DATA has them."""

import dataclasses
import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from sharpflat.data import load
from sharpflat.data import mnist as module
from sharpflat.data.mnist import parse_idx
from sharpflat.validation import InputError


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("shape", [(7,), (5, 4, 3)])
def test_idx_round_trip(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(parse_idx(idx(array), "toy", len(shape)), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\x01" + idx(np.zeros(3))[4:], "toy: expected .*0x00000801, got 0x00000d01"),
        (idx(np.zeros((3, 1, 1))), "expected the IDX magic number 0x00000801, got 0x00000803"),
        (b"", "magic number 0x00000801, got 0x$"),
        (idx(np.zeros(3))[:6], "expected 8 bytes of IDX header, got 6"),
        (idx(np.zeros(3))[:-1], r"expected 11 bytes for shape \(3,\), got 10"),
        (idx(np.zeros(3)) + b"0", r"expected 11 bytes for shape \(3,\), got 12"),
    ],
)
def test_idx_refuses_other_content(content, message):
    with pytest.raises(InputError, match=message):
        parse_idx(content, "toy", 1)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with a tiny MNIST, its images and labels; digests are adapted to it."""
    generator = np.random.default_rng(0)
    arrays, table = {}, {}
    (tmp_path / "mnist").mkdir()
    for split, examples in (("train", 6), ("test", 4)):
        images = generator.integers(0, 256, (examples, 28, 28), dtype=np.uint8)
        arrays[split] = images, generator.integers(0, 10, examples, dtype=np.uint8)
        table[split] = tuple(
            _write(tmp_path, file, idx(array))
            for file, array in zip(module.FILES[split], arrays[split], strict=True)
        )
    monkeypatch.setattr(module, "FILES", table)
    return tmp_path, arrays


def _write(root, file, content):
    (root / "mnist" / f"{file.name}.gz").write_bytes(gzip.compress(content))
    digest = hashlib.md5(content).hexdigest()
    return dataclasses.replace(file, size=len(content), md5=digest)


def test_images_and_labels(small):
    root, arrays = small
    data = load("mnist", {"data_dir": str(root)})
    for split in ("train", "test"):
        images, labels = arrays[split]
        batch = getattr(data, split)
        assert batch.inputs.shape == (len(images), 28, 28, 1)
        np.testing.assert_array_equal(batch.inputs[..., 0], images / np.float32(255))
        np.testing.assert_array_equal(batch.labels, labels)
    assert (data.name, data.classes, data.note) == ("mnist", 10, "")


def test_images_for_labels_are_refused(small):
    root, _ = small
    images, labels = module.FILES["train"]
    folder = root / "mnist"
    (folder / f"{labels.name}.gz").write_bytes((folder / f"{images.name}.gz").read_bytes())
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz: expected 14 bytes"):
        load("mnist", {"data_dir": str(root)})


def test_the_published_digest_is_what_counts(small, monkeypatch):
    root, _ = small
    monkeypatch.undo()
    with pytest.raises(InputError, match="47040016 bytes with MD5 6bbc9ace"):
        module.mnist(data_dir=str(root))


REAL = os.environ.get("SHARPFLAT_DATA", "")  # read before the fixture clears it


@pytest.mark.skipif(
    not (REAL and any(Path(REAL, "mnist").glob("train-images-idx3-ubyte*"))),
    reason="SHARPFLAT_DATA names no folder that holds mnist/",
)
def test_the_real_mnist():
    data = module.mnist(data_dir=REAL)
    assert data.train.inputs.shape == (60_000, 28, 28, 1)
    assert data.test.inputs.shape == (10_000, 28, 28, 1)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(data.train.labels)[:2].tolist() == [5923, 6742]
    assert float(data.train.inputs.max()) == 1.0
    assert float(data.train.inputs.mean(dtype=np.float64)) == pytest.approx(0.1307, abs=1e-4)
