"""What a training does to its batches, labels, loss and precision."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs.studies import write

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.objective import cross_entropy
from sharpflat.runs import groups
from sharpflat.runs.build import own_data
from sharpflat.training import (
    Adversarial,
    Augmentation,
    Members,
    Recipe,
    advance,
    beginning,
    make_optimizer,
    noisy_labels,
    optimizer_of,
    start,
    update,
)
from sharpflat.training.adversarial import attacked
from sharpflat.training.augmentation import augmented, moved
from sharpflat.training.conservative import conservative
from sharpflat.training.label_noise import resampled

KEY = jax.random.key(0)
N, BATCH = 48, 8


def pictures(count=5, height=6, width=7, channels=2):
    return jax.random.normal(KEY, (count, height, width, channels))


@pytest.fixture(scope="module")
def data():
    labels = jax.random.randint(jax.random.key(1), (N,), 0, 3)
    return sf.Batch(pictures(N, 5, 5, 1), labels)


RULES = {
    "conservative": {},
    "augmentation": {"augmentation": Augmentation(True, 10.0, 0.2)},
    "resampled labels": {"relabel": (3, 0.2)},
    "adversarial": {"adversarial": Adversarial(0.1, 0.5, "l2", 2)},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "matmul precision": {"matmul_precision": "highest"},
    "in chunks": {
        "chunk": 4, "augmentation": Augmentation(rotate=10.0), "adversarial": Adversarial(),
        "compute_dtype": "bfloat16",
    },
    "with ghosts": {"ghost": 4, "adversarial": Adversarial(), "relabel": (3, 0.2)},
}  # fmt: skip


def recipe(name):
    model = sf.Model.of(sf.models["mlp"](3, width=8, depth=1, batch_norm=True))
    held = (0.1, 3) if name == "conservative" else None
    rule = make_optimizer("gradient_descent", {"learning_rate": 0.1}, conservative=held)
    return Recipe(model, cross_entropy, rule, **RULES.get(name, {}))


def after(updates, made, moment, data, seed):
    given = {"batch_size": BATCH, "seed": seed, "stops_at": [updates]}
    for reached in advance(made, moment, data, **given):
        if reached.step == updates:
            return reached
    raise AssertionError


def check_that_it_acts(name, params, updates, data, seed):
    """Parameters are others than those of the same training without the rule."""
    if name == "matmul precision" and jax.default_backend() == "cpu":
        return  # products there have one precision; its program is tested below
    made = recipe("no rule")
    plain = after(updates, made, beginning(start(made, data, seed)), data, seed).state.params
    kernels = [tree["Dense_1"]["kernel"] for tree in (params, plain)]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 1e-4


@pytest.mark.parametrize("name", RULES)
def test_resumed_it_is_to_the_bit_the_unbroken_training(name, data):
    """From within its second epoch."""
    made = recipe(name)
    first = beginning(start(made, data, 3))
    whole = after(9, made, first, data, 3)
    middle = after(7, made, first, data, 3)
    check_that_it_acts(name, whole.state.params, 9, data, 3)
    for a, b in zip(
        jax.tree.leaves(whole.state),
        jax.tree.leaves(after(9, made, middle, data, 3).state), strict=True,
    ):  # fmt: skip
        assert np.array_equal(a, b)
        assert a.dtype in (jnp.float32, jnp.int32)


@pytest.mark.parametrize("name", RULES)
def test_two_together_are_as_each_alone(name, data):
    made, seeds = recipe(name), (0, 4)
    starts = [start(made, data, seed) for seed in seeds]
    held = (0.1, 3) if name == "conservative" else None
    build = optimizer_of(
        "gradient_descent", {"learning_rate": 0.1}, free=("learning_rate",), conservative=held
    )
    members = Members(seeds, {"learning_rate": [0.1, 0.1]}, build, np.ones(2, bool))
    both = beginning(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), 2)
    both = after(7, made, both, data, members)
    atol = 1e-2 if made.compute_dtype else 1e-5
    for place, (seed, begun) in enumerate(zip(seeds, starts, strict=True)):
        alone = after(7, made, beginning(begun), data, seed)
        own = jax.tree.map(lambda leaf, place=place: leaf[place], both.state.params)
        check_that_it_acts(name, own, 7, data, seed)
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(alone.state.params), strict=True):
            np.testing.assert_allclose(a, b, atol=atol)


def test_conservative_steps_on_a_quadratic_by_hand():
    curvature, rate, strength, w0 = 2.0, 0.1, 0.7, 3.0
    rule = conservative(optax.sgd(rate), strength, 3)
    given = rule.update(
        jnp.asarray(curvature * w0), rule.init(jnp.asarray(w0)), jnp.asarray(w0),
        grad_fn=lambda w: curvature * w, key=KEY,
    )[0]  # fmt: skip
    point = w0
    for _ in range(3):
        point -= rate * (curvature * point + strength * (point - w0))
    assert w0 + float(given) == pytest.approx(point, rel=1e-6)


def test_one_conservative_step_is_the_rule_itself(data):
    def trained(**given):
        rule = make_optimizer("momentum", {"learning_rate": 0.1}, **given)
        made = replace(recipe("bfloat16"), optimizer=rule, compute_dtype=None)
        return after(6, made, beginning(start(made, data, 0)), data, 0).state

    plain, held = trained(), trained(conservative=(0.5, 1))
    # θ + (θ' − θ) is θ' up to rounding.
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(held.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_schedule_counts_conservative_steps(tmp_path):
    train = {
        "batch_size": 8, "epochs": 4, "optimizer": {"name": "momentum", "learning_rate": 0.1},
        "schedule": {"name": "cosine"}, "conservative": {"steps": 3},
    }  # fmt: skip
    (run,) = sf.train(
        sf.load_config(write(tmp_path, train=train, seeds=1, sweep=None)), tmp_path / "r"
    )
    (count,) = [leaf for leaf in jax.tree.leaves(run.opt_state) if leaf.dtype == jnp.int32]
    assert int(count) == 3 * run.history[-1]["step"]
    factors = sf.runs.build.optimizer_arguments(run.config)[2]
    assert factors["updates"] == int(count)


def test_nothing_to_augment_is_the_picture_itself():
    given = pictures()
    assert augmented(Augmentation(), given, KEY) is given
    assert np.array_equal(moved(given[0], 0.0, jnp.zeros(2)), given[0])


def test_a_whole_pixel_is_a_roll_and_the_border_goes_on():
    picture = pictures()[0]
    given = moved(picture, 0.0, jnp.asarray([2.0, -1.0]))
    rolled = jnp.roll(picture, (2, -1), (0, 1))
    assert np.array_equal(given[2:, :-1], rolled[2:, :-1])
    assert np.array_equal(given[0, 0], picture[0, 1])
    assert np.array_equal(given[-1, -1], picture[-3, -1])


def test_a_quarter_turn_is_counter_clockwise():
    picture = pictures(1, 7, 7)[0]
    given = moved(picture, jnp.pi / 2, jnp.zeros(2))
    np.testing.assert_allclose(given, jnp.rot90(picture), atol=1e-5)


def test_each_picture_of_each_update_is_drawn_anew():
    how = Augmentation(rotate=10.0, shift=0.2)
    same = jnp.broadcast_to(pictures(1), (6, 6, 7, 2))
    given = augmented(how, same, KEY)
    assert np.array_equal(given, augmented(how, same, KEY))
    assert not np.array_equal(given, augmented(how, same, jax.random.key(1)))
    assert len({bytes(np.asarray(picture)) for picture in given}) == 6
    flipped = augmented(Augmentation(flip=True), jnp.broadcast_to(same[:1], (400, 6, 7, 2)), KEY)
    as_it_is = (flipped == same[:1]).all(axis=(1, 2, 3))
    turned = (flipped == same[:1, :, ::-1]).all(axis=(1, 2, 3))
    assert bool((as_it_is ^ turned).all())
    assert 140 < int(turned.sum()) < 260  # 6 standard deviations


def test_shifts_and_angles_stay_within_their_bounds():
    ramp = jnp.broadcast_to(jnp.arange(20.0)[:, None, None], (2000, 20, 20, 1))
    given = augmented(Augmentation(shift=0.2), ramp, KEY)[:, 10, 10, 0] - 10
    assert 3.9 < float(jnp.abs(given).max()) <= 4
    turned = augmented(Augmentation(rotate=30.0), ramp, KEY)
    slope = turned[:, 10, 10, 0] - turned[:, 9, 10, 0]  # the cosine of the angle
    assert np.cos(np.deg2rad(30)) - 1e-4 <= float(slope.min()) < np.cos(np.deg2rad(29))


def test_label_noise_replaces_that_many_by_other_classes():
    labels = jax.random.randint(KEY, (1000,), 0, 10)
    noisy = noisy_labels(labels, 10, 0.25, 3)
    changed = np.flatnonzero(noisy != labels)
    assert len(changed) == 250
    assert noisy.dtype == labels.dtype
    assert set(range(10)) == set(np.unique(noisy).tolist())
    shifts = np.bincount((np.asarray(noisy) - np.asarray(labels))[changed] % 10, minlength=10)
    assert shifts[0] == 0
    assert shifts[1:].min() > 10  # each of the nine others about 28 times
    assert np.array_equal(noisy, noisy_labels(labels, 10, 0.25, 3))
    assert not np.array_equal(noisy, noisy_labels(labels, 10, 0.25, 4))


def test_resampled_labels_are_others_each_time():
    labels = jnp.zeros(4000, jnp.int32)
    first, second = (resampled(labels, 5, 0.1, jax.random.key(seed)) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert 300 < int((first != 0).sum()) < 500  # 5 standard deviations
    assert set(np.unique(first).tolist()) == set(range(5))


NOISE = {"batch_size": 8, "epochs": 3, "optimizer": {"name": "gradient_descent"}}


def noise_study(folder, together, **noise):
    train = {**NOISE, "label_noise": {"fraction": 0.25, **noise}}
    sweep = {"train.label_noise.draw": [0, 1, 2]}
    return sf.load_config(write(folder, train=train, seeds=1, sweep=sweep, together=together))


def test_draws_of_label_noise_train_together_as_alone(tmp_path):
    study = noise_study(tmp_path, True)
    (group,) = groups.groups(configs.cells(study), True)
    assert len(group.members) == 3
    together = sf.train(study, tmp_path / "together")
    alone = sf.train(noise_study(tmp_path, False), tmp_path / "alone")
    losses = [run.history[-1]["full_train_loss"] for run in together]
    assert len(set(losses)) == 3
    for one, other in zip(together, alone, strict=True):
        assert one.id == other.id
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert one.history[-1]["full_train_loss"] == pytest.approx(
            other.history[-1]["full_train_loss"], rel=1e-5
        )


def test_what_is_measured_has_the_labels_it_was_trained_on(tmp_path):
    runs = sf.train(noise_study(tmp_path, False), tmp_path / "r")
    clean = sf.runs.build.resident(runs[0].config["dataset"]).train.labels
    for run in runs:
        labels = run.objective("train", chunk=40).data.labels
        assert int((labels != clean).sum()) == 10
        loss = float(run.objective("train", chunk=40).loss(run.params))
        assert loss == pytest.approx(run.history[-1]["full_train_loss"], rel=1e-5)
    again = sf.train(noise_study(tmp_path, False, resample=True), tmp_path / "r")
    assert np.array_equal(again[0].objective("train", chunk=40).data.labels, clean)
    assert np.array_equal(own_data(again[0].config).train.labels, clean)


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_worst_inputs_of_a_linear_classifier_are_known(norm, order, steps):
    """log(1 + exp(−m)) at margin m = ±(w₁ − w₀)·x, which δ lowers by ε times the dual norm."""
    weights = jax.random.normal(KEY, (4, 2))
    inputs, labels = jax.random.normal(jax.random.key(1), (9, 4)), jnp.arange(9) % 2

    def loss(inputs):
        return jnp.mean(cross_entropy(inputs @ weights, labels))

    moved_inputs = attacked(Adversarial(0.3, 0.5, norm, steps), loss, inputs)
    difference = weights[:, 1] - weights[:, 0]
    margins = inputs @ difference * (2 * labels - 1) - 0.3 * jnp.linalg.norm(difference, order)
    assert float(loss(moved_inputs)) == pytest.approx(
        float(jnp.mean(jnp.log1p(jnp.exp(-margins)))), rel=1e-5
    )
    lengths = jnp.linalg.norm(moved_inputs - inputs, jnp.inf if norm == "linf" else 2, axis=1)
    np.testing.assert_allclose(lengths, 0.3, rtol=1e-5)


def test_an_update_descends_on_both_losses():
    def init(key, inputs):
        return {"w": jax.random.normal(key, (inputs.shape[-1], 2))}

    model = sf.Model.from_functions(init, lambda params, inputs: inputs @ params["w"])
    how, rate = Adversarial(0.3, 0.25), 0.5
    rule = make_optimizer("gradient_descent", {"learning_rate": rate})
    made = Recipe(model, cross_entropy, rule, adversarial=how)
    batch = sf.Batch(jax.random.normal(KEY, (9, 4)), jnp.arange(9) % 2)
    state = start(made, batch, 0)
    weights = state.params["w"]

    def mean(weights, inputs):
        return jnp.mean(cross_entropy(inputs @ weights, batch.labels))

    moved_inputs = attacked(how, lambda inputs: mean(weights, inputs), batch.inputs)
    expected = 0.75 * jax.grad(mean)(weights, batch.inputs)
    expected += 0.25 * jax.grad(mean)(weights, moved_inputs)
    after_it, loss, _ = update(made, state, batch, KEY)
    np.testing.assert_allclose((weights - after_it.params["w"]) / rate, expected, rtol=1e-4)
    assert float(loss) == pytest.approx(float(mean(weights, batch.inputs)), rel=1e-6)


def program(made, data):
    step = jax.jit(update, static_argnums=0)
    return step.lower(made, start(made, data, 0), data.first(BATCH), KEY).as_text()


def test_bfloat16_is_of_the_passes_and_not_of_what_is_kept(data):
    made = recipe("bfloat16")
    assert "bf16" in program(made, data)
    assert "bf16" not in program(replace(made, compute_dtype=None), data)
    state = after(6, made, beginning(start(made, data, 0)), data, 0).state
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_the_precision_of_products_is_that_of_the_program(data):
    made = recipe("matmul precision")
    assert "HIGHEST" in program(made, data)
    assert "HIGHEST" not in program(replace(made, matmul_precision=None), data)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"augment": {"rotate": 10.0}}, r"train.augment: needs pictures .* is \[4\]"),
        ({"augment": {"rotate": -1.0}}, "train.augment.rotate"),
        ({"label_noise": {"fraction": 1.5}}, "train.label_noise.fraction"),
        ({"adversarial": {"epsilon": 0.0}}, "train.adversarial.epsilon"),
        ({"adversarial": {"norm": "l3"}}, "train.adversarial.norm"),
        ({"conservative": {"steps": 0}}, "train.conservative.steps"),
        ({"compute_dtype": "bfloat"}, "train.compute_dtype"),
        ({"matmul_precision": "best"}, "train.matmul_precision"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, train, message):
    path = write(tmp_path, train={**NOISE, **train}, seeds=1, sweep=None)
    with pytest.raises(sf.InputError, match=message):
        sf.train(sf.load_config(path), tmp_path / "r")


def test_label_noise_needs_classes(tmp_path):
    np.savez(
        tmp_path / "d.npz", x_train=np.ones((9, 2)), y_train=np.ones(9) / 2,
        x_test=np.ones((9, 2)), y_test=np.ones(9) / 2,
    )  # fmt: skip
    train = {**NOISE, "loss": "squared_error", "label_noise": {"fraction": 0.1}}
    dataset = {"name": "arrays", "path": str(tmp_path / "d.npz")}
    path = write(tmp_path, train=train, dataset=dataset, seeds=1, sweep=None)
    with pytest.raises(sf.InputError, match=r"train.label_noise: needs classes"):
        sf.train(sf.load_config(path), tmp_path / "r")
