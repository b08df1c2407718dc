"""What a training holds in memory at most, by XLA's own plans, before anything of it is made."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sharpflat.config import RunConfig
from sharpflat.objective import Objective
from sharpflat.runs.build import (
    abstract_objective,
    build_recipe,
    config_of,
    resident,
    shape_key,
    state_like,
)
from sharpflat.runs.evaluation import EVALUATION_CHUNK
from sharpflat.training import update


def update_bytes(run: RunConfig, room: float = 0.0) -> float:
    """Bytes that one update holds at most.

    Where all that its operations read and write fits into `room`, that is the answer, which is
    quick and far too much; else the program is compiled, and its plan of memory asked. Of a model
    that raises, or cannot be compiled, next to nothing: its runs will, and say so.
    """
    return _bytes(_update, json.dumps({**run.resolved(), "seed": 0}, sort_keys=True), room)


def evaluation_bytes(run: RunConfig, room: float = 0.0) -> float:
    """Bytes that an evaluation holds at most, a chunk of its data with them; as `update_bytes`."""
    return _bytes(_evaluation, shape_key(run.resolved()), room)


def _bytes(program: Callable[[str], Any], text: str, room: float) -> float:
    try:
        touched = program(text).cost_analysis()["bytes accessed"]
        return touched if touched <= room else _planned_bytes(program, text)
    except Exception:
        return 1.0


@functools.lru_cache(maxsize=64)
def _planned_bytes(program: Callable[[str], Any], text: str) -> float:
    plan = program(text).compile().memory_analysis()
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes


@functools.lru_cache(maxsize=64)
def _update(text: str) -> Any:
    config = json.loads(text)
    recipe, data = build_recipe(config), resident(config["dataset"]).train
    size = min(config["train"]["batch_size"], data.size)
    batch = jax.eval_shape(lambda: data.first(size))
    shapes = (state_like(config), batch, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.jit(update, static_argnums=0).lower(recipe, *shapes)


@functools.lru_cache(maxsize=64)
def _evaluation(text: str) -> Any:
    config = config_of(text)
    splits = ("train", "test")
    sizes = [getattr(resident(config["dataset"]), split).size for split in splits]
    largest = splits[int(np.argmax(sizes))]
    size = min(EVALUATION_CHUNK, max(sizes))
    objective = abstract_objective(config, largest, size, size, "running")
    return jax.jit(_loss_and_accuracy).lower(objective)


def _loss_and_accuracy(objective: Objective) -> tuple[jax.Array, jax.Array]:
    return objective.loss_and_accuracy(objective.params)
