"""arrays: .npz files, good and bad."""

import os

import numpy as np
import pytest

from sharpflat.data import load
from sharpflat.validation import InputError

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3) * 10
GOOD = {
    "x_train": PIXELS,
    "y_train": np.array([[0], [2]], np.uint8),
    "x_test": PIXELS[:1],
    "y_test": np.array([[3]], np.uint8),
}


def save(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: array for name, array in (GOOD | changes).items() if array is not None}
    np.savez(path, **content)
    return path


def refused(path, **arguments):
    with pytest.raises(InputError) as error:
        load("arrays", {"path": str(path), **arguments})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_pixels_and_integer_labels(tmp_path):
    path = save(tmp_path / "toy.npz")
    data = load("arrays", {"path": str(path), "note": "JPEG-compressed"})
    np.testing.assert_array_equal(data.train.inputs, PIXELS / np.float32(255))
    assert data.train.labels.tolist() == [0, 2]
    assert data.test.labels.tolist() == [3]
    assert data.classes == 4
    assert data.note == "JPEG-compressed"


def test_floats_are_kept_and_float_labels_mean_regression(tmp_path):
    inputs = np.array([[300.5, -2], [0, 1]])
    changes = {"x_train": inputs, "x_test": inputs, "y_train": np.array([[0.5], [2]])}
    path = save(tmp_path / "toy.npz", **changes, y_test=np.array([1.5, 0]))
    data = load("arrays", {"path": str(path)})
    np.testing.assert_array_equal(data.train.inputs, inputs.astype(np.float32))
    assert data.classes is None
    assert data.train.labels.tolist() == [0.5, 2]
    assert data.test.labels.dtype == np.float32


def test_relative_paths_and_data_folders(tmp_path, monkeypatch):
    for folder, label in (("here", 1), ("given/arrays", 2), ("named/arrays", 3)):
        save(tmp_path / folder / "toy.npz", y_test=np.array([label]))
    (tmp_path / "empty").mkdir()
    given = {"path": "toy.npz", "data_dir": str(tmp_path / "given")}
    monkeypatch.setenv("SHARPFLAT_DATA", str(tmp_path / "named"))
    monkeypatch.chdir(tmp_path / "empty")
    assert load("arrays", {"path": "toy.npz"}).test.labels.tolist() == [3]
    assert load("arrays", given).test.labels.tolist() == [2]
    monkeypatch.chdir(tmp_path / "here")
    assert load("arrays", given).test.labels.tolist() == [1]


def test_missing_file_names_places_and_the_closest(tmp_path):
    save(tmp_path / "arrays" / "cifar10.npz")
    message = refused("cifer10.npz", data_dir=str(tmp_path))
    assert "'cifer10.npz'" in message
    assert str(tmp_path / "arrays") in message
    assert "did you mean 'cifar10.npz'?" in message
    assert "SHARPFLAT_DATA" in message


def test_missing_file_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(tmp_path / "toy.npz")
    assert str(tmp_path / "toy.npz") in message
    assert "did you mean" not in message


def test_missing_key_names_the_closest(tmp_path):
    path = save(tmp_path / "toy.npz", y_test=None, y_tests=np.array([1]))
    message = refused(path)
    assert f"arrays: {path}: has no key 'y_test'; did you mean 'y_tests'?" in message


def explode():
    os._exit(1)


class Bomb:
    def __reduce__(self):
        return explode, ()


def test_pickled_objects_are_refused_unread(tmp_path):
    path = save(tmp_path / "toy.npz", x_train=np.array([Bomb(), Bomb()], object))
    message = refused(path)
    assert f"{path}: x_train cannot be read" in message
    assert "allow_pickle=False" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\x80\x04N.",
        lambda data: b"PK\x03\x04 and no more",
    ],
)
def test_a_broken_file_is_named(tmp_path, damage):
    path = save(tmp_path / "toy.npz")
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path}: is not a sound .npz file (" in refused(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_altered_byte_is_noticed(tmp_path, compressed):
    path = tmp_path / "toy.npz"
    zeros = np.zeros((2, 1000), np.uint8)
    (np.savez_compressed if compressed else np.savez)(path, **GOOD | {"x_train": zeros})
    data = bytearray(path.read_bytes())
    data[data.index(b"x_train.npy") + 11 + 60] ^= 0xFF  # in the member itself
    path.write_bytes(bytes(data))
    assert f"{path}: x_train cannot be read" in refused(path)


def test_a_single_array_is_refused(tmp_path):
    path = tmp_path / "toy.npz"
    with path.open("wb") as stream:
        np.save(stream, PIXELS)
    assert f"{path}: holds a single array" in refused(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": PIXELS.astype(int)}, "x_train: expected uint8 or floats, got int64"),
        ({"y_train": np.array(["a", "b"])}, "y_train: expected integers or floats, got <U1"),
        ({"y_train": np.array([True, False])}, "expected integers or floats, got bool"),
        ({"x_test": PIXELS[:1] / 255}, "x_train is uint8, but x_test float64"),
        ({"y_test": np.array([0.0])}, "y_train is uint8, but y_test float64"),
        ({"y_train": np.array([1, -1])}, r"arrays: train labels: expected 0..3, got -1..1"),
        ({"y_train": np.array([1])}, "arrays: train: 2 inputs, but 1 labels"),
        ({"x_test": PIXELS[:0], "y_test": np.zeros(0, int)}, "arrays: test: is empty"),
        ({"y_train": np.eye(2, dtype=int)}, "train labels: expected integers of shape"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, changes, message):
    assert message in refused(save(tmp_path / "toy.npz", **changes))
