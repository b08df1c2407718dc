"""`train.init_from`: a run that starts from another run's snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from sharpflat.config import RunConfig
from sharpflat.objective.layers import by_name
from sharpflat.runs.build import build_recipe, state_like
from sharpflat.runs.record import ENDED, Run
from sharpflat.training import TrainState
from sharpflat.validation import InputError, closest


def warm_start(config: dict[str, Any], root: Path, plain: TrainState) -> TrainState:
    """`plain`, or where the config asks for it that run's parameters and batch-norm averages.

    The optimizer begins anew.

    Raises:
        InputError: there is no such run or snapshot, or it is of another network.
    """
    asked = config["train"]["init_from"]
    if asked is None:
        return plain
    source = _source(asked["run"], root)
    _check_alike(source, config)
    state = source.snapshot(asked["epoch"])
    fresh = build_recipe(config).optimizer.init(state.params)
    return TrainState(state.params, state.model_state, fresh)


def origin(config: dict[str, Any], root: Path) -> dict[str, Any] | None:
    """What provenance says of it: the whole id, the epoch and the update."""
    asked = config["train"]["init_from"]
    if asked is None:
        return None
    source = _source(asked["run"], root)
    step = source.step_of(asked["epoch"])
    return {"run": source.id, "epoch": step / source.updates_an_epoch, "step": step}


def check_warm_starts(cells: Sequence[RunConfig], root: str | Path) -> None:
    """Refuse, before any work, a start that there is not.

    Raises:
        InputError: names it, and what there is.
    """
    for cell in cells:
        asked, run = cell.train["init_from"], Run(Path(root) / "runs" / cell.id)
        if asked is not None and run.damage is None and not _begun(run):
            source = _source(asked["run"], Path(root))
            _check_alike(source, cell.resolved())
            source.step_of(asked["epoch"])


def _begun(run: Run) -> bool:
    """Whether it has ended, or has a checkpoint, alone or with its group: it needs no source."""
    folders = [run.folder]
    if (run.folder / "provenance.json").exists() and (group := run.provenance.get("together")):
        folders.append(run.folder.parents[1] / "groups" / group["group"])
    kept = any(any(folder.glob("checkpoints/*")) for folder in folders)
    return kept or run.status["status"] in ENDED


def _source(begin: str, root: Path) -> Run:
    known = sorted(path.parent.name for path in (root / "runs").glob("*/config.yaml"))
    found = [name for name in known if name.startswith(begin)]
    if len(found) > 1:
        raise InputError(f"train.init_from.run: {begin!r} begins {', '.join(found)}; say which")
    if not found:
        hint = closest(begin, known) if known else ""
        raise InputError(f"train.init_from.run: {root} has no run {begin!r}{hint}")
    return Run(root / "runs" / found[0])


def _check_alike(source: Run, config: dict[str, Any]) -> None:
    own, other = (_shapes(state_like(c)) for c in (config, source.config))
    for name in dict.fromkeys([*own, *other]):
        if own.get(name) != other.get(name):
            here, there = (shapes.get(name, "no such array") for shapes in (own, other))
            raise InputError(
                f"train.init_from.run: {source.id} is of another network: {name} is {there} there "
                f"and {here} here"
            )


def _shapes(state: TrainState) -> dict[str, Any]:
    named = by_name({"params": state.params, "model_state": state.model_state})
    return {name: jax.numpy.shape(leaf) for name, leaf in named.items()}
