"""Linen, NNX and plain functions as one Model: each is trained and measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import Recipe, epochs, make_optimizer, start


class Foreign(nn.Module):
    """A module with the one flag that most have."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


class Separate(nn.Module):
    """Flax's own names for the flags."""

    @nn.compact
    def __call__(self, x, use_running_average: bool, deterministic: bool):
        x = nn.BatchNorm(use_running_average=use_running_average)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=deterministic)(nn.relu(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def plain_init(key, inputs):
    return {"w": 0.1 * jax.random.normal(key, (inputs.shape[-1], 3)), "b": jnp.zeros(3)}


def plain_apply(params, inputs):
    return inputs @ params["w"] + params["b"][None]


MODELS = {
    "linen": lambda: sf.Model.of(Separate()),
    "nnx": lambda: sf.Model.from_nnx(Nnx),
    "plain": lambda: sf.Model.from_functions(plain_init, plain_apply),
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
    return sf.Batch(inputs, jnp.argmax(inputs[:, :3], axis=1))


@pytest.mark.parametrize("kind", MODELS)
def test_each_kind_trains_and_is_measured(kind, data):
    recipe = Recipe(MODELS[kind](), cross_entropy, make_optimizer("adam", {"learning_rate": 0.03}))
    first = start(recipe, data, seed=0)
    for epoch in epochs(recipe, first, data, batch_size=16, seed=0):
        if epoch.number == 1:
            began = epoch.train_loss
        if epoch.number == 12:
            break
    assert epoch.train_loss < 0.75 * began
    params, state = epoch.state.params, epoch.state.model_state
    for policy in ("running", "batch", "recalibrated"):
        objective = sf.Objective.from_model(recipe.model, params, state, data, batch_norm=policy)
        assert objective.accuracy(params) > 0.6
        rise = "keskar_sharpness" if policy == "recalibrated" else "sam_sharpness"
        estimates = sf.measure(objective, [rise, "hessian_top_eigenvalues"])
        assert all(np.isfinite(estimate.value) for estimate in estimates)
        assert estimates[0].value > 0


@pytest.mark.parametrize("kind", MODELS)
def test_starts_depend_on_the_key_alone(kind, data):
    model = MODELS[kind]()
    one, same, other = (model.init(jax.random.key(s), data.inputs)[0] for s in (0, 0, 1))
    leaves = jax.tree.leaves
    assert all((a == b).all() for a, b in zip(leaves(one), leaves(same), strict=True))
    assert any((a != b).any() for a, b in zip(leaves(one), leaves(other), strict=True))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_the_two_flags_are_separate(kind, data):
    model = MODELS[kind]()
    params, state = model.init(jax.random.key(0), data.inputs)

    def apply(statistics, dropout, key=0):
        key = jax.random.key(key)
        outputs, after = model.apply(
            params, state, data.inputs, batch_statistics=statistics, dropout=dropout, key=key
        )
        return outputs, after

    assert (apply(True, False)[0] == apply(True, False, key=1)[0]).all()
    assert (apply(True, True)[0] != apply(True, True, key=1)[0]).any()
    assert (apply(True, False)[0] != apply(False, False)[0]).any()
    changed = [
        (a != b).any()
        for a, b in zip(
            *(jax.tree.leaves(tree) for tree in (state, apply(True, False)[1])), strict=True
        )
        if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    assert all(changed)


def test_a_flag_that_cannot_separate_is_refused_where_they_differ(data):
    module = Foreign()
    model = sf.Model.of(module)
    params, state = model.init(jax.random.key(0), data.inputs)
    model.apply(params, state, data.inputs, batch_statistics=False, dropout=False)
    with pytest.raises(sf.InputError, match="Foreign.*'train' cannot separate"):
        model.apply(params, state, data.inputs, batch_statistics=True, dropout=False)


def test_a_foreign_module_says_how_its_flags_map(data):
    model = sf.Model.from_linen(Foreign(), flags=lambda batch_statistics, dropout: {"train": False})
    params, state = model.init(jax.random.key(0), data.inputs)
    outputs, _ = model.apply(params, state, data.inputs, batch_statistics=True, dropout=False)
    assert outputs.shape == (64, 3)


def test_an_nnx_module_brings_its_own_parameters(data):
    module = Nnx(nnx.Rngs(0))
    objective = sf.Objective.from_model(module, None, None, data)
    module.eval()
    expected = module(data.inputs)
    np.testing.assert_allclose(objective.outputs(objective.params), expected, rtol=1e-5, atol=1e-6)
    assert len(objective.layers()) == 6


def test_equal_models_are_equal():
    assert sf.Model.of(Separate()) == sf.Model.of(Separate())
    assert hash(sf.Model.of(sf.models["f1"](10))) == hash(sf.Model.of(sf.models["f1"](10)))


def test_what_is_no_model_is_refused():
    with pytest.raises(sf.InputError, match=r"got function.*Model\.from_functions"):
        sf.Model.of(lambda x: x)


class Undropped(nn.Module):
    """One flag, batch norm, and nothing that drops."""

    rate: float | None = None

    @nn.compact
    def __call__(self, x, training: bool):
        x = nn.BatchNorm(use_running_average=not training)(nn.Dense(8)(x))
        if self.rate is not None:
            x = nn.Dropout(self.rate, deterministic=not training)(x)
        return nn.Dense(3)(nn.relu(x))


@pytest.mark.parametrize("rate", [None, 0.0])
@pytest.mark.parametrize("policy", ["batch", "recalibrated"])
def test_one_flag_is_enough_where_nothing_is_dropped(rate, policy, data):
    params, state = sf.Model.of(Undropped(rate)).init(jax.random.key(0), data.inputs)
    one = sf.Objective.from_model(Undropped(rate), params, state, data, batch_norm=policy)
    both = sf.Objective.from_model(Separate(), params, state, data, batch_norm=policy)
    np.testing.assert_allclose(one.loss(params), both.loss(params), rtol=1e-6)


@pytest.mark.parametrize(
    "flags", [None, lambda batch_statistics, _: {"training": batch_statistics}]
)
def test_flags_that_drop_against_what_is_asked_are_refused_with_an_example(flags, data):
    model = sf.Model.from_linen(Undropped(0.5), flags)
    params, state = model.init(jax.random.key(0), data.inputs)
    with pytest.raises(sf.InputError, match=r"Undropped: its .* cannot .*flags=lambda batch_stat"):
        sf.Objective.from_model(model, params, state, data, batch_norm="recalibrated")


def test_one_flag_cannot_drop_without_batch_statistics(data):
    model = sf.Model.of(Undropped())
    params, state = model.init(jax.random.key(0), data.inputs)
    with pytest.raises(sf.InputError, match="'training' cannot separate"):
        model.apply(params, state, data.inputs, batch_statistics=False, dropout=True, key=None)
