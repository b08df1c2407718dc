"""Digests of code: what changes them, and what does not."""

import os
import subprocess
import sys

import pytest
from plugins import PLUGIN, own_registries  # noqa: F401

from sharpflat import digests, registry
from sharpflat.registry import load_plugin


def digest(path, text):
    path.write_text(text, encoding="utf-8")
    load_plugin(path)
    return registry.metrics["mine"].digest


def test_a_metrics_digest_holds_what_it_imports(tmp_path, monkeypatch):
    """Else a mended solver would leave its old numbers in place."""
    monkeypatch.setattr(digests, "PACKAGE", tmp_path)
    digests._parsed.cache_clear()
    rooms = {"a/__init__.py": "from sharpflat.b import f", "b.py": "def f(): return 1"}
    source = "import sharpflat.a\ndef metric(): return sharpflat.a.f()"
    found = []
    for text in ("return 1", "return 1  # one", "return 2"):
        rooms["b.py"] = f"def f(): {text}"
        for name, content in rooms.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        digests._parsed.cache_clear()
        found.append(digests.of_code_and_imports(source))
    digests._parsed.cache_clear()
    assert found[0] == found[1] != found[2]


def test_a_plugins_digest_holds_what_it_may_measure_with():
    """`import sharpflat as sf` names no file."""
    found = digests.imports_of("import sharpflat as sf")
    wanted = ("trees.py", "curvature/lanczos.py", "objective/losses.py", "sharpness/base.py")
    assert {digests.PACKAGE / file for file in wanted} <= found
    assert digests.PACKAGE / "runs" / "study.py" not in found
    norms = registry.metrics["parameter_norm"].file.read_text()
    assert digests.PACKAGE / "curvature" / "lanczos.py" not in digests.imports_of(norms)
    assert digests.imports_of("from sharpflat import trees, Objective") == found


def test_a_trackers_digest_holds_what_it_imports():
    """λmax is made elsewhere than where it is asked for."""
    entry, file = registry.trackers["top_eigenvalue"], digests.PACKAGE / "curvature" / "lanczos.py"
    source = entry.file.read_text()
    assert file in digests.imports_of(source)
    assert entry.digest == digests.of_code_and_imports(source)


def test_every_metrics_digest_reaches_the_loss():
    file = digests.PACKAGE / "objective" / "losses.py"
    for entry in registry.metrics.values():
        if entry.built_in:
            assert file in digests.imports_of(entry.file.read_text()), entry.name


def test_the_digest_is_of_code_not_of_words(tmp_path):
    path = tmp_path / "plugin.py"
    first = digest(path, PLUGIN)
    assert digest(path, PLUGIN) == first
    assert digest(path, PLUGIN.replace("words", "others").replace("A comment", "Another")) == first
    assert digest(path, PLUGIN.replace('"""Words."""\n', "\n\n")) == first
    assert digest(path, PLUGIN.replace("= 1.0", "= 2.0")) != first
    assert digest(path, PLUGIN.replace("factor, 0.0", "factor + 1, 0.0")) != first


def test_the_digest_is_of_a_file_however_it_is_encoded(tmp_path):
    """Nor does it depend on the locale, which tells how Python opens a file by default."""
    path, text = tmp_path / "plugin.py", PLUGIN.replace("factor", "λ").replace("A comment", "é")
    first = digest(path, text)
    for encoding in ("utf-8-sig", "iso8859-7"):
        head = "# coding: iso8859-7\n" if encoding == "iso8859-7" else ""
        path.write_bytes((head + text.replace("é", "e")).encode(encoding))
        load_plugin(path)
        assert registry.metrics["mine"].digest == first
    script = f"""
from sharpflat import registry
registry.load_plugin({str(path)!r})
print(registry.metrics["mine"].digest)
"""
    path.write_text(text, encoding="utf-8")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True)
    assert done.stdout == f"{first}\n", done.stderr


EVERY_KIND = r"""
"Words."
from __future__ import annotations
import numpy as np


async def late(x: int = 0x10, *, names=(), **rest) -> str:
    "More words."
    async for part in x:
        yield f"{part!r:>{10}}{', '.join(names)}" f"" "tail"


class Kind(dict, metaclass=type):
    a: float = 1e-3j
    b = lambda self, /, *y: {**{}, 'k': [z for z in y if z], "s": {1, 2}}[...]
    with_bytes = b"\x00" + (not None, -1 < 2 <= 3)[0:1:None]


def control(x):
    global y
    match x:
        case {"a": [1, *others], **rest} if rest:
            del others
        case Kind(a=0) | None:
            pass
    try:
        with open(x) as f, f:
            assert (y := 2), "no"
    except* ValueError as e:
        raise e from None
    while True:
        break
    else:
        return
"""


def test_the_digest_is_the_same_in_every_python():
    """Else results made on one are measured anew, and plugins' runs trained anew, on another."""
    assert digests.of_code(EVERY_KIND) == "a73cd35778176a04"


def test_text_is_the_same_whatever_unicode_a_python_knows():
    """U+1FAE8 is of Unicode 15: Python 3.11 writes it escaped, 3.12 as it is."""
    assert digests.of_code("a = '\U0001fae8', '\u03bb'") == "07125fb86426d4e2"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a = 1\n'''Words.'''", "a = 1\n'''Others.'''"),
        ("async def f():\n    'Words.'\n    return 1", "async def f():\n    return 1"),
        ("from sharpflat.registry import Count, metric", "from sharpflat.registry import metric"),
        (
            "from sharpflat.registry import InputError",
            "from sharpflat.validation import InputError",
        ),
        ("a = 'b'  # why", 'a = "b"'),
    ],
)
def test_what_no_number_depends_on_is_left_out(one, other):
    assert digests.of_code(one) == digests.of_code(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("f('')", "f()"),
        ("a = None", "a = 0"),
        ("a = 1", "a = 1.0"),
        ("a = f'{b}'", "a = f'{b!r}'"),
        ("a = f'{b} '", "a = f'{b}'"),
        ("from sharpflat.trees import dot", "from sharpflat.trees import norm"),
        ("def f(a, *, b=None): ...", "def f(a, *, b): ..."),
        ("f(**a)", "f({None: a})"),
    ],
)
def test_what_a_number_may_depend_on_counts(one, other):
    assert digests.of_code(one) != digests.of_code(other)


def test_what_refuses_is_no_part_of_a_digest():
    """Else a message that is worded better would have everything measured anew."""
    source = registry.metrics["keskar_sharpness"].file.read_text()
    assert "from sharpflat.validation import" in source
    found = digests.imports_of(source)
    left_out = ("registry.py", "validation.py", "objective/inputs.py")
    assert not {digests.PACKAGE / name for name in left_out} & found
    assert all((digests.PACKAGE / name).is_file() for name in left_out)
