"""sharpflat audit: the tables on stdout, its progress on stderr, nothing on the disk."""

import pytest
from plugins import own_registries  # noqa: F401
from runs.studies import NORM, contents, sharpflat, write

import sharpflat as sf


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two finished runs, and one that has begun."""
    folder = tmp_path_factory.mktemp("audited")
    path = write(folder, seeds=2, sweep=None)
    assert sharpflat("run", path, "--root", folder / "results").code == 0
    begun = folder / "results" / "runs" / "zzz"
    begun.mkdir()
    config = sf.load_runs(folder / "results", "tiny")[0].folder / "config.yaml"
    (begun / "config.yaml").write_bytes(config.read_bytes())
    return folder / "results"


def test_the_invariance_of_a_run(results, tmp_path):
    first, second = sf.load_runs(results, "tiny")
    assert (first.seed, second.seed) == (0, 1)
    (tmp_path / "norm.py").write_text(NORM)
    before = contents(results)
    names = ("path_norm", "distance_from_initialization", "weight_norm")
    asked = [part for name in names for part in ("--metric", name)]
    outcome = sharpflat(
        "audit", second.id[:8], *asked, "--examples", 30, "--root", results,
        "--plugin", tmp_path / "norm.py",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert contents(results) == before
    objective = second.objective("train", "running", examples=30)
    start = second.initial_params
    specs = ["path_norm", "distance_from_initialization"]
    expected = sf.invariance_table(objective, specs, seed=1, initial_params=start)
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    for line in str(expected).splitlines()[2:4]:
        assert " ".join(line.split()) in lines
    assert [line.split()[0] for line in lines[2:5]] == list(names)
    assert "bfloat16" not in outcome.out
    said = outcome.err.splitlines()
    assert said[0].startswith("12 measurements on 30 examples, about 0.0 min")
    assert said[1:3] == ["as it is: path_norm", "as it is: distance_from_initialization"]
    assert "relu_rescaling: weight_norm" in said


def test_precision_too(results):
    run = sf.load_runs(results, "tiny")[0]
    outcome = sharpflat("audit", run.id, "--metric", "path_norm", "--precision", "--root", results)
    assert outcome.code == 0, outcome
    first, second = outcome.out.split("\n\nmetric", maxsplit=1)
    assert first.splitlines()[0].split()[-1] == "logit_rescaling"
    assert second.splitlines()[0].split() == ["bfloat16", "float32", "float64"]
    assert "float64: path_norm" in outcome.err
    # As it is, after three changes and in three formats, on all examples that there are.
    assert outcome.err.startswith("7 measurements on 40 examples")


def test_of_a_large_training_set_the_first_thousand(tmp_path):
    path, root = write(tmp_path, seeds=1, sweep=None), tmp_path / "results"
    many = ("dataset.train_examples=1200", "train.epochs=1", "train.batch_size=400")
    assert sharpflat("train", path, *many, "--root", root).code == 0
    ask = ("audit", sf.load_runs(root, "tiny")[0].id, "--metric", "path_norm", "--root", root)
    assert " on 1000 examples" in sharpflat(*ask).err
    assert " on 1100 examples" in sharpflat(*ask, "--examples", 1100).err


def test_bad_input(results, tmp_path):
    before = contents(results)
    one, other = (run.id for run in sf.load_runs(results, "tiny"))
    for arguments, words in (
        ((one[:-2] + "xx",), f"run: unknown '{one[:-2]}xx'; did you mean '{one}'?"),
        (("",), "is the beginning of"),
        (("zzz",), "has not finished"),
        ((other, "--metric", "path_nrm"), "did you mean 'path_norm'?"),
        ((other, "--examples", 1000), "1000 is above the 40 of 'train'"),
    ):
        assert words in sharpflat("audit", *arguments, "--root", results).complaint
    assert contents(results) == before
    message = sharpflat("audit", one, "--root", tmp_path / "none").complaint
    assert message == f"run: unknown '{one}'; {tmp_path / 'none'} holds no runs yet"
    assert not (tmp_path / "none").exists()
