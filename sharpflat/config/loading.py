"""A config file read, overridden and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sharpflat import registry
from sharpflat.config.cells import cells, resolve
from sharpflat.config.keys import overridden
from sharpflat.config.reading import read_yaml
from sharpflat.config.schema import Config, Measure
from sharpflat.validation import InputError, validate


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
