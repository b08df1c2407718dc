"""The rules that end a training."""

import pytest

from sharpflat.training import Stopping


def epochs_until_stop(stopping, losses):
    for number, loss in enumerate(losses, start=1):
        reason = stopping.take(loss)
        if reason:
            return number, reason
    return None


def test_target():
    assert epochs_until_stop(Stopping(train_loss=0.5), [0.9, 0.6, 0.5, 0.1])[0] == 3


def test_ceased_to_improve_counts_epochs_without_a_new_best():
    losses = [1.0, 0.8, 0.9, 0.7, 0.71, 0.72, 0.69, 0.75, 0.75, 0.75]
    number, reason = epochs_until_stop(Stopping(patience=3), losses)
    assert (number, reason) == (10, "train loss ceased to improve for 3 epochs")


@pytest.mark.parametrize(("improvement", "expected"), [(0.0, None), (0.1, 3)])
def test_improvement_is_a_fraction_of_the_best(improvement, expected):
    losses = [1.0, 0.97, 0.95, 0.93, 0.92]
    found = epochs_until_stop(Stopping(patience=2, improvement=improvement), losses)
    assert (found and found[0]) == expected


def test_without_rules_nothing_stops():
    assert epochs_until_stop(Stopping(), [1.0] * 100) is None
