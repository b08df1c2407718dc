"""synthetic: Gaussian inputs labelled by a random network, with label noise on demand."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from sharpflat.batch import Batch
from sharpflat.data.base import Dataset
from sharpflat.registry import dataset
from sharpflat.validation import Count, Fraction, NaturalNumber


@dataset
def synthetic(
    *,
    train_examples: Count = 1000,
    test_examples: Count = 1000,
    features: Count = 20,
    classes: Annotated[int, Field(ge=2)] = 10,
    hidden: Count = 32,
    label_noise: Fraction = 0.0,
    data_seed: NaturalNumber = 0,
) -> Dataset:
    """Standard normal inputs, labelled by the largest output of a random two-layer ReLU network.

        label(x) = argmax_c [Vᵀ (relu(Wᵀx) − m)]_c,   W_ij ~ N(0, 1/features),  V_jc ~ N(0, 1)

    with m_j = ‖W_j‖ / √(2π), the mean of relu(Wᵀx)_j, so that no class is favoured by an offset.
    Inputs and clean labels do not depend on `label_noise`, nor the training split on
    `test_examples`; the examples that a smaller `label_noise` replaces are replaced in the same
    way by a larger one.

    Args:
        train_examples: at least 1.
        test_examples: at least 1.
        features: length of an input.
        classes: at least 2.
        hidden: width of the labelling network's hidden layer.
        label_noise: fraction of the *training* labels replaced by another class, drawn uniformly;
            exactly `round(label_noise * train_examples)` labels are.
        data_seed: seed of everything drawn here (NumPy's `default_rng`).

    Returns:
        Inputs `[n, features]`; test labels are always clean.
    """
    teacher, train, test, noise = np.random.default_rng(data_seed).spawn(4)
    first = teacher.standard_normal((features, hidden)) / np.sqrt(features)
    second = teacher.standard_normal((hidden, classes))
    clean, held_out = (
        _labelled(generator, examples, first, second)
        for generator, examples in ((train, train_examples), (test, test_examples))
    )
    labels: Any = _noisy(np.asarray(clean.labels), classes, label_noise, noise)
    return Dataset("synthetic", clean._replace(labels=labels), held_out, classes)


def _labelled(
    generator: np.random.Generator, examples: int, first: np.ndarray, second: np.ndarray
) -> Batch:
    inputs: Any = generator.standard_normal((examples, len(first))).astype(np.float32)
    centre = np.linalg.norm(first, axis=0) / np.sqrt(2 * np.pi)
    outputs = (np.maximum(inputs @ first, 0) - centre) @ second
    return Batch(inputs, outputs.argmax(axis=1))


def _noisy(
    labels: np.ndarray, classes: int, fraction: float, generator: np.random.Generator
) -> np.ndarray:
    order = generator.permutation(len(labels))
    shifts = generator.integers(1, classes, len(labels))  # never 0: always another class
    chosen = order[: round(fraction * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + shifts[chosen]) % classes
    return noisy
