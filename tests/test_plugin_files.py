"""Plugins: what their files may hold, and whose entries they may replace."""

import pytest
from plugins import PLUGIN, own_registries  # noqa: F401

from sharpflat import digests, registry
from sharpflat.registry import load_plugin
from sharpflat.validation import InputError


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
