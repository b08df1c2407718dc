"""What an argument may be, and the one line that refuses what it may not be.

Types with bounds for the arguments of registered functions, strict validation by pydantic, and
messages that name the culprit and the nearest valid choice.
"""

from __future__ import annotations

import difflib
import inspect
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import pydantic

Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, pydantic.Field(ge=0, lt=1, allow_inf_nan=False)]
PositiveDecay = Annotated[float, pydantic.Field(gt=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, pydantic.Field(ge=1)]
NaturalNumber = Annotated[int, pydantic.Field(ge=0)]


class Location:
    """Marks an argument that says where something lies, not what it is: run ids leave it out."""


class InputError(ValueError):
    """Input that cannot be used: one line that names the culprit and what was expected."""


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `name`, else a list of what there is."""
    known = sorted(set(known))
    match = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; known: {', '.join(known)}" if known else "; none is allowed here"


def validate(schema: type[pydantic.BaseModel], data: Any, where: str) -> pydantic.BaseModel:
    """`data` checked strictly against `schema`.

    Raises:
        InputError: names the key (below `where`), what was expected, and the closest valid key.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where or 'config'}: expected a mapping of arguments, got {data!r}")
    try:
        text = json.dumps(dict(data), default=_json_number)
    except (TypeError, ValueError) as error:
        path = [where] if where else []
        path += _unwritable(data) if isinstance(error, TypeError) else []
        raise InputError(f"{'.'.join(path) or 'config'}: {error}") from None
    try:
        # JSON mode is strict but for what YAML lacks: a list may stand for a tuple.
        return schema.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise InputError(_explain(schema, error, json.loads(text), where)) from None


def _json_number(value: Any) -> Any:
    """A NumPy or JAX scalar as Python's own number."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    raise TypeError(f"expected numbers, text, lists or mappings, got {value!r}")


def _unwritable(data: Any) -> list[str]:
    """The keys that lead to the first value that JSON cannot hold; none if a key is to blame."""
    items = data.items() if isinstance(data, Mapping) else enumerate(data)
    for key, value in items:
        if isinstance(value, Mapping | list | tuple):
            if path := _unwritable(value):
                return [str(key), *path]
        else:
            try:
                json.dumps(value, default=_json_number)
            except TypeError:
                return [str(key)]
    return []


def _explain(
    schema: type[pydantic.BaseModel], error: pydantic.ValidationError, data: Any, where: str
) -> str:
    # Of a union's branches the one that got furthest was meant; a misspelt key is told before
    # the one that it leaves missing.
    first = max(error.errors(), key=lambda e: (len(e["loc"]), e["type"] == "extra_forbidden"))
    path = _path(first["loc"], data)
    if first["type"] == "missing":
        path.append(first["loc"][-1])
    key = ".".join(map(str, [where, *path] if where else path)) or "config"
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key {path[-1]!r}{_meant(schema, path)}"
    if first["type"] == "missing":
        return f"{key}: is required"
    message = first["msg"].removeprefix("Value error, ")
    for word, ours in (("an object", "a mapping"), ("a valid array", "a list")):  # JSON's words
        message = message.replace(f"should be {word}", f"should be {ours}")
    return f"{key}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def _meant(schema: type[pydantic.BaseModel], path: list[Any]) -> str:
    """For an unknown key one spelt nearly so beside it, or at the top, else one of its name."""
    name, beside = str(path[-1]), _fields_at(schema, path[:-1])
    for known in (beside, list(schema.model_fields)):
        if difflib.get_close_matches(name, known, cutoff=0.8):
            return closest(name, known)
    elsewhere = [place for place in _places(schema) if place.rpartition(".")[2] == name]
    return f"; did you mean {min(elsewhere, key=len)!r}?" if elsewhere else closest(name, beside)


def _places(schema: type[pydantic.BaseModel], *above: type[pydantic.BaseModel]) -> Iterator[str]:
    """The dotted names of all fields, at any depth; a schema within itself is not entered again."""
    for name, field in schema.model_fields.items():
        yield name
        for inner in _schemas_in(field.annotation):
            if inner not in (schema, *above):
                yield from (f"{name}.{place}" for place in _places(inner, schema, *above))


def _path(loc: Iterable[Any], data: Any) -> list[Any]:
    """The parts of `loc` that are keys of `data`; the others name branches of a union."""
    path = []
    for part in loc:
        if (
            part in data
            if isinstance(data, dict)
            else isinstance(data, list) and part in range(len(data))
        ):
            path.append(part)
            data = data[part]
    return path


def _fields_at(schema: type[pydantic.BaseModel], path: Iterable[Any]) -> list[str]:
    schemas = [schema]
    for part in path:
        if not isinstance(part, int):  # the elements of a list share its schema
            fields = [s.model_fields[part] for s in schemas if part in s.model_fields]
            schemas = [s for field in fields for s in _schemas_in(field.annotation)]
    return [name for s in schemas for name in s.model_fields]


def _schemas_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [s for part in typing.get_args(annotation) for s in _schemas_in(part)]
