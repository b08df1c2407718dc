"""A data set's first examples."""

import numpy as np
import pytest

import sharpflat as sf
from sharpflat.data import load


def test_the_first_examples_and_the_whole_test_set():
    whole, part = (
        load("digits", {"train_examples": 500}),
        load("subset", {"of": "digits", "examples": 120, "arguments": {"train_examples": 500}}),
    )
    assert np.array_equal(part.train.inputs, whole.train.inputs[:120])
    assert np.array_equal(part.train.labels, whole.train.labels[:120])
    assert np.array_equal(part.test.inputs, whole.test.inputs)
    assert (part.classes, part.note) == (whole.classes, whole.note)
    assert part.digest != whole.digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"of": "digit"}, "of: unknown data set 'digit'; did you mean 'digits'"),
        ({"examples": 5000}, "examples: 5000 is above the 1000 training examples of 'digits'"),
        ({"arguments": {"train_example": 9}}, "subset.arguments.train_example"),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        load("subset", arguments)
