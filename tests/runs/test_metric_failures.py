"""Metrics that raise or refuse, and records that are damaged: named, and the others stay."""

import json

import pytest
from runs.failing import rows, run
from runs.studies import NORM, sharpflat, write

import sharpflat as sf

FAULTY = NORM.replace("    norm = ", "    raise RuntimeError('not [today]')\n    norm = ").replace(
    "weight_norm", "faulty"
)
MENDED = NORM.replace("weight_norm", "faulty")


def test_a_metric_that_raises(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    study = {
        "plugins": ["norm.py", "faulty.py"], "sweep": None,
        "measure": {"metrics": ["faulty", "weight_norm"]},
    }  # fmt: skip
    outcome = run(tmp_path, **study)
    (record,) = sf.load_runs(tmp_path, "tiny")
    assert outcome.code == 1
    assert f"run {record.id}: faulty: RuntimeError: not [today]" in outcome.err
    failed, good = record.measurements
    line = 1 + FAULTY[: FAULTY.index("raise")].count("\n")
    assert failed["error"] == f"RuntimeError: not [today] (faulty.py, line {line})"
    assert (failed["value"], failed["standard_error"], failed["converged"]) == (None, None, False)
    assert good["error"] is None
    (row,) = rows(tmp_path)
    assert (row["faulty"], row["status"]) == ("", "finished")
    assert float(row["weight_norm"]) == pytest.approx(good["value"])
    shown = " ".join(sharpflat("show", "tiny", "--root", tmp_path).out.split())
    assert f"faulty: failed, or not finite, in 1 runs ({record.id[:6]})" in shown

    assert run(tmp_path, **study).code == 1, "tried again, and again in vain"

    (tmp_path / "faulty.py").write_text(MENDED)
    outcome = run(tmp_path, **study)
    assert outcome.code == 0, outcome
    lines = [json.loads(line) for line in record.measurements_file.read_text().splitlines()]
    assert [line["metric"] for line in lines] == ["faulty", "weight_norm", "faulty", "faulty"]
    (row,) = rows(tmp_path)
    assert float(row["faulty"]) == pytest.approx(float(row["weight_norm"]))


def test_errors_of_what_is_not_asked_for_do_not_count(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    study = {"plugins": ["norm.py", "faulty.py"], "sweep": None}
    assert run(tmp_path, **study, measure={"metrics": ["faulty"]}).code == 1
    assert run(tmp_path, **study).code == 0


def test_a_metric_that_returns_something_else(tmp_path):
    (tmp_path / "faulty.py").write_text(
        MENDED.replace("return sf.Estimate(norm**power, 0.0, True, {", "return (norm**power, {")
    )
    study = {"plugins": ["norm.py", "faulty.py"], "sweep": None}
    outcome = run(tmp_path, **study, measure={"metrics": ["faulty", "weight_norm"]})
    assert outcome.code == 1
    assert "not an Estimate" in outcome.err
    (record,) = sf.load_runs(tmp_path, "tiny")
    assert [row["error"] is None for row in record.measurements] == [False, True]


def test_a_damaged_snapshot_is_its_own_runs_error(tmp_path):
    study = {"seeds": 2, "sweep": None}
    path = write(tmp_path, **study)
    assert sharpflat("train", path, "--root", tmp_path).code == 0
    first, second = sf.load_runs(tmp_path, "tiny")
    last = max(first.folder.glob("snapshots/*.npz"), key=lambda file: int(file.stem))
    whole = last.read_bytes()
    last.write_bytes(whole[:200])
    outcome = run(tmp_path, **study)
    assert outcome.code == 1
    assert outcome.err.count(f"run {first.id}: weight_norm: InputError: {last}: cannot") == 1
    assert [row["error"] is None for row in second.measurements] == [True]
    assert last.read_bytes() == whole[:200]
    last.write_bytes(whole)
    assert run(tmp_path, **study).code == 0
    assert [row["error"] is None for row in first.measurements] == [True]


@pytest.mark.parametrize("line", ["{broken", "3", "{}", "\udcff"])
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, line):
    assert run(tmp_path, sweep=None).code == 0
    (record,) = sf.load_runs(tmp_path, "tiny")
    damaged = (
        line.encode("utf-8", "surrogateescape") + b"\n" + record.measurements_file.read_bytes()
    )
    record.measurements_file.write_bytes(damaged)
    said = run(tmp_path, sweep=None)
    assert said.code == 2
    (complaint,) = said.err.splitlines()
    what = f"{record.measurements_file}: line 1 is damaged; mend or remove it: "
    assert complaint.startswith(f"sharpflat: {what}")
    assert record.measurements_file.read_bytes() == damaged


@pytest.mark.parametrize("text", ['{"status": ', "null", "{}"])
def test_a_damaged_status_is_named(tmp_path, text):
    assert run(tmp_path, sweep=None).code == 0
    (record,) = sf.load_runs(tmp_path, "tiny")
    (record.folder / "status.json").write_text(text)
    said = run(tmp_path, sweep=None)
    assert said.code == 2
    (complaint,) = said.err.splitlines()
    assert complaint.startswith(f"sharpflat: {record.folder}/status.json: is damaged")
    assert complaint.endswith(f"; or move {record.folder} away to train anew")


def test_a_damaged_start_is_only_its_own_metrics_error(tmp_path):
    study = {"sweep": None, "measure": {"metrics": ["distance_from_initialization", "weight_norm"]}}
    (tmp_path / "norm.py").write_text(NORM)
    path = write(tmp_path, seeds=1, plugins=["norm.py"], **study)
    assert sharpflat("train", path, "--root", tmp_path).code == 0
    (record,) = sf.load_runs(tmp_path, "tiny")
    (record.folder / "snapshots" / "0.npz").write_bytes(b"")
    outcome = run(tmp_path, **study)
    assert outcome.code == 1
    assert [row["error"] is None for row in record.measurements] == [False, True]


PICKY = NORM.replace(
    "@sf.metric",
    """def refuse(objective, arguments):
    if float(sf.trees.norm(objective.params)) > 0:
        raise {error}("not [here]")


@sf.metric(checks=(refuse,))""",
).replace("weight_norm", "picky")


@pytest.mark.parametrize("error", ["sf.InputError", "TypeError"])
def test_a_check_that_needs_numbers_refuses_its_own_metric_only(tmp_path, error):
    (tmp_path / "picky.py").write_text(PICKY.replace("{error}", error))
    study = {"plugins": ["norm.py", "picky.py"], "sweep": None}
    outcome = run(tmp_path, **study, measure={"metrics": ["picky", "weight_norm"]})
    assert outcome.code == 1
    (record,) = sf.load_runs(tmp_path, "tiny")
    picky, norm = record.measurements
    assert "not [here]" in picky["error"]
    assert norm["error"] is None
