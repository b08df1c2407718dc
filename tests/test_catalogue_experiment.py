"""The criterion of experiments/keskar2017_catalogue.py, on tables that are made up."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import sharpflat as sf
from sharpflat import config as configs

FILE = Path(__file__).parents[1] / "experiments" / "keskar2017_catalogue.py"
spec = importlib.util.spec_from_file_location("keskar2017_catalogue", FILE)
experiment = importlib.util.module_from_spec(spec)
spec.loader.exec_module(experiment)

SMALL, LARGE = [1.0, 2.0, 3.0, 4.0, 5.0], [2.1, 4.4, 5.9, 8.2, 10.1]


def table(small, large, name="m"):
    return [
        {"seed": str(seed), "train.batch_size": str(size), name: value, f"{name}_converged": "true"}
        for size, values in ((256, small), (6000, large))
        for seed, value in enumerate(map(str, values))
    ]


def test_pairs_are_by_seed_whatever_the_order():
    rows = table(SMALL, LARGE)
    found = experiment.compare(rows[::-1], "m")
    assert found == experiment.compare(rows, "m")
    logs = np.log(LARGE), np.log(SMALL)
    assert found.p == pytest.approx(scipy.stats.ttest_rel(*logs).pvalue)
    assert found.change.mean == pytest.approx(np.exp(np.mean(logs[0] - logs[1])))


@pytest.mark.parametrize("gone", [2, 7])
def test_a_missing_run_or_value_is_not_judged(gone):
    """And the other runs are not paired with each other in its place."""
    rows = table(SMALL, LARGE)
    found = experiment.compare(rows[:gone] + rows[gone + 1 :], "m")
    assert np.isnan(found.p)
    assert experiment.verdict(found, 1.0) == "not judged"
    rows[gone]["m"] = ""
    assert np.isnan(experiment.compare(rows, "m").p)


def test_differences_instead_of_ratios_where_something_is_not_positive():
    found = experiment.compare(table([-1.0, *SMALL[1:]], LARGE), "m")
    assert not found.ratio
    assert found.p == pytest.approx(scipy.stats.ttest_rel(LARGE, [-1.0, *SMALL[1:]]).pvalue)


def test_no_spread_is_no_proof():
    assert experiment.compare(table(SMALL, [2 * value for value in SMALL]), "m").p == 1


def test_what_is_not_judged_counts_among_the_many():
    """Three measures, one of them without a value: the smallest p is multiplied by three."""
    rows = table(SMALL, LARGE)
    sure = experiment.compare(rows, "m")
    rows[0]["m"] = ""
    unknown = experiment.compare(rows, "m")
    (_, corrected, said), *_ = experiment.judged([unknown, sure._replace(p=0.01), unknown])
    assert corrected == pytest.approx(0.03)
    assert said == "**LB larger**"
    assert experiment.verdict(sure._replace(p=0.04), 0.12) == "suggested: LB larger"
    assert experiment.verdict(sure._replace(p=0.06), 0.18) == "not told apart"


def test_the_committed_page_is_of_the_committed_table():
    rows = experiment.read_table()
    assert len(rows) == 10
    anew = experiment.read_table(experiment.ANEW)
    assert len(anew) == 10
    page = FILE.parents[1] / "docs" / "catalogue_f1.md"
    for table in (rows, anew):
        assert experiment.markdown(table) in page.read_text(encoding="utf-8")
    assert len(experiment.measures(rows)) == 39


@pytest.mark.parametrize(("folder", "measures"), [(experiment.RESULTS, 39), (experiment.ANEW, 5)])
def test_the_committed_table_is_of_the_committed_measurements(folder, measures):
    """Nine digits of each value, error and certificate; what has no number is empty."""
    lines = (folder / "measurements.jsonl").read_text(encoding="utf-8").splitlines()
    found = {(row["run"], row["metric"]): row for row in map(json.loads, lines)}
    rows = experiment.read_table(folder)
    assert len(found) == len(lines) == measures * len(rows)
    for row in rows:
        for name in experiment.measures(rows):
            line = found[row["run"], name]
            for column, key in ((name, "value"), (f"{name}_standard_error", "standard_error")):
                assert (row[column] == "") == (line[key] is None)
                if line[key] is not None:
                    assert float(row[column]) == pytest.approx(line[key], rel=1e-8)
            assert row[f"{name}_converged"] == str(line["converged"]).lower()
            assert (line["error"], line["batch_norm"], line["examples"]) == (None, "running", 6000)


@pytest.mark.parametrize("study", experiment.STUDIES)
def test_the_committed_runs_are_those_of_the_config(study):
    """Ids stay, whatever keys `train` is given later: the runs need not be trained again."""
    file = f"{study.removeprefix('keskar2017-').replace('-', '_')}.yaml"
    config = sf.load_config(FILE.parents[1] / "configs" / "keskar2017" / file)
    assert config.study == study
    ids = [cell.id for cell in configs.cells(config)]
    rows = experiment.read_table(experiment.STUDIES[study])
    assert sorted(ids) == sorted(row["run"] for row in rows)


def test_what_is_said_of_both_tables_is_so():
    """The numbers in the words beside the second table."""
    first, anew = (
        experiment.compare(experiment.read_table(folder), "hessian_top_eigenvalues")
        for folder in (experiment.RESULTS, experiment.ANEW)
    )
    np.testing.assert_allclose(anew.large, first.large, rtol=0.02)
    ends = [f"{end:.2f}" for one in (anew, first) for end in (min(one.small), max(one.small))]
    assert "{} to {} where it was {} to {}".format(*ends) in experiment.HEAD_ANEW
    times = [1 / one.change.mean for one in (first, anew)]
    assert f"{times[0]:.0f} times above, {times[1]:.1f} times here" in experiment.HEAD_ANEW
    whole = [experiment.compare(experiment.read_table(), name) for name in
             experiment.measures(experiment.read_table())]  # fmt: skip
    whole = [anew if one.name == anew.name else one for one in whole]
    (said,) = (said for one, _, said in experiment.judged(whole) if one is anew)
    assert said == "suggested: SB larger"
