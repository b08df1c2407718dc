"""Functions in wrappers: whose code counts, and which are refused."""

import functools
import linecache
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from plugins import PLUGIN, own_registries  # noqa: F401

import sharpflat as sf
from sharpflat import digests, registry
from sharpflat.registry import Registry, load_plugin
from sharpflat.validation import InputError


@pytest.fixture
def things():
    return Registry("thing")


def test_wrapped_functions_have_the_code_of_what_they_wrap(things):
    @functools.cache
    def cached():
        """Words."""

    @jax.jit
    def compiled(x: float):
        return x

    for function in (cached, compiled):
        things.register(function)
        assert things[function.__name__].file == Path(__file__)
        assert things[function.__name__].digest


def doubled(x):
    return 2 * x


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The file of a module that plugins may import."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "beside.py"
    sys.modules.pop("beside", None)


class Twice:
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args, **rest):
        return 2 * self.function(*args, **rest)


class Posing(Twice):
    """As what it wraps, and as no wrapper."""

    def __init__(self, function):
        super().__init__(function)
        del self.__wrapped__

    def __getattr__(self, name):
        return getattr(self.function, name)


def partial(function):
    return functools.update_wrapper(functools.partial(function), function)


def renamed(function, name):
    function.__name__ = name
    return function


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **rest):
        return 2 * function(*args, **rest)

    return wrapper


@pytest.mark.parametrize(
    "wrap",
    [
        Twice,
        jax.default_matmul_precision("highest"),
        jax.grad,
        jax.jit,
        functools.cache,
        lambda function: jax.jit(partial(function)),
        lambda function: renamed(jax.jit(functools.partial(function)), function.__name__),
        lambda function: types.MethodType(function, 1),
        wrapped,
    ],
)
def test_what_wraps_ours_is_refused(wrap):
    """Under any name: no digest would tell a library's wrapper from what it wraps."""
    ours = sf.metrics["parameter_norm"]
    with pytest.raises(InputError, match="'parameter_norm' wraps one of sharpflat's own; write a"):
        sf.metric(wrap(ours.function))
    with pytest.raises(InputError, match="'mine' wraps one of sharpflat's own; write a function"):
        sf.metric(renamed(Twice(wrap(ours.function)), "mine"))
    assert sf.metrics["parameter_norm"] is ours
    assert "mine" not in sf.metrics


@pytest.mark.parametrize("wrap", [Posing, np.vectorize])
def test_an_object_that_hides_what_it_wraps_is_refused(things, wrap):
    ours = sf.metrics["parameter_norm"]
    with pytest.raises(InputError, match="'parameter_norm' is an object; write a function that"):
        sf.metric(wrap(ours.function))
    assert sf.metrics["parameter_norm"] is ours
    with pytest.raises(InputError, match="thing 'doubled' is an object; write a function that"):
        things.register(jax.jit(renamed(wrap(doubled), "doubled")))


def test_a_function_that_calls_ours_is_welcome(tmp_path):
    path = tmp_path / "plugin.py"
    call = "sf.metrics['parameter_norm'](objective, key)"
    path.write_text(PLUGIN.replace("sf.Estimate(factor, 0.0, True)", call))
    load_plugin(path)
    assert not sf.metrics["mine"].built_in


WRAPPER = """
import functools
import beside
import sharpflat as sf

class Twice:
    def __init__(self, function):
        functools.update_wrapper(self, function)

    def __call__(self, x):
        return 2 * self.__wrapped__(x)

def wrapped(function):
    @functools.wraps(function)
    def wrapper(x):
        return 2 * function(x)
    return wrapper

sf.model(wrapped(beside.mine))
"""


@pytest.mark.parametrize("wrap", ["wrapped", "Twice"])
def test_the_digest_of_what_wraps_holds_both(tmp_path, beside, wrap):
    beside.write_text("def mine(x):\n    return x\n")
    path, text = tmp_path / "plugin.py", WRAPPER.replace("(wrapped(", f"({wrap}(")
    found = [digests.of_code(beside.read_text())]
    for number in (2, 3):
        path.write_text(text.replace("2", str(number)))
        load_plugin(path)
        found.append(sf.models["mine"].digest)
        assert sf.models["mine"].modules[1:] == ("beside",)
        registry.models._entries.pop("mine")
    assert len(set(found)) == 3


WRAPPED = """
import beside
import sharpflat as sf
@sf.model
@beside.checked
def mine(x):
    return 1 / x
"""

HELPERS = """
import functools

def mine(x):
    return 1 / x

def checked(function):
    @functools.wraps(function)
    def wrapper(x):
        return function(x)
    return wrapper
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [(WRAPPED, 7), (WRAPPER, 16)],
    ids=["in their wrapper", "around their function"],
)
def test_an_error_is_told_with_the_plugins_own_line(tmp_path, beside, text, line):
    beside.write_text(HELPERS)
    path = tmp_path / "plugin.py"
    path.write_text(text)
    load_plugin(path)
    entry = sf.models["mine"]
    with pytest.raises(ZeroDivisionError) as caught:
        entry(0)
    assert registry.told(caught.value, [entry]).endswith(f"(plugin.py, line {line})")


BUILDS = """
import functools

def built(function):
    scope = {**globals(), "function": function}
    exec("@functools.wraps(function)\\ndef wrapper(x): return function(x)", scope)
    return scope["wrapper"]
"""


@pytest.mark.parametrize("of", ["beside", "plugin"])
def test_a_function_that_exec_made_has_the_code_of_its_module(tmp_path, beside, of):
    beside.write_text(BUILDS)
    start = BUILDS if of == "plugin" else "from beside import built"
    text = f"{start}\nimport sharpflat as sf\n@sf.model\n@built\ndef mine(x): ..."
    (tmp_path / "plugin.py").write_text(text)
    load_plugin(tmp_path / "plugin.py")
    sources = [text] if of == "plugin" else [BUILDS, text]
    assert sf.models["mine"].digest == digests.of_code(*sources)
    assert sf.models["mine"].file == tmp_path / "plugin.py"


def test_a_wrapper_of_a_library_counts_for_nothing(tmp_path):
    """Else a plugin's runs would be trained anew with the next JAX."""
    path, found = tmp_path / "plugin.py", set()
    wrappers = ("", "@jax.checkpoint", "@jax.default_matmul_precision('highest')", "@jax.jit")
    for wrapper in (*wrappers, "@functools.cache", "@jax.jit\n@jax.custom_jvp"):
        imports = "import functools\nimport jax\nimport sharpflat as sf\n"
        path.write_text(f"{imports}@sf.model\n{wrapper}\ndef mine(x): ...")
        load_plugin(path)
        found |= {sf.models["mine"].modules}
    assert [len(modules) for modules in found] == [1]


def test_of_a_notebooks_cell_its_function_counts(monkeypatch, things):
    """Not what it wraps alone."""
    scope, found = {"__name__": "__main__", "wraps": functools.wraps(doubled)}, set()
    for number in (1, 2, 2):
        cell = f"@wraps\ndef mine(x):\n    return {number}\n"
        known = (len(cell), None, cell.splitlines(keepends=True), "<cell>")
        monkeypatch.setitem(linecache.cache, "<cell>", known)
        exec(compile(cell, "<cell>", "exec"), scope)
        things.register(scope["mine"])
        found.add(things["doubled"].digest)
    assert len(found) == 2


class Doubling:
    def __call__(self, x):
        return 2 * x


@pytest.mark.parametrize(
    "nameless",
    [
        functools.partial(doubled, 1),
        functools.update_wrapper(functools.partial(doubled, 1), doubled),
        Doubling(),
        3,
    ],
    ids=["partial", "partial by another's name", "object", "number"],
)
def test_what_has_no_name_of_its_own_is_refused(things, nameless):
    with pytest.raises(InputError, match=r"thing .*: no name of its own; write a function"):
        things.register(nameless)


def test_code_that_cannot_be_read_is_refused(things):
    scope = {"__name__": "__console__"}
    exec("def typed_in(): ...", scope)
    with pytest.raises(InputError, match="thing 'typed_in': its code cannot be read; write it in"):
        things.register(scope["typed_in"])
