"""From names and arguments to data, models and recipes."""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sharpflat.batch import Batch
from sharpflat.data import Dataset
from sharpflat.networks import Model
from sharpflat.networks.adapter import has_batch_norm
from sharpflat.objective import LOSSES
from sharpflat.registry import Entry, InputError, datasets, models
from sharpflat.training import Recipe, TrainState, make_optimizer, start


class Resident(NamedTuple):
    """A data set, with its two splits on the device."""

    dataset: Dataset
    train: Batch
    test: Batch


def resident(spec: dict[str, Any]) -> Resident:
    """The data set that `spec` (`{name: ..., argument: ...}`) asks for; kept for the next call."""
    arguments = {**spec}
    entry = datasets[arguments.pop("name")]
    return _resident(entry, json.dumps(arguments, sort_keys=True))


@functools.lru_cache(maxsize=2)
def _resident(entry: Entry, arguments: str) -> Resident:
    dataset = entry(**entry.arguments(json.loads(arguments)))
    train, test = (jax.tree.map(jnp.asarray, split) for split in (dataset.train, dataset.test))
    return Resident(dataset, Batch(*train), Batch(*test))


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
    return Recipe(network, LOSSES[train["loss"]], make_optimizer_of(config))


def make_optimizer_of(config: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer of a resolved run config."""
    rule = {**config["train"]["optimizer"]}
    return make_optimizer(rule.pop("name"), rule)


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


def state_like(config: dict[str, Any]) -> TrainState:
    """The structure of the train state of a run, without its numbers."""
    recipe, data = build_recipe(config), resident(config["dataset"]).train
    return jax.eval_shape(lambda: start(recipe, data.first(1), 0))
