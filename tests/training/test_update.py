"""Parts of a batch: accumulated gradients, ghost statistics, clipping, penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import Augmentation, Recipe, TrainState, make_optimizer, start
from sharpflat.training.augmentation import augmented
from sharpflat.training.label_noise import resampled
from sharpflat.training.update import AUGMENTATION, LABELS, update

POINT = np.array([1.0, -0.5])
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return sf.Batch(
        jnp.asarray(rng.normal(size=(22, 5)), jnp.float32), jnp.asarray(rng.integers(0, 3, 22))
    )


def recipe(batch_norm=False, name="gradient_descent", **about):
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1, batch_norm=batch_norm))
    rule = make_optimizer(name, {"learning_rate": 1.0})
    return Recipe(model, cross_entropy, rule, **about)


def updated(data, **about):
    made = recipe(**about)
    return update(made, start(made, data, 0), data, KEY)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("chunk", [11, 5, 22, 100])
def test_accumulation_equals_the_whole_batch(data, chunk):
    """A smaller last chunk counts by its size."""
    close(updated(data, chunk=chunk), updated(data), atol=1e-6)


def test_accumulation_needs_no_more_memory_than_a_chunk(data):
    many = sf.Batch(jnp.tile(data.inputs, (500, 1)), jnp.tile(data.labels, 500))

    def needed(**about):
        made = recipe(**about)
        state = start(made, data, 0)
        program = jax.jit(lambda state: update(made, state, many, KEY)).lower(state).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert needed(chunk=110) < 0.2 * needed()


@pytest.mark.parametrize("part", ["ghost", "chunk"])
def test_each_part_has_statistics_of_its_own(data, part):
    """The mean of the parts' losses, gradients and averages, by their sizes."""
    made = recipe(batch_norm=True)
    state = start(made, data, 0)
    cuts = ((0, 8), (8, 16), (16, 22))
    found = [
        update(made, state, sf.Batch(data.inputs[a:b], data.labels[a:b]), KEY) for a, b in cuts
    ]
    shares = np.array([8, 8, 6]) / 22
    expected = jax.tree.map(lambda *leaves: sum(map(np.multiply, shares, leaves)), *found)
    close(updated(data, batch_norm=True, **{part: 8}), expected, atol=1e-6)
    (kernel, other) = (
        one[0].params["Dense_0"]["kernel"] for one in (expected, updated(data, batch_norm=True))
    )
    assert not np.allclose(kernel, other, atol=1e-4)


class Dropping(sf.Model):
    """Parameters that each example sees or not."""

    def init(self, key, inputs):
        return jnp.ones(inputs.shape[1]), {}

    def apply(self, params, model_state, inputs, *, batch_statistics, dropout, key=None):
        return params[None] * jax.random.bernoulli(key, 0.5, inputs.shape), model_state


@pytest.mark.parametrize("part", ["chunk", "ghost"])
def test_each_part_drops_out_other_units(part):
    rule = make_optimizer("gradient_descent", {"learning_rate": 1.0})
    made = Recipe(Dropping(), lambda outputs, _: jnp.sum(outputs, axis=-1), rule, **{part: 10})
    data = sf.Batch(jnp.ones((40, 8)), jnp.zeros(40))
    new, _, _ = update(made, start(made, data, 0), data, KEY)
    seen = 40 * np.asarray(1 - new.params)  # how often each was there
    np.testing.assert_allclose(seen, np.round(seen), atol=1e-4)
    assert (np.round(seen) % 4).any(), "four parts dropped the same"


@pytest.mark.parametrize("name", ["gradient_descent", "sam"])
@pytest.mark.parametrize("parts", [("augmentation",), ("relabel",), ("augmentation", "relabel")])
def test_an_update_is_that_of_the_batch_as_it_is_drawn(data, name, parts):
    """And of nothing else: SAM's second gradient is of the same."""
    rules = {"augmentation": Augmentation(True, 10.0, 0.2), "relabel": (3, 0.3)}
    given = sf.Batch(jax.random.normal(KEY, (22, 5, 4, 1)), data.labels)
    drawn = given
    if "augmentation" in parts:
        key = jax.random.fold_in(KEY, AUGMENTATION)
        drawn = drawn._replace(inputs=augmented(rules["augmentation"], given.inputs, key))
    if "relabel" in parts:
        key = jax.random.fold_in(KEY, LABELS)
        drawn = drawn._replace(labels=resampled(given.labels, *rules["relabel"], key))
    about = {"batch_norm": True, "name": name}
    found = updated(given, **about, **{part: rules[part] for part in parts})
    close(found, updated(drawn, **about), atol=1e-6)
    kernels = [one[0].params["Dense_0"]["kernel"] for one in (found, updated(given, **about))]
    assert not np.allclose(*kernels, atol=1e-4)


def on_a_quartic(**about):
    """One update of plain descent, η = 1, on ¼ Σ w⁴: minus its gradient."""
    model = sf.Model.from_functions(lambda key, x: jnp.ones(2), lambda w, x: w[None] + 0 * x)
    made = Recipe(
        model, lambda outputs, labels: jnp.sum(outputs**4, axis=-1) / 4,
        make_optimizer("gradient_descent", {"learning_rate": 1.0}), **about,
    )  # fmt: skip
    params = jnp.asarray(POINT, jnp.float32)
    state = TrainState(params, {}, made.optimizer.init(params))
    new, loss, _ = update(made, state, sf.Batch(jnp.zeros((2, 2)), jnp.zeros(2)), KEY)
    assert loss == pytest.approx((POINT**4).sum() / 4, rel=1e-6), "without the penalty"
    return np.asarray(new.params) - POINT


@pytest.mark.parametrize("chunk", [None, 1])
def test_clipping_shortens_the_gradient_to_its_norm(chunk):
    g = POINT**3
    short = on_a_quartic(clip=0.5, chunk=chunk)
    np.testing.assert_allclose(short, -0.5 * g / np.linalg.norm(g), rtol=1e-5)
    np.testing.assert_allclose(on_a_quartic(clip=5.0, chunk=chunk), -g, rtol=1e-5)


def test_a_gradient_penalty_adds_half_its_square():
    """∇ (L + c/2 ‖∇L‖²) = g + c H g, with g = w³ and H = 3 w² here."""
    g = POINT**3
    np.testing.assert_allclose(
        on_a_quartic(gradient_penalty=0.2), -(g + 0.2 * 3 * POINT**2 * g), rtol=1e-5
    )
