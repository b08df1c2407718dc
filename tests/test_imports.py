"""The arrows of the architecture: who may import whom."""

import ast
from pathlib import Path

import pytest

import sharpflat

PACKAGE = Path(sharpflat.__file__).parent

BASE = {"registry", "validation", "trees", "batch"}
OBJECTIVE = BASE | {"networks", "objective"}
MEASURING = OBJECTIVE | {"curvature", "sharpness", "landscape"}
TRAINING = OBJECTIVE | {"training"}
AUDIT = OBJECTIVE | {"sharpness", "audit"}
RUNS = MEASURING | TRAINING | AUDIT | {"data", "config", "statistics", "runs"}
ALLOWED = {
    "__init__": set(),
    "digests": set(),
    "validation": set(),
    "registry": {"digests", "validation"},
    "trees": set(),
    "batch": set(),
    "statistics": {"statistics"},
    "data": BASE | {"data"},
    "networks": BASE | {"networks"},
    "objective": OBJECTIVE,
    "curvature": OBJECTIVE | {"curvature"},
    "sharpness": OBJECTIVE | {"curvature", "sharpness"},
    "landscape": OBJECTIVE | {"curvature", "landscape"},
    "audit": AUDIT,
    "training": TRAINING,
    "config": {"registry", "validation", "config"},
    "runs": RUNS | {"digests"},
    "plots": {"registry", "validation", "statistics", "plots"},
    "report": RUNS | {"plots", "report"},
    "cli": RUNS | {"plots", "report"},
    "__main__": {"cli"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms a file imports, at its top or inside a function, relative imports resolved."""
    package = ["sharpflat", *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {name[1] for name in parts if name[0] == "sharpflat" and len(name) > 1} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    forbidden = imported(path) - ALLOWED[room(path)]
    assert not forbidden, f"{room(path)} must not import {sorted(forbidden)}"


def test_every_room_is_listed():
    assert {room(path) for path in FILES} == set(ALLOWED)


def test_relative_imports_are_resolved(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "sharpflat")
    file = tmp_path / "sharpflat" / "plots" / "bad.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ..runs import Run\nfrom . import base\nimport sharpflat.objective as o\n")
    assert imported(file) == {"runs", "plots", "objective"}


@pytest.mark.parametrize("folder", ["experiments", "benchmarks"])
def test_scripts_import_public_names_only(folder):
    scripts = sorted((PACKAGE.parent / folder).glob("*.py"))
    assert scripts
    for path in scripts:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sharpflat"):
                module = __import__(node.module, fromlist=["__all__"])
                private = {alias.name for alias in node.names} - set(module.__all__)
                assert not private, f"{path.name}: {node.module}.{sorted(private)} is not public"
