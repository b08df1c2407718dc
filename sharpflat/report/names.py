"""What a study's settings are called in a line of text."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from sharpflat import registry

ENTRIES: dict[str, registry.Registry] = {
    "dataset": registry.datasets,
    "model": registry.models,
    "optimizer": registry.optimizers,
    "schedule": registry.schedules,
}


def setting_text(swept: Mapping[str, Any]) -> str:
    """`batch_size=8, optimizer=sam[rho=0.1]`."""
    names = short_names(swept)
    return ", ".join(f"{names[key]}={value_text(key, value)}" for key, value in swept.items())


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key's last part, or the key itself where another ends alike."""
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    counts = collections.Counter(short.values())
    return {key: name if counts[name] == 1 else key for key, name in short.items()}


def value_text(key: str, value: Any) -> str:
    """A swept value; an entry by its name, with those arguments that are not its defaults."""
    if not isinstance(value, dict) or "name" not in value:
        return str(value)
    name, given = value["name"], {k: v for k, v in value.items() if k != "name"}
    return entry_text(ENTRIES.get(key.rpartition(".")[2], {}), str(name), given)


def entry_text(entries: Mapping[str, registry.Entry], name: str, given: Mapping[str, Any]) -> str:
    """An entry with those arguments that are not its defaults; with all, if it is not known."""
    if name in entries:
        return entries[name].label(given)
    inside = ",".join(f"{k}={v}" for k, v in given.items())  # of a plugin that is not loaded
    return f"{name}[{inside}]" if inside else name
