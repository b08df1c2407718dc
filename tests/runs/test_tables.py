"""Names of columns, tables on the disk, and what is computed from their rows."""

import math

import pytest
import yaml
from runs.studies import content

from sharpflat import config as configs
from sharpflat.runs.requests import requests
from sharpflat.runs.summary import large_batch_gap, paired, summarise
from sharpflat.runs.table import (
    column_names,
    measurement_columns,
    read_table,
    swept_keys,
    write_table,
)
from sharpflat.validation import InputError


def columns(measure):
    return column_names(requests(configs.check(content(measure=measure))))


def test_a_column_is_named_after_its_metric():
    metrics = ["hessian_top_eigenvalues", {"keskar_sharpness": {"epsilon": 0.01}}]
    assert columns({"metrics": metrics}) == ["hessian_top_eigenvalues", "keskar_sharpness"]


def test_and_after_the_arguments_that_differ():
    small, large, sub = {"epsilon": 5e-4}, {"epsilon": 1e-3}, {"epsilon": 1e-3, "subspace": 100}
    metrics = [{"keskar_sharpness": given} for given in (small, large)]
    assert columns({"metrics": metrics}) == [
        "keskar_sharpness[epsilon=0.0005]", "keskar_sharpness[epsilon=0.001]",
    ]  # fmt: skip
    metrics = [{"keskar_sharpness": given} for given in (small, large, sub)]
    assert columns({"metrics": metrics}) == [
        "keskar_sharpness[epsilon=0.0005,subspace=null]",
        "keskar_sharpness[epsilon=0.001,subspace=null]",
        "keskar_sharpness[epsilon=0.001,subspace=100]",
    ]
    metrics = [{"keskar_sharpness": {"starts": starts}} for starts in (["zero"], ["zero", "sign"])]
    assert columns({"metrics": metrics}) == [
        'keskar_sharpness[starts=["zero"]]', 'keskar_sharpness[starts=["zero", "sign"]]',
    ]  # fmt: skip


def test_and_after_what_else_differs():
    measure = {"metrics": ["hessian_top_eigenvalues"], "batch_norm": ["running", "batch"]}
    assert columns(measure) == [
        "hessian_top_eigenvalues[batch_norm=running]", "hessian_top_eigenvalues[batch_norm=batch]",
    ]  # fmt: skip
    metrics = ["hessian_top_eigenvalues"]
    blocks = [{"metrics": metrics}, {"metrics": metrics, "split": "test", "examples": 10}]
    assert columns(blocks) == [
        "hessian_top_eigenvalues[split=train,examples=null]",
        "hessian_top_eigenvalues[split=test,examples=10]",
    ]


def row(batch_size, seed, test_accuracy, status="finished", sharpness=1.0, converged=True, **swept):
    return {
        "run": f"{batch_size}{seed}", "seed": seed, "status": status,
        "train.batch_size": batch_size, **swept, "train_accuracy": 1.0,
        "test_accuracy": test_accuracy, "train_loss": 0.1, "test_loss": 0.2,
        "generalization_gap": None if test_accuracy is None else 1.0 - test_accuracy,
        "sharpness[rho=0.1,kind=a]": sharpness,
        "sharpness[rho=0.1,kind=a]_standard_error": None,
        "sharpness[rho=0.1,kind=a]_converged": converged,
        "sharpness[rho=0.1,kind=a]_batch_norm": "running",
    }  # fmt: skip


def test_tables_come_back_as_they_were(tmp_path):
    rows = [
        row(8, 0, 0.1 + 0.2, **{"model.width": [8, 4], "train.optimizer.name": "adam"}),
        row(
            40, 1, None, "diverged", None, None, **{"model.width": 3, "train.optimizer.name": "é,"}
        ),
    ]
    write_table(tmp_path / "table.csv", rows)
    back = read_table(tmp_path / "table.csv")
    assert back[0]["test_accuracy"] == pytest.approx(0.3, rel=1e-8)
    for was, now in zip(rows, back, strict=True):
        assert {k: v for k, v in now.items() if k != "test_accuracy"} == {
            k: v for k, v in was.items() if k != "test_accuracy"
        }
    assert swept_keys(back) == ["train.batch_size", "model.width", "train.optimizer.name"]
    assert measurement_columns(back) == ["sharpness[rho=0.1,kind=a]"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: text.rindex(",0.1")], "row 3 has"),
        (lambda text: text.partition("\n")[0], "it is cut off"),
        (lambda text: "", "it is cut off"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, damage, words):
    path = tmp_path / "table.csv"
    write_table(path, [row(8, 0, 0.5), row(40, 0, 0.6)])
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=words) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_the_large_batch_gap_is_paired_by_seed():
    rows = [
        row(8, 0, 0.90), row(8, 1, 0.80), row(8, 2, 0.70), row(8, 3, 0.1),
        row(64, 0, 0.0), row(64, 1, 0.0), row(64, 2, 0.0),
        # In another order; seed 3 has diverged, seed 4 has no small batch.
        row(512, 2, 0.66), row(512, 0, 0.89), row(512, 1, 0.77), row(512, 3, None, "diverged"),
        row(512, 4, 0.99),
    ]  # fmt: skip
    gap = large_batch_gap(rows)
    assert gap.n == 3
    assert gap.mean == pytest.approx((0.01 + 0.03 + 0.04) / 3)
    # Unpaired, the spread of the seeds would drown it.
    assert gap.sd == pytest.approx(
        math.sqrt(((5 / 3) ** 2 + (1 / 3) ** 2 + (4 / 3) ** 2) / 2) / 100
    )
    assert gap.low < gap.mean < gap.high
    assert paired(rows, "test_accuracy", {"train.batch_size": 512}, {"train.batch_size": 8}) == (
        [0.66, 0.89, 0.77], [0.70, 0.90, 0.80],
    )  # fmt: skip


def test_no_large_batch_gap_where_there_is_none():
    assert large_batch_gap([row(8, 0, 0.9), row(8, 1, 0.9)]) is None
    assert large_batch_gap([row(8, 0, 0.9), row(40, 1, 0.9)]) is None
    ambiguous = [row(8, 0, 0.9, width=1), row(8, 0, 0.8, width=2), row(40, 0, 0.7, width=1)]
    assert large_batch_gap(ambiguous) is None


def test_settings_are_summarised_over_finished_seeds():
    rows = [
        row(8, 0, 0.9, sharpness=1.0), row(8, 1, 0.7, sharpness=3.0, converged=False),
        row(8, 2, None, "diverged", None, None), row(40, 0, 0.5, sharpness=None, converged=None),
    ]  # fmt: skip
    small, large = summarise(rows)
    assert small.swept == {"train.batch_size": 8}
    assert small.seeds == (0, 1)
    sharpness = small.cells["sharpness[rho=0.1,kind=a]"]
    assert sharpness.values == (1.0, 3.0)
    assert sharpness.interval.mean == 2.0
    assert sharpness.interval.sd == pytest.approx(math.sqrt(2))
    assert (sharpness.converged, sharpness.batch_norm) == (1, "running")
    assert small.cells["test_accuracy"].interval.mean == pytest.approx(0.8)
    assert small.cells["test_accuracy"].converged is None
    assert "sharpness[rho=0.1,kind=a]" not in large.cells
    assert (small.lost, large.lost) == ({}, {})


def test_measurements_without_a_number_are_counted():
    rows = [row(8, seed, 0.9, sharpness=None, converged=False) for seed in range(3)]
    (setting,) = summarise(rows)
    assert setting.lost == {"sharpness[rho=0.1,kind=a]": 3}


def test_the_quickstart_has_names_that_are_short():
    config = configs.check(content(measure=yaml.safe_load("{metrics: [keskar_sharpness]}")))
    assert column_names(requests(config)) == ["keskar_sharpness"]


def test_swept_numbers_come_back_as_they_were(tmp_path):
    """Else two settings that are close become one."""
    rates = [0.0123456789012, 0.0123456789034, 1e-3, 1.0]
    rows = [row(8, 0, 0.5, **{"train.optimizer.learning_rate": rate}) for rate in rates]
    write_table(tmp_path / "table.csv", rows)
    back = read_table(tmp_path / "table.csv")
    assert [line["train.optimizer.learning_rate"] for line in back] == rates
