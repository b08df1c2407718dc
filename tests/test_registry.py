"""Registries: names, schemas and plugins."""

import functools
import linecache
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from plugins import PLUGIN, own_registries  # noqa: F401

import sharpflat as sf
from sharpflat import digests, registry
from sharpflat.registry import Entry, Registry, load_plugin
from sharpflat.validation import InputError


@pytest.fixture
def things():
    return Registry("thing")


def test_a_registry_is_a_mapping_in_order_of_names(things):
    @things.register
    def pear():
        pass

    @things.register
    def apple():
        pass

    assert list(things) == ["apple", "pear"]
    assert len(things) == 2
    assert "pear" in things
    assert "fig" not in things
    assert dict(things)["pear"].name == "pear"


def test_register_hands_the_function_back(things):
    @things.register
    def double(x):
        return 2 * x

    assert double(3) == things["double"](3) == 6


def test_unknown_names_are_told_with_the_closest(things):
    @things.register
    def sharpness():
        pass

    with pytest.raises(KeyError) as caught:
        things["sharpnes"]
    assert isinstance(caught.value, InputError)
    assert str(caught.value) == "unknown thing 'sharpnes'; did you mean 'sharpness'?"
    with pytest.raises(InputError, match="unknown thing 'zzz'; known: sharpness"):
        things["zzz"]


def test_what_is_ours_cannot_be_replaced():
    name = "hessian_top_eigenvalues"
    assert sf.metrics[name].built_in

    def impostor():
        pass

    impostor.__name__ = name
    with pytest.raises(InputError, match=f"'{name}' is sharpflat's own"):
        sf.metric(impostor)
    assert sf.metrics[name].built_in


def example(
    objective,
    key,
    *,
    start,
    rho: sf.Positive = 0.5,
    draws: sf.Count = 2,
    sizes: tuple[int, ...] = (),
):
    """First line.

    More of it.
    """


def test_keyword_arguments_are_the_schema():
    entry = Entry("metric", "example", example)
    assert entry.inputs == ("start",)
    assert entry.arguments({}) == {"rho": 0.5, "draws": 2, "sizes": ()}
    assert entry.arguments({"rho": 1, "sizes": [1, 2]}) == {"rho": 1.0, "draws": 2, "sizes": (1, 2)}
    assert entry.summary == "First line."
    for text in ("More of it.", "rho", "0.5", "start"):
        assert text in entry.description


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"roh": 1.0}, r"example\.roh: unknown key 'roh'; did you mean 'rho'\?"),
        ({"rho": -1.0}, r"example\.rho: .*greater than 0, got -1"),
        ({"rho": float("nan")}, r"example\.rho: .*finite"),
        ({"rho": "0.5"}, r"example\.rho: .*number, got '0.5'"),
        ({"rho": True}, r"example\.rho: "),
        ({"draws": 2.0}, r"example\.draws: .*integer"),
        ({"draws": True}, r"example\.draws: .*integer"),
        ({"sizes": [1, "2"]}, r"example\.sizes\.1: .*integer"),
        ({"start": 1}, r"example\.start: unknown key"),
        ([1], "example: expected a mapping"),
        ({("a", "b"): 1}, "example: "),
    ],
)
def test_arguments_are_strict(given, message):
    with pytest.raises(InputError, match=message):
        Entry("metric", "example", example).arguments(given)


def test_an_endless_mapping_is_refused():
    endless = {}
    endless["rho"] = endless
    with pytest.raises(InputError):
        Entry("metric", "example", example).arguments(endless)


def test_a_plugin_edited_at_once_is_not_taken_for_the_old_one(tmp_path):
    path = tmp_path / "plugin.py"
    values = []
    for number in ("1.0", "2.0", "3.0"):  # same length, same second
        path.write_text(PLUGIN.replace("= 1.0", f"= {number}"))
        load_plugin(path)
        values.append(registry.metrics["mine"].arguments({})["factor"])
    assert values == [1.0, 2.0, 3.0]
    assert [file.name for file in tmp_path.iterdir()] == ["plugin.py"]


def test_the_digest_is_of_what_was_run(tmp_path):
    path, text = tmp_path / "plugin.py", f"open(__file__, 'w').close()\n{PLUGIN}"
    path.write_text(text)
    load_plugin(path)
    assert path.read_text() == ""
    assert registry.metrics["mine"].digest == digests.of_code_and_imports(text)


@pytest.mark.parametrize("name", ["__source__", "__file__", "source"])
def test_a_plugin_may_give_any_name(tmp_path, name):
    path, found = tmp_path / "plugin.py", set()
    for number in ("1.0", "2.0"):
        path.write_text(f"{PLUGIN.replace('= 1.0', f'= {number}')}\n{name} = 'https://x.y'")
        load_plugin(path)
        found.add(registry.metrics["mine"].digest)
        assert registry.metrics["mine"].file == path
    path.write_text(f"{name} = 'https://x.y'\n{PLUGIN}")
    load_plugin(path)
    assert len({*found, registry.metrics["mine"].digest}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("raise ValueError('so\\nnot')", "ValueError: so"),
        ("def f(:", "SyntaxError"),
        ("import sharpflat as sf\nsf.metrics['hesian']", "unknown metric 'hesian'"),
        (
            "import sharpflat as sf\n@sf.metric\ndef mine(objective, key, *, start, rho=0.1): ...",
            "metric 'mine': argument 'rho' has no type; write it as 'rho: float = 0.1'",
        ),
    ],
)
def test_plugins_that_fail_are_named(tmp_path, text, message):
    path = tmp_path / "plugin.py"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_plugin(path)


def test_a_plugin_that_is_missing(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/plugin.py: no such file"):
        load_plugin(tmp_path / "plugin.py")


@pytest.mark.parametrize("code", ["import sharpflat", "import sharpflat.cli"])
def test_importing_does_not_import_jax(code):
    script = (
        f"{code}\nimport sys\nprint(sorted({{'jax', 'flax', 'matplotlib'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_public_names_are_there():
    for name in sf.__all__:
        assert getattr(sf, name) is not None
    assert set(sf.__all__) <= set(dir(sf))
    with pytest.raises(AttributeError, match="no attribute 'objectiv'"):
        sf.objectiv  # noqa: B018


def test_a_plugin_of_the_same_name_elsewhere_replaces_nothing(tmp_path):
    for folder, number in (("a", "1.0"), ("b", "2.0"), ("copy of a", "1.0")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PLUGIN.replace("= 1.0", f"= {number}"))
    load_plugin(tmp_path / "a" / "mine.py")
    with pytest.raises(InputError, match=r"'mine' is that of .*/a/mine\.py; choose another"):
        load_plugin(tmp_path / "b" / "mine.py")
    assert registry.metrics["mine"].arguments({}) == {"factor": 1.0}
    load_plugin(tmp_path / "b" / ".." / "a" / "mine.py")  # the same file
    load_plugin(tmp_path / "copy of a" / "mine.py")


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
