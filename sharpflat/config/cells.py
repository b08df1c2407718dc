"""A study's runs: every cell of its sweep, fully resolved and checked, under its own id."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sharpflat import registry
from sharpflat.config.keys import get_key, set_key
from sharpflat.config.schema import Config, Every, Looked, Spec, Train
from sharpflat.registry import Registry
from sharpflat.validation import InputError, closest, validate

SWEEPABLE = ("dataset", "model", "train")

LATER = (
    "schedule", "warmup", "learning_rate_rule", "regime_adaptation", "clip", "gradient_penalty",
    "accumulate", "ghost_batch_norm", "ema", "swa", "conservative", "augment", "label_noise",
    "adversarial", "matmul_precision", "compute_dtype",
)  # fmt: skip
"""Keys of `train` that ids leave out at their defaults: runs made before there were any stay."""


@dataclass(frozen=True)
class RunConfig:
    """One training, fully resolved: every argument there, defaults included.

    Attributes:
        dataset: name and arguments; `model` likewise.
        train: the `train` block.
        seed: the seed.
        swept: the study's swept keys and their values here; not part of the id.
    """

    dataset: dict[str, Any]
    model: dict[str, Any]
    train: dict[str, Any]
    seed: int
    swept: dict[str, Any]

    def resolved(self) -> dict[str, Any]:
        """What `config.yaml` holds."""
        parts = {"dataset": self.dataset, "model": self.model, "train": self.train}
        return {**copy.deepcopy(parts), "seed": self.seed}

    @property
    def id(self) -> str:
        """Digest of what shapes the record; where data lies does not."""
        content = self.resolved()
        train = content["train"]
        for key in LATER:
            if train[key] == Train.model_fields[key].default:
                del train[key]
        for spec in train.get("track", ()):
            if spec.get("top_eigenvalue", {}).get("certify"):
                del spec["top_eigenvalue"]["certify"]  # came later, too
        named = [
            (registry.datasets, content["dataset"]),
            (registry.models, content["model"]),
            (registry.optimizers, train["optimizer"]),
            *([(registry.schedules, train["schedule"])] if "schedule" in train else []),
        ]
        plugins = []
        for entries, spec in named:
            _forget_locations(entries, spec)
            if not (entry := entries[spec["name"]]).built_in:
                plugins.append(entry.digest)
        text = json.dumps([content, plugins], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _forget_locations(entries: Registry, spec: dict[str, Any]) -> None:
    """Take out of `spec` where things lie, of a data set that is part `of` another there, too."""
    for location in entries[spec["name"]].locations:
        spec.pop(location, None)
    of, arguments = spec.get("of"), spec.get("arguments")
    if isinstance(of, str) and of in entries and isinstance(arguments, Mapping) and arguments:
        inner = {**arguments, "name": of}
        _forget_locations(entries, inner)
        del inner["name"]
        spec["arguments"] = inner or None


def cells(config: Config) -> list[RunConfig]:
    """The runs of a study: settings in order, seeds within each; duplicates count once."""
    base = config.model_dump(include={"dataset", "model", "train"})
    runs: dict[str, RunConfig] = {}
    for setting in config.settings():
        content = copy.deepcopy(base)
        for key, value in setting.items():
            if (room := key.partition(".")[0]) not in SWEEPABLE:
                raise InputError(f"sweep.{key}: {room!r} cannot be swept{closest(room, SWEEPABLE)}")
            set_key(content, key, value, f"sweep.{key}")
        resolved = _resolved(content)
        swept = {key: get_key(resolved, key) for key in config.swept_keys}
        for seed in config.seed_list:
            run = RunConfig(**resolved, seed=seed, swept=swept)
            runs.setdefault(run.id, run)
    return list(runs.values())


def _resolved(content: dict[str, Any]) -> dict[str, Any]:
    train = validate(Train, content["train"], "train").model_dump()
    train["optimizer"] = named(registry.optimizers, train["optimizer"], "train.optimizer")
    train["track"] = [tracked(spec, "train.track") for spec in train["track"]]
    _check_parts(train)
    if train["schedule"] is not None:
        train["schedule"] = named(registry.schedules, train["schedule"], "train.schedule")
    return {
        "dataset": named(registry.datasets, content["dataset"], "dataset"),
        "model": named(registry.models, content["model"], "model"),
        "train": train,
    }


def _check_parts(train: dict[str, Any]) -> None:
    """Refuse parts of a batch that are not alike.

    Raises:
        InputError: names the key.
    """
    batch, parts, ghost = (train[key] for key in ("batch_size", "accumulate", "ghost_batch_norm"))
    if batch % parts:
        raise InputError(f"train.accumulate: {parts} does not divide the batch size {batch}")
    if ghost is not None and batch // parts % ghost:
        of = f"the {batch // parts} examples of a part" if parts > 1 else f"the batch size {batch}"
        raise InputError(f"train.ghost_batch_norm: {ghost} does not divide {of}")
    if train["ema"] and train["swa"]:
        raise InputError("train.swa: cannot be together with train.ema; one average is kept")
    if parts > 1 and train["gradient_penalty"]:
        raise InputError(
            "train.gradient_penalty: is of the whole batch's gradient, which 'accumulate' never has"
        )


def named(entries: Registry, spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`{name: ..., argument: ...}` with all arguments, checked against the entry's."""
    if not isinstance(spec, Mapping):
        raise InputError(f"{where}: expected {{name: ..., argument: ...}}, got {spec!r}")
    if "name" not in spec:
        raise InputError(f"{where}.name: is required; known: {', '.join(entries)}")
    rest = {key: value for key, value in spec.items() if key != "name"}
    if not isinstance(spec["name"], str) or spec["name"] not in entries:
        raise InputError(
            f"{where}.name: unknown {entries.kind} {spec['name']!r}{closest(spec['name'], entries)}"
        )
    arguments = entries[spec["name"]].arguments(rest, where)
    return {"name": spec["name"], **json.loads(json.dumps(arguments))}


def tracked(spec: Spec, where: str) -> dict[str, Any]:
    """`name` or `{name: {every: ..., argument: ...}}` as `{name: {all arguments}}`, checked."""
    spec = {spec: {}} if isinstance(spec, str) else spec
    if len(spec) != 1:
        raise InputError(f"{where}: expected a name or {{name: arguments}}, got {spec!r}")
    ((name, given),) = spec.items()
    known = [*registry.trackers, *registry.metrics]
    if name not in known:
        raise InputError(f"{where}: unknown {name!r}{closest(name, known)}")
    common: list[Any] = [Every] if name in registry.trackers else [Every, Looked]
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"{where}.{name}: expected a mapping of arguments, got {given!r}")
    entries = registry.trackers if name in registry.trackers else registry.metrics
    given, found = dict(given or {}), dict[str, Any]()
    allowed = [key for schema in (*common, entries[name].schema) for key in schema.model_fields]
    for key in given:
        if key not in allowed:
            raise InputError(
                f"{where}.{name}.{key}: unknown key {key!r}{closest(str(key), allowed)}"
            )
    for schema in common:
        own = {key: given.pop(key) for key in schema.model_fields if key in given}
        found |= validate(schema, own, f"{where}.{name}").model_dump()
    arguments = entries[name].arguments(given, f"{where}.{name}")
    return {name: {**found, **json.loads(json.dumps(arguments))}}


def resolve(entries: Registry, spec: Spec, where: str) -> tuple[str, dict[str, Any]]:
    """`name` or `{name: {argument: value}}` as the name and all arguments, checked."""
    if isinstance(spec, str):
        spec = {spec: {}}
    if len(spec) != 1:
        raise InputError(f"{where}: expected a name or {{name: arguments}}, got {spec!r}")
    ((name, arguments),) = spec.items()
    if name not in entries:
        raise InputError(f"{where}: unknown {entries.kind} {name!r}{closest(name, entries)}")
    given = {} if arguments is None else arguments
    checked = entries[name].arguments(given, f"{where}.{name}")
    return name, json.loads(json.dumps(checked))
