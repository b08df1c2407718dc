"""Data sets: one file each, registered by name; a new file in this folder is found by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sharpflat.data.base import Dataset
from sharpflat.registry import datasets, import_modules
from sharpflat.validation import InputError

__all__ = ["Dataset", "datasets", "load"]

import_modules(__name__, __path__)


def load(name: str, arguments: Mapping[str, Any] | None = None) -> Dataset:
    """The data set called `name`, with its arguments checked strictly.

    Raises:
        InputError: an unknown name or argument, data that cannot be used, or a registered function
            that returns something else than a `Dataset`.
    """
    entry = datasets[name]
    data = entry(**entry.arguments(arguments or {}))
    if not isinstance(data, Dataset):
        raise InputError(f"data set {name!r} returned a {type(data).__name__}, expected a Dataset")
    return data
