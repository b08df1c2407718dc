"""Dataset: checks, dtypes, digest; load and the discovery of modules."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

import sharpflat.data
from sharpflat.batch import Batch
from sharpflat.data import Dataset, datasets, load
from sharpflat.registry import Registry
from sharpflat.validation import InputError


def split(examples=4, shape=(3,), labels=None, **changes):
    inputs = np.arange(examples * int(np.prod(shape)), dtype=float).reshape(examples, *shape)
    labels = np.arange(examples) % 2 if labels is None else np.asarray(labels)
    return Batch(changes.get("inputs", inputs), labels)


def build(train=None, test=None, classes=2):
    return Dataset("toy", train or split(), test or split(2), classes)


def test_keeps_float32_inputs_and_int32_labels_read_only():
    source = split()
    data = build(source)
    assert data.train.inputs.dtype == np.float32
    assert data.train.labels.dtype == np.int32
    np.testing.assert_array_equal(data.train.inputs, source.inputs)
    with pytest.raises(ValueError, match="read-only"):
        data.train.inputs[0] = 1
    source.inputs[0] = 1  # the caller's array stays writable


def test_regression_keeps_float_labels():
    labels = [[0.5, 1], [2, -3]]
    data = build(split(2, labels=labels), split(2, labels=labels), classes=None)
    assert data.train.labels.dtype == np.float32
    np.testing.assert_array_equal(data.train.labels, labels)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (split(0), "toy: train: is empty"),
        (split(4, shape=(0,)), "toy: train: is empty"),
        (split(4, labels=[0, 1, 0]), "toy: train: 4 inputs, but 3 labels"),
        (split(2, inputs=np.array([[1, 2, np.nan], [np.inf, 0, 0]])), "2 of 6 numbers"),
        (split(1, labels=[0], inputs=np.array([[1e300, 0, 0]])), "not finite in float32"),
        (split(4, labels=[0, 1, 2, 0]), r"expected 0\.\.1, got 0\.\.2"),
        (split(4, labels=[0, 1, -1, 0]), r"expected 0\.\.1, got -1\.\.1"),
        (split(4, labels=[2**32, 1, 0, 0]), r"got 0\.\.4294967296"),
        (split(4, labels=[0.0, 1, 0, 0]), "expected integers"),
        (split(2, labels=[[0, 1], [1, 0]]), "expected integers"),
        (split(2, inputs=np.array([["a"], ["b"]])), "toy: train inputs: expected real numbers"),
        (split(1, inputs=np.float32(1)), "toy: train inputs: expected an array"),
        (split(4, shape=(5,)), r"shape \(5,\) in train, \(3,\) in test"),
    ],
)
def test_refuses_what_cannot_be_used(train, message):
    with pytest.raises(InputError, match=message):
        build(train)


def test_checks_the_test_split_too():
    with pytest.raises(InputError, match=r"toy: test labels: expected 0\.\.1"):
        build(test=split(2, labels=[0, 5]))


def test_refuses_labels_that_are_not_finite_in_regression():
    with pytest.raises(InputError, match="toy: train labels: 1 of 2"):
        build(split(2, labels=[0, np.nan]), split(2, labels=[0.0, 1]), classes=None)


def test_refuses_a_single_class():
    with pytest.raises(InputError, match="at least 2 classes, got 1"):
        build(split(2, labels=[0, 0]), split(2, labels=[0, 0]), classes=1)


def test_digest_is_the_sha256_of_dtypes_shapes_and_bytes():
    data = build()
    arrays = (data.train.inputs, data.train.labels, data.test.inputs, data.test.labels)
    text = b"".join(f"{a.dtype} {a.shape}".encode() + a.tobytes() for a in arrays)
    assert data.digest == hashlib.sha256(text).hexdigest()[:16]
    assert data.digest == build().digest


def test_digest_changes_with_values_shape_dtype_and_split():
    square = split(4, shape=(2, 2)), split(4, shape=(2, 2))
    flat = split(4, shape=(4,)), split(4, shape=(4,))
    changed = split(4, shape=(4,))
    changed.inputs[3, 3] += 1
    floats = [Batch(part.inputs, part.labels.astype(float)) for part in flat]
    variants = [
        build(*square),
        build(*flat),
        build(changed, flat[1]),
        build(flat[0], changed),
        build(*floats, classes=None),
    ]
    assert len({data.digest for data in variants}) == len(variants)


def test_digest_does_not_depend_on_memory_order():
    inputs = np.arange(12.0).reshape(4, 3)
    assert (
        build(split(4, inputs=inputs)).digest
        == build(split(4, inputs=np.asfortranarray(inputs))).digest
    )


def test_every_module_of_the_folder_is_registered():
    found = {path.stem for path in Path(sharpflat.data.__file__).parent.glob("*.py")}
    expected = (found - {"__init__", "base", "files", "cifar"}) | {"cifar10", "cifar100"}
    assert expected <= set(datasets)
    assert {"arrays", "digits", "mnist", "synthetic"} <= expected


def test_load_checks_arguments_and_the_result(monkeypatch):
    assert load("synthetic", {"train_examples": 5}).train.size == 5
    with pytest.raises(InputError, match="did you mean 'train_examples'"):
        load("synthetic", {"train_example": 5})
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        load("minst")

    def pair():
        return (1, 2)

    own = Registry("data set")
    own.register(pair)
    monkeypatch.setattr(sharpflat.data, "datasets", own)
    with pytest.raises(InputError, match="data set 'pair' returned a tuple, expected a Dataset"):
        load("pair")


def test_data_dir_is_a_location():
    for name in ("mnist", "cifar10", "cifar100", "arrays"):
        assert datasets[name].locations == {"data_dir"}
