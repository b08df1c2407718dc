"""Registries: names and schemas."""

import subprocess
import sys

import pytest
from plugins import PLUGIN, own_registries  # noqa: F401

import sharpflat as sf
from sharpflat.registry import Entry, Registry
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
