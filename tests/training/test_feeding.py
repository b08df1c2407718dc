"""Training sets that stay on the host: the same bits, and two parts in memory."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import Recipe, advance, beginning, make_optimizer, prefetched, start
from sharpflat.training import segments as compiled

N, BATCH = 61, 4


@pytest.fixture(scope="module")
def host():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(N, 5)).astype(np.float32)
    return sf.Batch(inputs, rng.integers(0, 3, N).astype(np.int32))


@pytest.fixture(scope="module")
def recipe():
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1, batch_norm=True))
    return Recipe(model, cross_entropy, make_optimizer("adam", {}))


def moments(recipe, data, begin=None, **arguments):
    begin = begin or beginning(start(recipe, data, 0))
    return advance(recipe, begin, data, **{"batch_size": BATCH, "seed": 0, **arguments})


def after(step, steps):
    """Of a training: its sums and state after so many updates, copied."""
    for moment in steps:
        if moment.step == step:
            return jax.tree.map(np.array, moment[1:3])
    raise AssertionError


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize("examples", [1, 16, 60, 1000], ids="{} a part".format)
@pytest.mark.parametrize("drop_last", [False, True], ids=["all", "drop_last"])
def test_the_bits_are_those_of_data_on_the_device(host, recipe, examples, drop_last):
    device = jax.tree.map(jnp.asarray, host)
    step = 3 * (N // BATCH if drop_last else -(-N // BATCH))
    expected = after(step, moments(recipe, device, drop_last=drop_last))
    streamed = moments(recipe, host, streamed_by=examples, drop_last=drop_last)
    assert same(after(step, streamed), expected)


def test_a_streamed_training_goes_on_within_an_epoch(host, recipe, monkeypatch):
    monkeypatch.setattr(compiled, "_next_length", lambda *args: 3)
    expected = after(32, moments(recipe, host, streamed_by=16))
    for step in (7, 8, 15):  # within a part, at its end, before the smaller last batch
        half = next(m for m in moments(recipe, host, streamed_by=16) if m.step == step)
        assert same(after(32, moments(recipe, host, half, streamed_by=16)), expected)


def test_one_program_serves_all_parts_and_two_of_them_are_in_memory(host, recipe, monkeypatch):
    alive, put = [], jax.device_put

    def counting(tree):
        placed = put(tree)
        alive.append([array.shape for array in jax.live_arrays()].count((8, 5)))
        return placed

    monkeypatch.setattr(jax, "device_put", counting)
    after(32, moments(recipe, host, streamed_by=8))
    programs = compiled._segment._cache_size()
    after(64, moments(recipe, host, streamed_by=8))
    assert compiled._segment._cache_size() == programs
    assert len(alive) > 40
    assert max(alive) == 2


def test_the_next_one_is_made_in_a_thread_while_this_one_is_used():
    begun, made = [], {number: threading.Event() for number in range(4)}

    def make(number):
        begun.append((number, threading.current_thread() is threading.main_thread()))
        made[number].set()
        return number

    for expected, number in enumerate(prefetched(make, range(4))):
        assert number == expected
        if number < 3:
            assert made[number + 1].wait(10)
        assert begun == [(n, False) for n in range(min(number + 2, 4))]


def test_numbers_are_double_in_the_thread_where_they_are_outside(x64):
    (array,) = prefetched(jax.device_put, [np.ones(2)])
    assert array.dtype == np.float64


def test_what_fails_in_the_thread_fails_where_it_is_asked_for():
    def make(number):
        return 1 / number

    given = prefetched(make, itertools.count(-1))
    assert next(given) == -1
    with pytest.raises(ZeroDivisionError):
        next(given)
