"""Digests of code, by which a number tells what it was computed with."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
Source = str | bytes
"""A module's text; a file's in bytes, for the file may say how it is encoded."""

ONE_AT_A_TIME = threading.RLock()
"""Python 3.11 must not parse in two threads at once (gh-106905)."""

UNSAID = ("ctx", "kind")
"""Fields of a syntax tree that follow from the others, or change nothing."""

NO_ARITHMETIC = ("sharpflat.registry", "sharpflat.validation", "sharpflat.objective.inputs")
"""Modules that refuse and look up: no number depends on them, nor on what is imported of them."""

HOLD_CODE = (types.FunctionType, type)
"""Of any other callable, its type does."""

LIBRARIES = sys.stdlib_module_names | {"jax", "jaxlib", "flax", "optax"}
"""Wrappers of theirs are left out: a new version would have all that they wrap made anew."""


def layers(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """What holds the code of a function and of those that it wraps; the outermost first."""
    holders: list[Callable[..., Any]] = [
        layer if isinstance(layer, HOLD_CODE) else type(layer) for layer in _chain(function)
    ]
    return [each for each in holders[:-1] if _root(each) not in LIBRARIES] + holders[-1:]


def is_hidden(function: Callable[..., Any]) -> bool:
    """Whether the code is in an object that does not say what it wraps, as `numpy.vectorize`."""
    return not isinstance(_chain(function)[-1], HOLD_CODE)


def wraps_ours(function: Callable[..., Any]) -> bool:
    """Whether one of sharpflat's functions is in a wrapper, or bound to an argument."""
    return len(_chain(function)) > 1 and _root(layers(function)[-1]) == "sharpflat"


def module_of(layer: Callable[..., Any]) -> str:
    """Name of the module that holds the code; `functools.wraps` has overwritten `__module__`."""
    return str(getattr(layer, "__globals__", {}).get("__name__", layer.__module__))


def _chain(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    chain = [function]
    while (inner := _inner(chain[-1])) is not None:
        chain.append(inner)
    return chain


def _inner(layer: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function of a partial or a bound method, or what `functools.wraps` notes."""
    if isinstance(layer, functools.partial):
        return layer.func
    return getattr(layer, "__func__", None) or getattr(layer, "__wrapped__", None)


def _root(layer: Callable[..., Any]) -> str:
    return module_of(layer).partition(".")[0]


def of_code(*sources: Source) -> str:
    """Digest of modules' code, without docstrings, comments and `NO_ARITHMETIC`."""
    with ONE_AT_A_TIME:
        return _digest([_code_only(ast.parse(source)) for source in sources])


def of_code_and_imports(*sources: Source) -> str:
    """Digest of modules' code and of all of sharpflat's that they import, however indirectly."""
    with ONE_AT_A_TIME:
        codes = [_code_only(ast.parse(source)) for source in sources]
        return _digest([*codes, *(_parsed(file)[0] for file in sorted(imports_of(*sources)))])


def of_files(files: Iterable[Path]) -> str:
    """Digest of the code of several of sharpflat's modules."""
    with ONE_AT_A_TIME:
        return _digest([_parsed(file)[0] for file in sorted(files)])


def imports_of(*sources: Source) -> set[Path]:
    """The files of sharpflat that modules import, however indirectly."""
    with ONE_AT_A_TIME:
        files = [file for source in sources for file in _imported(ast.parse(source))]
        found = set[Path]()
        while files:
            file = files.pop()
            if file not in found:
                found.add(file)
                files += _parsed(file)[1]
        return found


def _digest(codes: list[str]) -> str:
    return hashlib.sha256("\n".join(codes).encode()).hexdigest()[:16]


@functools.cache
def _parsed(file: Path) -> tuple[str, tuple[Path, ...]]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return _code_only(tree), tuple(_imported(tree))


def _imported(tree: ast.Module) -> Iterator[Path]:
    """The files of sharpflat's modules that a module imports by name."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)):
                names = [f"{module}.{alias.name}" for alias in node.names]
                if module != "sharpflat" or not all(map(_files, names)):
                    names.append(module)
            case ast.Import():
                names = [alias.name for alias in node.names]
            case _:
                continue
        yield from (file for name in names if name not in NO_ARITHMETIC for file in _files(name))


def _files(name: str) -> list[Path]:
    """Those of a module or package of sharpflat's; of the name `sharpflat` all that may measure."""
    root, *parts = name.split(".")
    if root != "sharpflat":
        return []
    place = PACKAGE.joinpath(*parts)
    files = (place.with_suffix(".py"), place / "__init__.py") if parts else _measuring()
    return [file for file in files if file.is_file()]


def _measuring() -> Iterator[Path]:
    """What a metric may use by `import sharpflat as sf`, by name or through its objective."""
    for part in ("batch.py", "trees.py", "sharpness/base.py"):
        yield PACKAGE / part
    for room in ("curvature", "objective", "statistics"):
        yield from sorted((PACKAGE / room).glob("*.py"))


def _code_only(tree: ast.Module) -> str:
    return json.dumps(_said(tree))


def _said(node: Any) -> Any:
    """A syntax tree in lists; neither `ast.dump` nor `ast.unparse` is the same in every Python.

    Nor is the `repr` of text: what it escapes is what that Python's Unicode does not know.
    """
    match node:
        case list():
            return [_said(part) for part in node if not _counts_for_nothing(part)]
        case ast.JoinedStr():
            return ["JoinedStr", [_said(part) for part in node.values if not _is_empty(part)]]
        case ast.AST():
            fields = [(name, value) for name, value in ast.iter_fields(node) if name not in UNSAID]
            said = {name: _said(value) for name, value in fields if value not in (None, [])}
            return [type(node).__name__, said]
    return ascii(node)


def _counts_for_nothing(node: Any) -> bool:
    match node:
        case ast.Expr(value=ast.Constant(value=str())):  # a docstring
            return True
        case ast.ImportFrom(module=module):
            return module in NO_ARITHMETIC
    return False


def _is_empty(part: ast.expr) -> bool:
    return isinstance(part, ast.Constant) and part.value == ""
