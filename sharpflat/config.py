"""The config: its types, loading from YAML, overrides and sweeps."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from sharpflat import registry
from sharpflat.registry import (
    Count,
    Finite,
    InputError,
    NonNegative,
    Positive,
    Registry,
    closest,
    validate,
)

Policy = Literal["batch", "running", "recalibrated"]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**31)]  # JAX's integers have 32 bits
Spec = str | dict[str, Any]
Values = Annotated[list[Any], pydantic.Field(min_length=1)]
SWEEPABLE = ("dataset", "model", "train")


class Strict(pydantic.BaseModel):
    """Nothing unknown, nothing converted, nothing infinite."""

    model_config = pydantic.ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False
    )


class Stop(Strict):
    """When to end before `epochs`: see `sharpflat.training.Stopping`."""

    train_loss: Positive | None = None
    patience: Count | None = None
    improvement: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0


class LearningRateRule(Strict):
    """How the learning rate follows the batch size: see `sharpflat.training.scaling`."""

    rule: Literal["linear", "sqrt", "none"]
    reference: Count


class RegimeAdaptation(Strict):
    """As many updates as at the reference: epochs grow with the batch (Hoffer et al., 2017)."""

    reference: Count


class Ema(Strict):
    """The exponential moving average of the parameters, over about 1 / (1 − decay) updates."""

    decay: Annotated[float, pydantic.Field(gt=0, lt=1)]


class Swa(Strict):
    """The mean of the parameters at the ends of epochs: from `start` on, every so many."""

    start: Count
    every: Count = 1


class Train(Strict):
    """How a run is trained.

    `warmup` is in epochs and comes before the schedule; `clip` is the gradient's largest norm;
    `gradient_penalty` the c of L + c/2 ‖∇L‖². A batch is passed through in `accumulate` parts, each
    of which batch norm normalises by itself; so it does every `ghost_batch_norm` examples. With
    `ema` or `swa` that average of the parameters is evaluated, kept and measured.
    """

    batch_size: Count
    epochs: Count
    optimizer: dict[str, Any]
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    drop_last: bool = False
    stop: Stop = Stop()
    track: Annotated[list[Any], pydantic.Field(max_length=0)] = []
    init_from: None = None
    eval_every: Count | None = None
    schedule: dict[str, Any] | None = None
    warmup: NonNegative = 0.0
    learning_rate_rule: LearningRateRule | None = None
    regime_adaptation: RegimeAdaptation | None = None
    clip: Positive | None = None
    gradient_penalty: NonNegative | None = None
    accumulate: Count = 1
    ghost_batch_norm: Count | None = None
    ema: Ema | None = None
    swa: Swa | None = None


LATER = (
    "schedule", "warmup", "learning_rate_rule", "regime_adaptation", "clip", "gradient_penalty",
    "accumulate", "ghost_batch_norm", "ema", "swa",
)  # fmt: skip
"""Keys of `train` that ids leave out at their defaults: runs made before there were any stay."""


class Measure(Strict):
    """What is measured, and on which objective.

    `metrics: all` stands for every metric there is, with its defaults; `seeds` restricts the
    measurement to some of the study's seeds (all of them by default).
    """

    split: Literal["train", "test"] = "train"
    examples: Count | None = None
    chunk: Count = 1000
    batch_norm: Annotated[list[Policy], pydantic.Field(min_length=1)] = ["running"]
    metrics: list[Spec] | Literal["all"] = []
    seed: Seed = 0
    seeds: list[Seed] | None = None

    @property
    def specs(self) -> list[Spec]:
        """The metrics, one by one."""
        return list(registry.metrics) if self.metrics == "all" else list(self.metrics)


class Line(Strict):
    """f((1 − α) start + α end) between the smallest and the largest value of a swept key.

    `where` picks the runs by their other swept keys, if there are several of one seed.
    """

    key: str = "train.batch_size"
    seed: Seed = 0
    points: Annotated[int, pydantic.Field(ge=2)] = 25
    alpha: Annotated[list[Finite], pydantic.Field(min_length=2, max_length=2)] = [-1.0, 2.0]
    where: dict[str, Any] = {}
    batch_norm: Literal["batch", "recalibrated"] = "recalibrated"
    chunk: Count = 1000


class Landscape(Strict):
    """One landscape."""

    line: Line


class Config(Strict):
    """A study, as written; `cells` gives its runs."""

    study: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    plugins: list[str] = []
    dataset: dict[str, Any]
    model: dict[str, Any]
    train: Train
    seeds: Count | Annotated[list[Seed], pydantic.Field(min_length=1)] = 1
    sweep: dict[str, Values] | list[dict[str, Any]] = {}
    measure: Measure | list[Measure] = Measure()
    landscape: list[Landscape] = []
    figures: list[Spec] | None = None

    @property
    def seed_list(self) -> list[int]:
        """The seeds, as a list."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def measures(self) -> list[Measure]:
        """The measure blocks, one or more."""
        return [self.measure] if isinstance(self.measure, Measure) else list(self.measure)

    @property
    def swept_keys(self) -> list[str]:
        """Dotted names of what varies between runs, `train.batch_size` always first."""
        rows = [self.sweep] if isinstance(self.sweep, dict) else self.sweep
        keys = dict.fromkeys(key for row in rows for key in row)
        return ["train.batch_size", *(key for key in keys if key != "train.batch_size")]

    def settings(self) -> list[dict[str, Any]]:
        """What each cell of the sweep sets, by dotted key."""
        if isinstance(self.sweep, list):
            return [dict(row) for row in self.sweep] or [{}]
        return [
            dict(zip(self.sweep, values, strict=True))
            for values in itertools.product(*self.sweep.values())
        ]


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
        named = [
            (registry.datasets, content["dataset"]),
            (registry.models, content["model"]),
            (registry.optimizers, train["optimizer"]),
            *([(registry.schedules, train["schedule"])] if "schedule" in train else []),
        ]
        plugins = []
        for entries, spec in named:
            entry = entries[spec["name"]]
            for location in entry.locations:
                spec.pop(location, None)
            if not entry.built_in:
                plugins.append(entry.digest)
        text = json.dumps([content, plugins], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(path: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> Config:
    """Read, override and check a config file; its plugins are loaded on the way.

    Args:
        path: a YAML file.
        overrides: `a.b=value` each, the value read as YAML.
        plugins: further plugin files.

    Raises:
        InputError: one line that names the file or key, and the closest valid name.
    """
    path = Path(path)
    content = read_yaml(path)
    for override in overrides:
        content = overridden(content, override)
    files = content.get("plugins") or []
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise InputError(f"plugins: expected a list of files, got {files!r}")
    files = [str((path.parent / file).resolve()) for file in files]
    content["plugins"] = list(dict.fromkeys([*files, *(str(Path(p).resolve()) for p in plugins)]))
    for file in content["plugins"]:
        registry.load_plugin(file)
    return check(content)


def check(content: Mapping[str, Any]) -> Config:
    """`content` as a `Config`, with every name in it known and every argument valid."""
    config = validate(Config, dict(content), "")
    assert isinstance(config, Config)
    cells(config)
    for number, block in enumerate(config.measures):
        where = "measure" if isinstance(config.measure, Measure) else f"measure.{number}"
        for spec in block.specs:
            resolve(registry.metrics, spec, f"{where}.metrics")
    for spec in config.figures or []:
        resolve(registry.figures, spec, "figures")
    return config


def cells(config: Config) -> list[RunConfig]:
    """The runs of a study: settings in order, seeds within each; duplicates count once."""
    base = config.model_dump(include={"dataset", "model", "train"})
    runs: dict[str, RunConfig] = {}
    for setting in config.settings():
        content = copy.deepcopy(base)
        for key, value in setting.items():
            if (room := key.partition(".")[0]) not in SWEEPABLE:
                raise InputError(f"sweep.{key}: {room!r} cannot be swept{closest(room, SWEEPABLE)}")
            _set(content, key, value, f"sweep.{key}")
        resolved = _resolved(content)
        swept = {key: _get(resolved, key) for key in config.swept_keys}
        for seed in config.seed_list:
            run = RunConfig(**resolved, seed=seed, swept=swept)
            runs.setdefault(run.id, run)
    return list(runs.values())


def _resolved(content: dict[str, Any]) -> dict[str, Any]:
    train = validate(Train, content["train"], "train").model_dump()
    train["optimizer"] = named(registry.optimizers, train["optimizer"], "train.optimizer")
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


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"config {path}: {reason.lower()}") from None
    content = _parse(text, f"config {path}")
    if not isinstance(content, dict):
        raise InputError(f"config {path}: expected a mapping of keys, got {content!r}")
    return content


def overridden(content: dict[str, Any], override: str) -> dict[str, Any]:
    """`content` with `a.b=value` set; a swept axis of that name gives way to it."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"override {override!r}: expected key=value, as train.batch_size=64")
    content = copy.deepcopy(content)
    _set(content, key, _parse(text, f"override {key}"), key)
    sweep = content.get("sweep")
    rows = sweep if isinstance(sweep, list) else [sweep]
    for swept in [name for row in rows if isinstance(row, dict) for name in row]:
        if f"{swept}.".startswith(f"{key}.") != f"{key}.".startswith(f"{swept}."):
            raise InputError(f"override {key}: {swept!r} is swept; override that, or sweep")
    if isinstance(sweep, dict):
        sweep.pop(key, None)
    elif isinstance(sweep, list) and all(isinstance(row, dict) for row in sweep):
        rows = [{k: v for k, v in row.items() if k != key} for row in sweep]
        content["sweep"] = [row for i, row in enumerate(rows) if row not in rows[:i]]
    return content


def _set(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise InputError(f"{where}: {parent!r} is not a mapping")
    content[last] = value


def _get(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


class _Loader(yaml.SafeLoader):
    """Safe YAML, with `1e-3` a number as YAML 1.2 has it, and a key given twice refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if key.value in [other.value for other in keys[:i]]:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise InputError(f"{where}{place}: broken YAML: {problem}") from None
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45, endless nesting
        raise InputError(f"{where}: broken YAML: {error}") from None
