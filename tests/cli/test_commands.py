"""The commands that only read: list, show, plot, and the help."""

import gc
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from runs.studies import NORM, contents, sharpflat, write

import sharpflat as sf
from sharpflat import cli, registry

KINDS = ("metrics", "models", "datasets", "optimizers", "schedules", "figures")


@pytest.mark.parametrize("kind", KINDS)
def test_list_shows_every_entry_with_its_summary(kind):
    outcome = sharpflat("list", kind)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    entries = getattr(registry, kind)
    assert [line.split()[0] for line in lines] == sorted(entries)
    for line, name in zip(lines, sorted(entries), strict=True):
        assert len(entries[name].summary) > 10
        assert line.endswith(entries[name].summary)


def test_python_m_sharpflat_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "sharpflat", "list", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sharpflat: list: unknown kind 'nothing'")


def test_list_shows_one_entry_in_full():
    out = sharpflat("list", "metrics", "keskar_sharpness").out
    for text in ("φ = 100", "epsilon", "0.001", "Source: Keskar et al. (2017)", "lbfgsb"):
        assert text in out
    out = sharpflat("list", "optimizers", "adam").out
    assert "learning_rate" in out
    assert "0.999" in out


def test_list_knows_plugins(tmp_path):
    (tmp_path / "norm.py").write_text(NORM)
    out = sharpflat("list", "metrics", "--plugin", tmp_path / "norm.py").out
    assert "weight_norm" in out


def test_list_config_is_a_json_schema():
    schema = json.loads(sharpflat("list", "config").out)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {
        "study", "plugins", "dataset", "model", "train", "seeds", "sweep", "together",
        "data_parallel", "dataset_on_device", "checkpoint_seconds", "measure", "landscape",
        "figures",
    }  # fmt: skip
    assert {"study", "dataset", "model", "train"} == set(schema["required"])
    references = [part["$ref"] for part in _parts(schema) if "$ref" in part]
    assert references
    for reference in references:
        assert reference.removeprefix("#/$defs/") in schema["$defs"]
    assert schema["$defs"]["Train"]["properties"]["batch_size"]["minimum"] == 1


def test_list_config_shows_one_part():
    whole = json.loads(sharpflat("list", "config").out)
    train = json.loads(sharpflat("list", "config", "train").out)
    stop = train["$defs"].pop("Stop")
    assert train["properties"] == whole["$defs"]["Train"]["properties"]
    assert "Measure" not in train["$defs"]
    assert json.loads(sharpflat("list", "config", "train.stop").out).items() >= stop.items()
    examples = json.loads(sharpflat("list", "config", "measure.examples").out)
    assert examples == whole["$defs"]["Measure"]["properties"]["examples"]


def _parts(schema):
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from _parts(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _parts(value)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "config"]])
def test_help_does_not_import_jax(arguments):
    script = """
import sys
from sharpflat import cli
sys.argv = ["sharpflat", *sys.argv[1:]]
try:
    cli.main()
finally:
    loaded = {"jax", "flax", "matplotlib", "orbax", "scipy"} & set(sys.modules)
    print(sorted(loaded), file=sys.stderr)
"""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert len(done.stdout) > 200
    assert done.stderr == "[]\n"


def test_an_interrupt_that_would_be_dropped_comes_again():
    """JAX's callback of the garbage collector swallows what is raised while it is at work."""

    def _xla_gc_callback():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AssertionError("it would be dropped here") from None

    assert any(found.__name__ == "_xla_gc_callback" for found in gc.callbacks), "that is its name"
    before = signal.signal(signal.SIGINT, cli.interrupt)
    try:
        _xla_gc_callback()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_platform_that_is_not_there(tmp_path):
    command = [sys.executable, "-m", "sharpflat", "run", write(tmp_path), "--root", tmp_path]
    done = subprocess.run(
        [*command, "--dry-run"], capture_output=True, text=True,
        env={**os.environ, "JAX_PLATFORMS": "nowhere"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(
        "sharpflat: JAX_PLATFORMS: JAX finds no device for 'nowhere' here"
    )
    assert done.stderr.count("\n") == 1


def test_the_installed_command():
    command = [sys.executable, "-m", "sharpflat.cli", "show", "--root", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sharpflat: /nowhere: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "norm.py").write_text(NORM)
    metrics = [{"weight_norm": {"power": 1}}, {"weight_norm": {"power": 2}}]
    path = write(folder, plugins=["norm.py"], measure={"metrics": metrics})
    entries = dict(registry.metrics._entries)
    outcome = sharpflat("run", path, "--root", folder / "results")
    registry.metrics._entries = entries
    assert outcome.code == 0, outcome
    return folder / "results", outcome


def test_run_shows_its_table_and_says_on_stderr_how_it_goes(results):
    _, outcome = results
    for text in ("tiny", "batch_size=8", "batch_size=40", "(2 seeds)", "generalization_gap"):
        assert text in outcome.out
    assert outcome.err.count("train ") == 4
    assert "all 3 epochs done" in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("measure ")]
    assert [line.partition(": ")[2] for line in lines[:2]] == [
        "0 of 2  weight_norm", "1 of 2  weight_norm[power=2.0]",
    ], "each is named when its work begins"  # fmt: skip
    root, _ = results
    assert outcome.out.splitlines()[-1] == f"table.csv in {root}/studies/tiny"


def test_show_names_each_measurement_with_its_arguments(results):
    root, outcome = results
    out = sharpflat("show", "tiny", "--root", root).out
    for text in ("[power=1]", "[power=2]", "large_batch_gap", "test_accuracy"):
        assert text in out
    assert out.splitlines() == outcome.out.splitlines()[:-2], "as `run` told"
    quantities = [
        line.strip("│ ").split()[0] for line in out.splitlines()
        if line.startswith("│") and line[2] != " "
    ]  # fmt: skip
    assert quantities[0] == "generalization_gap", "gap and sharpness first"
    assert quantities[1].startswith("weight_norm")
    assert quantities.index("test_accuracy") > 2


def test_show_without_a_name_shows_all_studies(results):
    root, _ = results
    out = sharpflat("show", "--root", root).out
    assert out == sharpflat("show", "tiny", "--root", root).out


def test_plot_draws_one_figure(results):
    root, _ = results
    before = contents(root / "runs")
    outcome = sharpflat(
        "plot", "tiny", "--figure", "training_curves", "width=column", "--root", root
    )
    assert outcome.code == 0
    folder = root / "studies" / "tiny" / "figures"
    assert outcome.out.strip() == str(folder / "training_curves.png")
    assert {path.suffix for path in folder.iterdir()} == {".png", ".pdf", ".csv", ".txt"}
    assert contents(root / "runs") == before


def test_records_of_a_plugin_are_read_without_it(results):
    root, _ = results
    assert "weight_norm" not in sf.metrics
    for run in sf.load_runs(root, "tiny"):
        one, two = run.measurements
        assert two["value"] == pytest.approx(one["value"] ** 2)
