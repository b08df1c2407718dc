"""digits: scikit-learn's 1,797 handwritten digits, which need no download."""

from __future__ import annotations

import numpy as np

from sharpflat.batch import Batch
from sharpflat.data.base import Dataset
from sharpflat.registry import dataset
from sharpflat.validation import Count, InputError, NaturalNumber

EXAMPLES = 1797


@dataset
def digits(*, train_examples: Count = 1000, split_seed: NaturalNumber = 0) -> Dataset:
    """1,797 real handwritten digits of 8×8 pixels in 10 classes, shipped with scikit-learn.

    The examples are put into one random order; the first are for training, the rest for testing.

    Args:
        train_examples: 1 to 1,796.
        split_seed: seed of the order (NumPy's `default_rng`).

    Returns:
        Inputs `[n, 8, 8, 1]` in [0, 1] (ink counts / 16).

    Raises:
        InputError: no example is left for testing.

    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; the test
    part of it, as `sklearn.datasets.load_digits` gives it.
    """
    if train_examples >= EXAMPLES:
        raise InputError(
            f"digits: train_examples must be below {EXAMPLES} to leave a test example, "
            f"got {train_examples}"
        )
    from sklearn.datasets import load_digits

    source = load_digits()
    order = np.random.default_rng(split_seed).permutation(EXAMPLES)
    inputs, labels = source.images[order, :, :, None] / 16, source.target[order]
    train = Batch(inputs[:train_examples], labels[:train_examples])
    test = Batch(inputs[train_examples:], labels[train_examples:])
    return Dataset("digits", train, test, classes=10)
