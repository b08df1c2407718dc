"""A second start repeats nothing, and a new metric needs no new training."""

import csv
import json

import pytest
import yaml
from runs.studies import NORM, content, contents, sharpflat, write

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.runs import cost
from sharpflat.training import Moment


def rows(root, study="tiny"):
    with (root / "studies" / study / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run_files(root):
    return {path: held for path, held in contents(root / "runs").items() if path.name != ".lock"}


def trained(root):
    """Everything of the runs but their measurements."""
    return {p: held for p, held in run_files(root).items() if p.name != "measurements.jsonl"}


def measured(root):
    """The metrics of each run, in the order in which they were measured."""
    return [
        [json.loads(line)["metric"] for line in file.read_text().splitlines()]
        for file in sorted(root.glob("runs/*/measurements.jsonl"))
    ]


def run(folder, *arguments, **changes):
    """Run the study with the results beside it."""
    return sharpflat("run", write(folder, **changes), *arguments, "--root", folder)


def test_a_second_start_trains_and_measures_nothing(tmp_path, monkeypatch):
    (tmp_path / "norm.py").write_text(NORM)
    study = {"plugins": ["norm.py"], "measure": {"metrics": ["weight_norm"]}}
    assert run(tmp_path, **study).code == 0
    before, table = run_files(tmp_path), (tmp_path / "studies/tiny/table.csv").read_bytes()

    def never(*args, **kwargs):
        pytest.fail("repeated")

    monkeypatch.setattr("sharpflat.runs.train_run._Training", never)
    monkeypatch.setattr("sharpflat.runs.measure_run._outcomes", never)
    assert run(tmp_path, **study).code == 0
    assert run_files(tmp_path) == before, "neither bytes nor times"
    assert (tmp_path / "studies/tiny/table.csv").read_bytes() == table


def test_another_study_shares_the_runs(tmp_path, monkeypatch):
    assert run(tmp_path).code == 0
    before = run_files(tmp_path)
    monkeypatch.setattr("sharpflat.runs.train_run._Training", lambda *args: pytest.fail("again"))
    assert run(tmp_path, study="other").code == 0
    assert run_files(tmp_path) == before
    assert [row["run"] for row in rows(tmp_path, "other")] == [row["run"] for row in rows(tmp_path)]


def test_more_seeds_train_only_the_new_ones(tmp_path):
    assert run(tmp_path, seeds=1).code == 0
    before = trained(tmp_path)
    assert run(tmp_path, seeds=2).code == 0
    after = trained(tmp_path)
    assert {path: after[path] for path in before if before[path]} == {
        path: held for path, held in before.items() if held
    }
    assert [row["seed"] for row in rows(tmp_path)] == ["0", "1", "0", "1"]


@pytest.mark.parametrize("given", ["--plugin", "plugins:"])
def test_a_metric_of_ones_own_is_added_without_training(tmp_path, given):
    text = NORM.strip().splitlines()
    assert len(text) <= 15
    (tmp_path / "norm.py").write_text(NORM)
    first = {"measure": {"metrics": ["hessian_top_eigenvalues"], "chunk": 40}}
    assert run(tmp_path, seeds=1, **first).code == 0
    before, old = trained(tmp_path), rows(tmp_path)
    both = ["hessian_top_eigenvalues", {"weight_norm": {"power": 2.0}}]
    study = {"seeds": 1, "measure": {"metrics": both, "chunk": 40}}
    if given == "--plugin":
        outcome = run(tmp_path, "--plugin", tmp_path / "norm.py", **study)
    else:
        outcome = run(tmp_path, plugins=["norm.py"], **study)
    assert outcome.code == 0
    assert "weight_norm" in outcome.out, "in the table that is shown"
    assert trained(tmp_path) == before
    assert measured(tmp_path) == [["hessian_top_eigenvalues", "weight_norm"]] * 2
    new = rows(tmp_path)
    for was, now in zip(old, new, strict=True):
        assert {key: now[key] for key in was} == was
        record = sf.Run(tmp_path / "runs" / now["run"])
        norm = float(sf.trees.norm(record.params))
        assert float(now["weight_norm"]) == pytest.approx(norm**2, rel=1e-6)
        assert now["weight_norm_converged"] == "true"
        assert now["weight_norm_standard_error"] == "0"


def test_edits_of_code_measure_again_and_edits_of_words_do_not(tmp_path):
    study = {"plugins": ["norm.py"], "measure": {"metrics": ["weight_norm"]}}
    (tmp_path / "norm.py").write_text(NORM)
    assert run(tmp_path, **study).code == 0
    before = run_files(tmp_path)
    first = rows(tmp_path)

    words = NORM.replace("# A comment.", "# Another one.").replace("The Euclidean", "The usual")
    assert words != NORM
    (tmp_path / "norm.py").write_text(words)
    assert run(tmp_path, **study).code == 0
    assert run_files(tmp_path) == before

    (tmp_path / "norm.py").write_text(NORM.replace("norm**power", "3 * norm**power"))
    assert run(tmp_path, **study).code == 0
    assert measured(tmp_path) == [["weight_norm"] * 2] * 4
    for was, now in zip(first, rows(tmp_path), strict=True):
        assert float(now["weight_norm"]) == pytest.approx(3 * float(was["weight_norm"]))


def test_the_same_metric_with_other_arguments_is_another_measurement(tmp_path):
    (tmp_path / "norm.py").write_text(NORM)
    for power in (1, 2):
        metrics = [{"weight_norm": {"power": power}}]
        study = {"plugins": ["norm.py"], "measure": {"metrics": metrics}}
        assert run(tmp_path, seeds=1, sweep=None, **study).code == 0
    (record,) = sf.load_runs(tmp_path, "tiny")
    one, two = record.measurements
    assert two["value"] == pytest.approx(one["value"] ** 2)
    (row,) = rows(tmp_path)
    assert float(row["weight_norm"]) == pytest.approx(two["value"]), "the one that is asked for"


def test_measurements_of_some_seeds(tmp_path):
    (tmp_path / "norm.py").write_text(NORM)
    measure = [{"metrics": ["weight_norm"]}, {"metrics": ["weight_norm"], "seeds": [1], "seed": 5}]
    assert run(tmp_path, plugins=["norm.py"], measure=measure).code == 0
    for row in rows(tmp_path):
        assert row["weight_norm[seed=0]"] != ""
        assert (row["weight_norm[seed=5]"] != "") == (row["seed"] == "1")


def test_train_and_measure_one_at_a_time(tmp_path):
    (tmp_path / "norm.py").write_text(NORM)
    path = write(tmp_path, plugins=["norm.py"], measure={"metrics": ["weight_norm"]}, seeds=1)
    root = ("--root", tmp_path / "a")
    assert sharpflat("train", path, *root).code == 0
    assert measured(tmp_path / "a") == []
    assert [row["weight_norm"] for row in rows(tmp_path / "a")] == ["", ""]
    before = trained(tmp_path / "a")
    assert sharpflat("measure", path, *root).code == 0
    assert trained(tmp_path / "a") == before
    assert sharpflat("run", path, "--root", tmp_path / "b").code == 0
    tables = [(tmp_path / x / "studies/tiny/table.csv").read_bytes() for x in "ab"]
    assert tables[0] == tables[1]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path):
    (tmp_path / "norm.py").write_text(NORM)
    trace = {"hessian_trace": {"probes": 4, "steps": 3}}
    study = {"plugins": ["norm.py"], "measure": {"metrics": ["weight_norm", trace]}}
    before = {path.name for path in tmp_path.iterdir()}
    plan = run(tmp_path, "--dry-run", **study)
    assert plan.code == 0
    runs, trainings, costs = plan.out.split("\n\n")
    assert trainings.startswith("4 trainings, their updates about ")
    assert len(runs.splitlines()) == 4
    assert all("new, 2 measurements to make" in line for line in runs.splitlines())
    lines = {line.split()[0]: line.split()[1:] for line in costs.splitlines()}
    assert lines["weight_norm"] == ["?", "?", "4"]
    gradients, seconds, unit, count = lines["hessian_trace[probes=4,steps=3]"]
    assert (gradients, unit, count) == ("14", "s", "4")  # seven products
    assert float(seconds) < 60
    assert costs.endswith("about 0.0 min, beside 1 that are not known\n")
    assert {path.name for path in tmp_path.iterdir()} == before | {"study.yaml"}

    assert run(tmp_path, **study).code == 0
    held = contents(tmp_path / "runs"), contents(tmp_path / "studies")
    study["measure"]["metrics"].append({"weight_norm": {"power": 2}})
    plan = run(tmp_path, "--dry-run", **study)
    assert [line.partition("  ")[0] for line in plan.out.split("\n\n")[0].splitlines()] == [
        row["run"] for row in rows(tmp_path)
    ]
    assert plan.out.count("finished, 1 measurements to make") == 4
    assert (contents(tmp_path / "runs"), contents(tmp_path / "studies")) == held


def test_a_dry_run_adds_up_over_the_kinds_of_runs(tmp_path, monkeypatch):
    """By the time that each network's own gradients and epochs take."""
    monkeypatch.setattr(cost, "_gradient_seconds", lambda config, *_: config["model"]["width"])
    monkeypatch.setattr(cost, "_epoch_seconds", lambda config, layout: config["model"]["width"])
    trace = {"hessian_trace": {"probes": 4, "steps": 3}}
    study = {"sweep": {"model.width": [30, 3]}, "measure": {"metrics": [trace]}, "plugins": []}
    plan = run(tmp_path, "--dry-run", "seeds=2", **study)
    assert plan.code == 0, plan
    seconds = 2 * (30 + 3)
    assert (
        f"4 trainings, their updates about {3 * seconds / 60:.1f} min one after another if"
        in plan.out
    )
    assert f"the sum about {14 * seconds / 60:.1f} min" in " ".join(plan.out.split())
    (line,) = (line for line in plan.out.splitlines() if line.startswith("hessian_trace"))
    assert line.split()[1:] == ["14", f"{14 * seconds / 4:.1f}", "s", "4"]


def test_an_epoch_is_timed_by_its_updates_but_for_those_that_compile(monkeypatch):
    """Forty examples by 16: two updates of that size, then one of 8; in the layout asked for."""
    moments = [(2, 50.0), (3, 60.0), (5, 0.5), (6, 0.25), (8, 0.5)]
    given = []

    def advance(*_, streamed_by, **__):
        given.append(streamed_by)
        return (Moment(step, None, None, seconds) for step, seconds in moments)

    monkeypatch.setattr(cost, "advance", advance)
    for asked, streamed in ((None, False), (False, True)):
        changes = {"sweep": {"train.batch_size": [16]}, "seeds": 1, "dataset_on_device": asked}
        study = configs.check(content(**changes))
        (cell,) = configs.cells(study)
        planned = [cost.Planned(cost.Run("run", {}, cell.resolved()), "new", [])]
        epoch = 3 * 1.25 / 5
        assert cost.trainings_seconds(study, planned) == (cell.train["epochs"] * epoch, 0)
        assert (given.pop() is not None) is streamed


def test_overrides_reach_the_runs(tmp_path):
    assert run(tmp_path, "train.batch_size=8", "train.epochs=2", "seeds=[5]").code == 0
    (row,) = rows(tmp_path)
    assert (row["train.batch_size"], row["seed"]) == ("8", "5")
    config = yaml.safe_load((tmp_path / "runs" / row["run"] / "config.yaml").read_text())
    assert (config["train"]["epochs"], config["seed"]) == (2, 5)


def test_the_api_runs_what_the_command_line_runs(tmp_path, monkeypatch):
    assert run(tmp_path).code == 0
    monkeypatch.setattr("sharpflat.runs.train_run._Training", lambda *args: pytest.fail("again"))
    runs = sf.run(sf.load_config(tmp_path / "study.yaml"), root=tmp_path)
    assert [record.id for record in runs] == [row["run"] for row in rows(tmp_path)]
    assert all(isinstance(record, sf.Run) for record in runs)
