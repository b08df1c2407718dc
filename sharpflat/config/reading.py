"""YAML as people write it: safe, strict on keys, and every error in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sharpflat.validation import InputError, closest


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        hint = _beside(path) if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"config {path}: {reason.lower()}{hint}") from None
    content = parse(text, f"config {path}")
    if not isinstance(content, dict):
        raise InputError(f"config {path}: expected a mapping of keys, got {content!r}")
    return content


def _beside(path: Path) -> str:
    """The config that may have been meant, for a path where none is."""
    known = [file.stem for file in path.parent.glob("[!.]*.y*ml")]
    return closest(path.stem, known) if known else ""


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


def parse(text: str, where: str) -> Any:
    """What a YAML text says.

    Raises:
        InputError: begins with `where`, and says where in the text.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise InputError(f"{where}{place}: broken YAML: {problem}") from None
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45, endless nesting
        raise InputError(f"{where}: broken YAML: {error}") from None
