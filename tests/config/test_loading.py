"""Files, broken YAML, plugins, and the configs that we ship."""

import subprocess
import sys

import pytest
import yaml
from config.given import CONFIGS, cells, load, plugin, sizes
from runs.studies import NORM, content, write

import sharpflat as sf
from sharpflat import config as configs

BROKEN = [
    ("study: tiny\ntrain: {batch_size: 8\nseeds: 2\n", "line 3"),
    ("study: tiny\n\ttrain: 3\n", "line 2"),
    ("study: tiny\nseeds: 2\nseeds: 3\n", "line 3"),
    ("study: tiny\ntrain:\n  epochs: 1\n  batch_size: 8\n  epochs: 2\n", "line 5"),
    ("study: *unknown\n", "line 1"),
    ("study: !!python/object/apply:os.getcwd []\n", "line 1"),
    ("study: tiny\nseeds: 2024-13-45\n", "month"),
    ("study: tiny\x00\n", "not allowed"),
]


@pytest.mark.parametrize(("text", "place"), BROKEN)
def test_broken_yaml_is_told_with_its_line(tmp_path, text, place):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(sf.InputError) as caught:
        sf.load_config(path)
    message = str(caught.value)
    assert str(path) in message
    assert place in message
    assert "\n" not in message


def test_a_key_given_twice_is_named(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text() + "seeds: 3\n")
    with pytest.raises(sf.InputError, match="key 'seeds' is given twice"):
        sf.load_config(path)


@pytest.mark.parametrize("text", ["", "5", "- a\n- b", "# nothing"])
def test_a_config_is_a_mapping(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(sf.InputError, match="expected a mapping of keys"):
        sf.load_config(path)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(sf.InputError, match=str(path)):
            sf.load_config(path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(sf.InputError, match="bytes.yaml"):
        sf.load_config(tmp_path / "bytes.yaml")


def test_the_contract(tmp_path):
    config = sf.load_config(CONFIGS / "quickstart.yaml", ["train.batch_size=64"])
    runs = configs.cells(config)
    assert set(sizes(runs)) == {64}
    assert len(runs) == 10  # two numbers of epochs, five seeds


def test_plugins_lie_beside_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    plugin(tmp_path, NORM)
    config = load(tmp_path, "measure.metrics=[weight_norm]", plugins=["mine.py"])
    assert config.plugins == [str(tmp_path / "mine.py")]


def test_plugins_given_beside_the_config(tmp_path, monkeypatch):
    plugin(tmp_path, NORM)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, measure={"metrics": [{"weight_norm": {"power": 2}}]})
    config = sf.load_config(path, plugins=["mine.py"])
    assert config.plugins == [str(tmp_path / "mine.py")]
    with pytest.raises(sf.InputError, match=r"weight_norm\.power: .* greater than 0"):
        sf.load_config(path, ["measure.metrics=[{weight_norm: {power: 0}}]"], ["mine.py"])


def test_every_config_that_we_ship_loads():
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert files
    for file in files:
        assert configs.cells(sf.load_config(file))


def test_a_config_loads_figures_in_a_process_that_has_not_drawn(tmp_path):
    path = write(tmp_path, figures=["line"])
    code = f"import sharpflat as sf; print(sf.load_config({str(path)!r}).figures)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['line']\n", done.stderr


def test_a_resolved_config_is_plain_yaml(tmp_path):
    run = cells(tmp_path, "model.width=[8, 4]")[0]
    assert yaml.safe_load(yaml.safe_dump(run.resolved())) == run.resolved()
    assert run.resolved()["train"]["optimizer"]["b2"] == 0.999
    assert content()["model"]["width"] == 8
