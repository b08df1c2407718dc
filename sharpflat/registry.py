"""The one way to extend: named entries whose keyword arguments are their config schema.

A metric, model, data set, optimizer or figure is a plain function. Its name is the name in
configs, its positional parameters are what the framework hands it, its keyword-only parameters
with their types and defaults are what a config may set.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from sharpflat import digests
from sharpflat.validation import InputError, Location, closest, validate


def told(error: Exception, entries: Iterable[Entry]) -> str:
    """`Type: text` of an error, with the line of one of those entries that a user wrote."""
    said = f"{type(error).__name__}: {error}"
    files = {entry.file for entry in entries if not entry.built_in}
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) in files]
    return f"{said} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else said


Cost = Callable[[int, Mapping[str, Any]], float]
"""From the number of examples and an entry's arguments to gradient evaluations over all of them."""


@dataclass(frozen=True)
class Entry:
    """A registered function, with what its signature and docstring say of it.

    Attributes:
        kind: what it is, a singular noun.
        name: the function's own.
        function: the function.
        cost: of a metric, about how much work it is; None if nobody has said.
        checks: of a metric, functions of `(objective, arguments)` that refuse, before any work,
            what it cannot measure; of an optimizer, of `(updates, arguments)`, what it cannot train
            in so many updates. Each raises InputError.
    """

    kind: str
    name: str
    function: Callable[..., Any]
    cost: Cost | None = None
    checks: tuple[Callable[[Any, Mapping[str, Any]], None], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    @cached_property
    def _keywords(self) -> dict[str, inspect.Parameter]:
        parameters = inspect.signature(self.function, eval_str=True).parameters
        return {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Keyword arguments a config never sets: for a metric, those without a default."""
        if self.kind != "metric":
            return ()
        return tuple(n for n, p in self._keywords.items() if p.default is p.empty)

    @cached_property
    def schema(self) -> type[pydantic.BaseModel]:
        """The pydantic model of the entry's arguments."""
        fields: dict[str, Any] = {}
        for name, parameter in self._keywords.items():
            if name in self.inputs:
                continue
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (parameter.annotation, default)
        config = pydantic.ConfigDict(
            extra="forbid", frozen=True, strict=True, allow_inf_nan=False,
            arbitrary_types_allowed=True,
        )  # fmt: skip
        return pydantic.create_model(self.name, __config__=config, **fields)

    def arguments(self, given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """All arguments, defaults included, checked strictly.

        Raises:
            InputError: an unknown or ill-typed argument, named with the closest valid one.
        """
        checked = validate(self.schema, given, where or self.name)
        return {name: getattr(checked, name) for name in self.schema.model_fields}

    def label(self, arguments: Mapping[str, Any]) -> str:
        """The name, with those arguments that are not its defaults: `name[argument=value]`."""
        fields = self.schema.model_fields
        own = [
            f"{name}={value}" for name, value in arguments.items()
            if name in fields and _as_text(value) != _as_text(fields[name].default)
        ]  # fmt: skip
        return f"{self.name}[{','.join(own)}]" if own else self.name

    @cached_property
    def locations(self) -> frozenset[str]:
        """Arguments marked as `Location`."""
        return frozenset(
            name
            for name, field in self.schema.model_fields.items()
            if any(part is Location or isinstance(part, Location) for part in field.metadata)
        )

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def description(self) -> str:
        """Docstring and arguments, as `sharpflat list KIND NAME` shows them."""
        lines = [self.name, "", inspect.getdoc(self.function) or "(no docstring)", "", "Arguments:"]
        lines += [f"  {argument}" for argument in self._signature()] or ["  none"]
        return "\n".join(lines)

    def _signature(self) -> list[str]:
        parameters = inspect.signature(self.function).parameters.values()
        keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        return [_shown(p) + " (handed over)" * (p.name in self.inputs) for p in keywords]

    @cached_property
    def file(self) -> Path | None:
        """The plugin's, or that of the outermost function; None where there is none."""
        plugins = [_plugins[module] for module in self.modules if module in _plugins]
        if plugins:
            return plugins[0].file
        layers = digests.layers(self.function)
        return _file(next(filter(inspect.isfunction, layers), layers[-1]))

    @property
    def built_in(self) -> bool:
        """Whether the entry is sharpflat's own."""
        return all(module.partition(".")[0] == "sharpflat" for module in self.modules)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that hold its code: the function's, and those of what it wraps."""
        return tuple(digests.module_of(layer) for layer in digests.layers(self.function))

    @cached_property
    def digest(self) -> str:
        """Digest of the code of its modules, of what measures with what that imports of ours.

        Raises:
            InputError: the code cannot be read.
        """
        try:
            sources = dict.fromkeys(map(_source, digests.layers(self.function)))
        except (OSError, TypeError):
            raise InputError(
                f"{self.kind} {self.name!r}: its code cannot be read; write it in a file"
            ) from None
        measures = self.kind in ("metric", "tracker")
        of = digests.of_code_and_imports if measures else digests.of_code
        return of(*sources)


class _Plugin(NamedTuple):
    """A plugin's file, and what it held when it was run."""

    file: Path
    source: bytes


_plugins: dict[str, _Plugin] = {}
"""By module; not in the module, where every name is the plugin's to give."""


def _file(holder: Any) -> Path | None:
    try:
        path = inspect.getsourcefile(holder)
    except TypeError:
        return None
    return Path(path) if path else None


def _source(layer: Callable[..., Any]) -> digests.Source:
    """That of its module; a notebook's cell is in no file, and has the function's alone."""
    name = digests.module_of(layer)
    if name in _plugins:
        return _plugins[name].source
    module = None if name == "__main__" else sys.modules.get(name)
    for file in (_file(layer), _file(module)):  # what `exec` made is in no file of its own
        if file is not None and file.exists():
            return file.read_bytes()
    return textwrap.dedent(inspect.getsource(getattr(layer, "__code__", layer)))


def _as_text(value: Any) -> str:
    """A tuple as a list, as JSON has it."""
    return json.dumps(value, default=repr)


def _shown(parameter: inspect.Parameter) -> str:
    """`name: type = default`, the type as it is written."""
    kind = parameter.annotation
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {text}{default}"


class Registry(Mapping[str, Entry]):
    """Entries of one kind by name; `register` is the decorator that adds one."""

    def __init__(self, kind: str) -> None:
        """An empty registry of `kind` (a singular noun, as messages use it)."""
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, function: Callable[..., Any] | None = None, **about: Any) -> Any:
        """Register `function` under its own name and return it unchanged.

        Args:
            function: the function; without one, a decorator is returned, so that
                `@metric` and `@metric(cost=..., checks=...)` both work.
            **about: `cost` and `checks` of `Entry`.

        Raises:
            InputError: a function of other code already has that name; a callable without one;
                an object; a wrapper of one of sharpflat's own; an argument that a config may set
                has no type.
        """
        if function is None:
            return functools.partial(self.register, **about)
        if isinstance(function, functools.partial) or not hasattr(function, "__name__"):
            raise InputError(f"{self.kind} {function!r}: no name of its own; write a function")
        name = function.__name__
        self._check_types(function)
        self._check_code(function)
        entry = Entry(self.kind, name, function, **about)
        self._check_name(entry)
        if not entry.built_in:
            entry.digest  # noqa: B018 — of the code that was loaded, not of a later edit
        self._entries[name] = entry
        return function

    def _check_name(self, entry: Entry) -> None:
        known = self._entries.get(entry.name)
        if known is None or known.modules == entry.modules:
            return
        if known.built_in:
            raise InputError(f"{self.kind} {entry.name!r} is sharpflat's own; choose another name")
        if known.digest != entry.digest:  # else a copy of the file
            raise InputError(
                f"{self.kind} {entry.name!r} is that of {known.file}; choose another name"
            )

    def _check_code(self, function: Callable[..., Any]) -> None:
        """Refuse what no digest would tell: what an object holds, a library's wrapper was given."""
        name = function.__name__
        if digests.is_hidden(function):
            raise InputError(f"{self.kind} {name!r} is an object; write a function that calls it")
        if digests.wraps_ours(function):
            raise InputError(
                f"{self.kind} {name!r} wraps one of sharpflat's own; write a function of your own "
                "that calls it"
            )

    def _check_types(self, function: Callable[..., Any]) -> None:
        for name, parameter in inspect.signature(function).parameters.items():
            typed = parameter.annotation is not parameter.empty
            handed_over = self.kind == "metric" and parameter.default is parameter.empty
            if parameter.kind is parameter.KEYWORD_ONLY and not (typed or handed_over):
                text = str(parameter).partition("=")[2]
                example = f"{name}: float" + (f" = {text}" if text else "")
                raise InputError(
                    f"{self.kind} {function.__name__!r}: argument {name!r} has no type; write it "
                    f"as {example!r}"
                )

    def __getitem__(self, name: str) -> Entry:
        """The entry called `name`; an unknown name raises with the closest known one."""
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise UnknownName(f"unknown {self.kind} {name!r}{closest(name, self)}") from None

    def built_in(self, name: Any) -> Entry | None:
        """Sharpflat's own entry of that name; None where there is none."""
        entry = self._entries.get(name)
        return entry if entry is not None and entry.built_in else None

    def __iter__(self) -> Iterator[str]:
        """Names, sorted."""
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Whether `name` is registered."""
        return name in self._entries


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import every module of a room, so that each file registers what it holds."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


def load_plugin(path: str | Path) -> None:
    """Run a user's own file, so that what it decorates is registered.

    Raises:
        InputError: the file is missing, or fails; the line says where.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"plugin {path}: no such file")
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module = types.ModuleType(f"sharpflat_plugin_{path.stem}_{place}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        source = path.read_bytes()
        _plugins[module.__name__] = _Plugin(path, source)  # digests are of what was run
        # Not through the import system: its cache takes an edit within a second for no edit.
        exec(compile(source, str(path), "exec"), module.__dict__)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"plugin {path}: {type(error).__name__}: {error}") from error


def load_installed_plugins() -> None:
    """Load what installed packages offer under the entry point `sharpflat.plugins`."""
    for point in importlib.metadata.entry_points(group="sharpflat.plugins"):
        point.load()


class UnknownName(InputError, KeyError):
    """A name that no entry has."""

    def __str__(self) -> str:
        """The message itself (KeyError would quote it)."""
        return str(self.args[0])


metrics = Registry("metric")
models = Registry("model")
datasets = Registry("data set")
optimizers = Registry("optimizer")
schedules = Registry("schedule")
figures = Registry("figure")
trackers = Registry("tracker")

metric = metrics.register
model = models.register
dataset = datasets.register
optimizer = optimizers.register
schedule = schedules.register
figure = figures.register
tracker = trackers.register
