"""digits: scikit-learn's data, split by a seed."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sharpflat.data import load
from sharpflat.validation import InputError


def test_shapes_and_range():
    data = load("digits")
    assert data.train.inputs.shape == (1000, 8, 8, 1)
    assert data.test.inputs.shape == (797, 8, 8, 1)
    assert data.train.inputs.min() == 0
    assert data.train.inputs.max() == 1
    assert (data.name, data.classes) == ("digits", 10)


def test_the_splits_are_the_whole_source_in_the_seeds_order():
    data = load("digits", {"train_examples": 1500, "split_seed": 3})
    source = load_digits()
    order = np.random.default_rng(3).permutation(1797)
    inputs = np.concatenate([data.train.inputs, data.test.inputs])
    labels = np.concatenate([data.train.labels, data.test.labels])
    np.testing.assert_array_equal(inputs[..., 0] * 16, source.images[order])
    np.testing.assert_array_equal(labels, source.target[order])


def test_the_seed_determines_the_split():
    first, again, other = (load("digits", {"split_seed": seed}) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest


def test_leaves_a_test_example():
    assert load("digits", {"train_examples": 1796}).test.size == 1
    with pytest.raises(InputError, match="train_examples must be below 1797"):
        load("digits", {"train_examples": 1797})
