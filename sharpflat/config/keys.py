"""Dotted keys: `train.batch_size` in nested mappings, and overrides of them."""

from __future__ import annotations

import copy
from typing import Any

from sharpflat.config.reading import parse
from sharpflat.validation import InputError


def overridden(content: dict[str, Any], override: str) -> dict[str, Any]:
    """`content` with `a.b=value` set; a swept axis of that name gives way to it."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"override {override!r}: expected key=value, as train.batch_size=64")
    content = copy.deepcopy(content)
    set_key(content, key, parse(text, f"override {key}"), key)
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


def set_key(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set what stands at a dotted key; refusals begin with `where`."""
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise InputError(f"{where}: {parent!r} is not a mapping")
    content[last] = value


def get_key(content: Any, key: str) -> Any:
    """What stands at a dotted key; None where nothing does."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
