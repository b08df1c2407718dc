"""synthetic: what depends on what, and the exact amount of noise."""

import numpy as np
import pytest

from sharpflat.data import load
from sharpflat.validation import InputError


def synthetic(**arguments):
    return load("synthetic", arguments)


def test_shapes_and_determinism():
    arguments = {"train_examples": 50, "test_examples": 30, "features": 7, "classes": 3}
    data = synthetic(**arguments)
    assert data.train.inputs.shape == (50, 7)
    assert data.test.inputs.shape == (30, 7)
    assert data.classes == 3
    assert data.digest == synthetic(**arguments).digest
    assert data.digest != synthetic(**arguments, data_seed=1).digest


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.37, 1.0])
def test_noise_replaces_exactly_its_share_of_training_labels(noise, classes):
    clean, noisy = (synthetic(classes=classes, label_noise=value) for value in (0.0, noise))
    changed = clean.train.labels != noisy.train.labels
    assert changed.sum() == round(noise * 1000)
    np.testing.assert_array_equal(clean.train.inputs, noisy.train.inputs)
    np.testing.assert_array_equal(clean.test.inputs, noisy.test.inputs)
    np.testing.assert_array_equal(clean.test.labels, noisy.test.labels)


def test_the_other_class_is_uniform():
    clean, noisy = (
        synthetic(train_examples=20_000, classes=5, label_noise=value).train.labels
        for value in (0.0, 1.0)
    )
    shifts = np.bincount((noisy - clean) % 5, minlength=5)
    assert shifts[0] == 0
    # Standard deviation of a count: sqrt(20,000 * 3/16) = 61.
    np.testing.assert_allclose(shifts[1:], 5000, atol=5 * 61)


def test_more_noise_keeps_what_less_noise_replaced():
    clean, less, more = (synthetic(label_noise=v).train.labels for v in (0.0, 0.2, 0.5))
    replaced = clean != less
    np.testing.assert_array_equal(less[replaced], more[replaced])


def test_training_examples_do_not_depend_on_how_many_there_are():
    few, many = synthetic(train_examples=10, test_examples=5), synthetic(train_examples=100)
    np.testing.assert_array_equal(few.train.inputs, many.train.inputs[:10])
    np.testing.assert_array_equal(few.train.labels, many.train.labels[:10])
    np.testing.assert_array_equal(few.test.labels, many.test.labels[:5])


def test_inputs_are_standard_normal():
    inputs = synthetic(train_examples=10_000).train.inputs
    # 200,000 numbers: the mean has a standard error of 0.0022, the deviation of 0.0016.
    assert abs(inputs.mean(dtype=float)) < 0.011
    assert inputs.std(dtype=float) == pytest.approx(1, abs=0.008)


@pytest.mark.parametrize("seed", range(5))
def test_no_class_rules(seed):
    labels = synthetic(train_examples=5000, data_seed=seed).train.labels
    counts = np.bincount(labels, minlength=10)
    assert counts.min() > 0
    assert counts.max() < 0.4 * 5000


def test_labels_can_be_learned_from_inputs():
    """The labels depend on the inputs: linear least squares beats guessing by far."""
    data = synthetic(train_examples=2000, classes=2)
    design = [np.c_[part.inputs, np.ones(part.size)] for part in (data.train, data.test)]
    weights = np.linalg.lstsq(design[0], data.train.labels - 0.5, rcond=None)[0]
    accuracy = ((design[1] @ weights > 0) == data.test.labels).mean()
    assert accuracy > 0.7


@pytest.mark.parametrize(
    "arguments", [{"classes": 1}, {"label_noise": 1.1}, {"label_noise": -0.1}, {"features": 0}]
)
def test_refuses_arguments_out_of_range(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        synthetic(**arguments)
