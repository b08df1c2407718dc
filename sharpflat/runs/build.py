"""From names and arguments to data, models and recipes."""

from __future__ import annotations

import functools
import json
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sharpflat.batch import Batch
from sharpflat.data import Dataset, load
from sharpflat.networks import Model
from sharpflat.networks.adapter import has_batch_norm
from sharpflat.objective import LOSSES, BatchNormPolicy, Objective
from sharpflat.registry import Entry, datasets, models, optimizers
from sharpflat.training import (
    Adversarial,
    Augmentation,
    Batches,
    Recipe,
    TrainState,
    make_optimizer,
    noisy_labels,
    scaling,
    start,
)
from sharpflat.validation import InputError

WITHOUT_SHAPE: dict[str, Any] = {
    "batch_size": 1, "accumulate": 1, "ghost_batch_norm": None, "regime_adaptation": None,
    "drop_last": False, "eval_every": None, "stop": {}, "augment": None, "label_noise": None,
    "adversarial": None, "conservative": None, "matmul_precision": None, "compute_dtype": None,
    "track": [], "init_from": None,
}  # fmt: skip
"""Of a `train` block: no array of a run's state depends on these."""


class Resident(NamedTuple):
    """A data set in memory: its two splits in NumPy arrays, or on the device."""

    dataset: Dataset
    train: Batch
    test: Batch

    @property
    def nbytes(self) -> int:
        """Of both splits."""
        return sum(array.nbytes for array in (*self.train, *self.test))


def resident(spec: dict[str, Any], on_device: bool = False) -> Resident:
    """The data set that `spec` (`{name: ..., argument: ...}`) asks for; kept for the next call.

    On the host, or on the default device of the thread that asks.
    """
    entry, text = datasets[spec["name"]], json.dumps(spec, sort_keys=True)
    if not on_device:
        return _resident(entry, text)
    return _on_device(entry, text, getattr(jax.config, "jax_default_device", None))


@functools.lru_cache(maxsize=2)
def _resident(entry: Entry, spec: str) -> Resident:
    arguments = json.loads(spec)
    dataset = load(arguments.pop("name"), arguments)
    return Resident(dataset, dataset.train, dataset.test)


@functools.lru_cache(maxsize=16)
def _on_device(entry: Entry, spec: str, device: Any) -> Resident:
    held = _resident(entry, spec)
    train, test = (jax.tree.map(jnp.asarray, split) for split in (held.train, held.test))
    return Resident(held.dataset, train, test)


def build_recipe(config: dict[str, Any]) -> Recipe:
    """Model, loss and optimizer of a resolved run config.

    Raises:
        InputError: a batch larger than the training set.
    """
    data, train = resident(config["dataset"]), config["train"]
    if train["batch_size"] > data.train.size:
        raise InputError(
            f"train.batch_size: {train['batch_size']} is above the {data.train.size} training "
            f"examples of {config['dataset']['name']!r}"
        )
    model = {**config["model"]}
    entry = models[model.pop("name")]
    outputs = data.dataset.classes or data.train.labels[0].size
    network = Model.of(entry(outputs, **entry.arguments(model)))
    of_batches = _of_batches(train, data)
    return Recipe(
        network, LOSSES[train["loss"]], make_optimizer_of(config),
        train.get("clip"), train.get("gradient_penalty"),
        train["batch_size"] // train.get("accumulate", 1), train.get("ghost_batch_norm"),
        matmul_precision=train.get("matmul_precision"), compute_dtype=train.get("compute_dtype"),
        **of_batches,
    )  # fmt: skip


def _of_batches(train: dict[str, Any], data: Resident) -> dict[str, Any]:
    """What a recipe does to its batches.

    Raises:
        InputError: data that it cannot be done to.
    """
    augment, noise, attack = (train.get(key) for key in ("augment", "label_noise", "adversarial"))
    name, shape = data.dataset.name, data.train.inputs.shape[1:]
    if augment and len(shape) != 3:
        raise InputError(
            f"train.augment: needs pictures [height, width, channels], and an example of {name!r} "
            f"is {list(shape)}"
        )
    classes = data.dataset.classes
    if noise and classes is None:
        raise InputError(f"train.label_noise: needs classes, and {name!r} has real-valued labels")
    return {
        "augmentation": Augmentation(**augment) if augment else None,
        "relabel": _relabel(classes, noise),
        "adversarial": Adversarial(**attack) if attack else None,
    }


def _relabel(classes: int | None, noise: dict[str, Any] | None) -> tuple[Any, ...] | None:
    if not noise or not noise["resample"]:
        return None
    return classes, noise["fraction"], noise["draw"]


def own_data(config: dict[str, Any], on_device: bool = False) -> Resident:
    """The data set of a run, with the labels it is trained on: as they are, or with noise."""
    data, noise = resident(config["dataset"], on_device), config["train"].get("label_noise")
    if not noise or noise["resample"]:
        return data
    assert data.dataset.classes is not None
    labels: Any = noisy_labels(
        jnp.asarray(data.train.labels), data.dataset.classes, noise["fraction"], noise["draw"]
    )
    labels = labels if on_device else np.asarray(labels)
    return data._replace(train=data.train._replace(labels=labels))


def check_fit(config: dict[str, Any]) -> None:
    """Refuse a network that cannot take the data, or a loss that cannot take its outputs.

    Raises:
        InputError: names model, loss and data set, with what JAX said of it.
    """
    recipe, data = build_recipe(config), resident(config["dataset"]).train
    classes = resident(config["dataset"]).dataset.classes
    if config["train"]["loss"] == "cross_entropy" and data.labels.dtype.kind != "i":
        raise InputError(
            f"train.loss: 'cross_entropy' needs classes, and {config['dataset']['name']!r} has "
            f"real-valued labels; did you mean 'squared_error'?"
        )

    def loss(state: TrainState) -> jax.Array:
        few = data.first(2)
        outputs, _ = recipe.model.apply(
            state.params, state.model_state, few.inputs, batch_statistics=False, dropout=False
        )
        if classes is not None and outputs.shape[-1] < classes:
            raise TypeError(f"it has {outputs.shape[-1]} outputs, and there are {classes} classes")
        return recipe.loss(outputs, few.labels)

    try:
        program = jax.jit(loss).lower(state_like(config)).as_text()
    except (TypeError, ValueError, ZeroDivisionError) as error:
        said = str(error).partition("\n")[0]
        raise InputError(
            f"model: {config['model']['name']!r} cannot take the examples of "
            f"{config['dataset']['name']!r}, {data.inputs.shape[1:]}: {said}"
        ) from None
    if jax.default_backend() == "cpu" and "stablehlo.convolution" in program:
        warnings.warn(
            f"model {config['model']['name']!r} uses XLA's own convolution, which is 10 to 100 "
            f"times slower inside compiled loops on CPU; give nn.Conv "
            f"conv_general_dilated=sharpflat.networks.convolution.convolution",
            stacklevel=2,
        )


def make_optimizer_of(config: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer of a resolved run config, with what follows its learning rate.

    Raises:
        InputError: a warm-up that is not shorter than the training; an optimizer without a
            learning rate, where that is asked to change.
    """
    name, arguments, factors = optimizer_arguments(config)
    try:
        return make_optimizer(name, arguments, **factors)
    except InputError as error:
        raise InputError(f"train.{error}") from None


def optimizer_arguments(config: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What `make_optimizer` is given: a name, the optimizer's arguments, and the others."""
    train, size = config["train"], resident(config["dataset"]).train.size
    arguments, rule = {**train["optimizer"]}, train.get("learning_rate_rule")
    per_epoch = Batches(size, train["batch_size"], train["drop_last"]).updates
    held = train.get("conservative")
    steps = per_epoch * (held["steps"] if held else 1)
    factors = {
        "scale": scaling(rule["rule"], train["batch_size"], rule["reference"]) if rule else 1.0,
        "schedule": train.get("schedule"),
        "warmup": train.get("warmup", 0.0) * steps,
        "updates": epochs_of(train) * steps,
        "average": _average(train, per_epoch),
        "conservative": (held["strength"], held["steps"]) if held else None,
    }
    return arguments.pop("name"), arguments, factors


def _average(train: dict[str, Any], per_epoch: int) -> tuple[Any, ...] | None:
    ema, swa = train.get("ema"), train.get("swa")
    if ema:
        return "ema", ema["decay"]
    if not swa:
        return None
    if swa["start"] > epochs_of(train):
        raise InputError(f"train.swa.start: {swa['start']} is above the {epochs_of(train)} epochs")
    return "swa", swa["start"] * per_epoch, swa["every"] * per_epoch


def epochs_of(train: dict[str, Any]) -> int:
    """The epochs of a resolved `train` block, adapted to its batch size where it says so."""
    adaptation = train.get("regime_adaptation")
    if adaptation is None:
        return train["epochs"]
    return max(1, round(train["epochs"] * train["batch_size"] / adaptation["reference"]))


def check_ghosts(config: dict[str, Any]) -> None:
    """Refuse ghost batches of a network that would not see them.

    Raises:
        InputError: names the network.
    """
    asked = config["train"]["ghost_batch_norm"]
    if asked is not None and not has_batch_norm(state_like(config).model_state):
        raise InputError(
            f"train.ghost_batch_norm: changes nothing, for {config['model']['name']!r} with these "
            f"arguments has no batch norm; leave it out"
        )


def ghost_statistics(config: dict[str, Any]) -> str | None:
    """A line where batch norm, unasked, sees less than the batch: the parts it is passed in."""
    parts = config["train"]["accumulate"]
    if parts == 1 or not has_batch_norm(state_like(config).model_state):
        return None
    seen = config["train"]["ghost_batch_norm"] or config["train"]["batch_size"] // parts
    return (
        f"train.accumulate: batch norm sees {seen} examples at a time, not the batch of "
        f"{config['train']['batch_size']} (ghost statistics)"
    )


def check_chunk(
    config: dict[str, Any],
    split: str,
    examples: int | None,
    chunk: int,
    batch_norm: str,
    where: str,
) -> None:
    """Refuse a chunk that does not divide the examples where that is part of the definition.

    Raises:
        InputError: begins with `where`.
    """
    if batch_norm != "batch" or not has_batch_norm(state_like(config).model_state):
        return
    examples = examples or getattr(resident(config["dataset"]), split).size
    if examples % min(chunk, examples):
        raise InputError(
            f"{where} does not divide the {examples} {split} examples of "
            f"{config['dataset']['name']!r}, as it must under batch_norm 'batch'"
        )


def abstract_objective(
    config: dict[str, Any],
    split: str,
    examples: int | None,
    chunk: int,
    batch_norm: BatchNormPolicy,
) -> Objective:
    """The objective that a run of this config will be measured on: shapes without numbers."""
    return _abstract_objective(shape_key(config), split, examples, chunk, batch_norm)


@functools.lru_cache(maxsize=64)
def _abstract_objective(
    key: str, split: str, examples: int | None, chunk: int, batch_norm: BatchNormPolicy
) -> Objective:
    config = config_of(key)
    recipe, state = build_recipe(config), state_like(config)
    data = getattr(resident(config["dataset"]), split)
    shapes = jax.eval_shape(lambda: data.first(examples or data.size))
    return Objective(
        state.params, state.model_state, shapes, recipe.loss, recipe.model, batch_norm,
        min(chunk, shapes.size),
    )  # fmt: skip


def state_like(config: dict[str, Any]) -> TrainState:
    """The structure of the train state of a run, without its numbers."""
    return _state_like(shape_key(config))


@functools.lru_cache(maxsize=64)
def _state_like(key: str) -> TrainState:
    config = config_of(key)
    recipe, data = build_recipe(config), resident(config["dataset"]).train
    return jax.eval_shape(lambda: start(recipe, data.first(1), 0))


def shape_key(config: dict[str, Any]) -> str:
    """All that shapes the state and the loss of a run, with the code of what it names, as text."""
    train = {**config["train"], "epochs": epochs_of(config["train"]), **WITHOUT_SHAPE}
    named = [(datasets, config["dataset"]), (models, config["model"])]
    named += [(optimizers, train["optimizer"])]
    digests = [entries[spec["name"]].digest for entries, spec in named]
    return json.dumps([digests, {**config, "train": train, "seed": 0}], sort_keys=True)


def config_of(key: str) -> dict[str, Any]:
    """A resolved config of that `shape_key`: of seed 0 and batch size 1."""
    return json.loads(key)[1]
