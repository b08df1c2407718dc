"""Ids: what they depend on, and what they do not."""

import hashlib
import json
import textwrap

import pytest
from config.given import CONFIGS, cells, plugin
from runs.studies import LINEAR, NORM

from sharpflat import config as configs
from sharpflat.config import LATER
from sharpflat.config.schema import Train


def ids(tmp_path, *overrides, **changes):
    return [run.id for run in cells(tmp_path, *overrides, **changes)]


def test_ids_do_not_depend_on_what_is_left_out(tmp_path):
    spelled = (
        "dataset.label_noise=0", "dataset.hidden=32", "model.batch_norm=false", "train.stop={}",
        "train.loss=cross_entropy", "train.drop_last=false", "train.optimizer.b1=9e-1",
        "train.stop.improvement=0", "train.eval_every=null", "seeds=[0, 1]",
    )  # fmt: skip
    assert ids(tmp_path, *spelled) == ids(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "study=other", "figures=[line]", "measure.metrics=[hessian_top_eigenvalues]",
        "measure.chunk=10", "landscape=[{line: {}}]", "figures=null",
    ],
)  # fmt: skip
def test_ids_do_not_depend_on_what_is_measured(tmp_path, override):
    assert ids(tmp_path, override) == ids(tmp_path)


def test_ids_do_not_depend_on_where_data_lie(tmp_path):
    found = [
        ids(tmp_path, f"dataset={{name: mnist{where}}}")
        for where in ("", ", data_dir: /a", ", data_dir: /b")
    ]
    assert found[0] == found[1] == found[2]
    inside = "dataset={{name: subset, of: mnist, arguments: {}}}"
    ways = ("null", "{data_dir: /a}", "{data_dir: /b}")
    first, *others = (ids(tmp_path, inside.format(way)) for way in ways)
    assert others == [first, first]


@pytest.mark.parametrize(
    "override",
    [
        "dataset.label_noise=0.1", "dataset.data_seed=1", "model.width=9", "model.batch_norm=true",
        "train.epochs=4", "train.optimizer.learning_rate=0.02", "train.optimizer.name=adamw",
        "train.loss=squared_error", "train.drop_last=true", "train.stop.patience=3",
        "train.eval_every=2", "seeds=[2, 3]", "sweep={train.batch_size: [7, 39]}",
    ],
)  # fmt: skip
def test_ids_depend_on_everything_that_shapes_the_record(tmp_path, override):
    assert not set(ids(tmp_path, override)) & set(ids(tmp_path))


def test_ids_of_watched_runs_are_those_of_before(tmp_path):
    """`certify` came after runs that watch λmax were recorded."""
    (example,) = configs.cells(configs.load(CONFIGS / "examples" / "track.yaml"))
    assert example.id == "93d622818c7810c8"
    track = "train.track=[{top_eigenvalue: {every: 2, certify: false}}]"
    assert ids(tmp_path, track) != ids(tmp_path, track.replace("false", "true"))


OTHERS = {
    "schedule": {"name": "cosine"}, "warmup": 0.5, "ema": {"decay": 0.9}, "swa": {"start": 1},
    "learning_rate_rule": {"rule": "none", "reference": 8}, "regime_adaptation": {"reference": 8},
    "clip": 1.0, "gradient_penalty": 0.0, "accumulate": 2, "ghost_batch_norm": 4,
    "conservative": {}, "augment": {"flip": True}, "label_noise": {"fraction": 0.1},
    "adversarial": {}, "matmul_precision": "default", "compute_dtype": "bfloat16",
}  # fmt: skip
"""Of each later key of `train` a value that is not its default."""


@pytest.mark.parametrize("key", LATER)
def test_ids_depend_on_every_later_key_but_at_its_default(tmp_path, key):
    other, default = map(json.dumps, (OTHERS[key], Train.model_fields[key].default))
    assert not set(ids(tmp_path, f"train.{key}={other}")) & set(ids(tmp_path))
    assert ids(tmp_path, f"train.{key}={default}") == ids(tmp_path)


def test_ids_are_those_from_before_there_were_later_keys(tmp_path):
    first = (
        "batch_size", "epochs", "optimizer", "loss", "drop_last", "stop", "track", "init_from",
        "eval_every",
    )  # fmt: skip
    for run in cells(tmp_path):
        content = run.resolved()
        content["train"] = {key: content["train"][key] for key in first}
        text = json.dumps([content, []], sort_keys=True)
        assert run.id == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_ids_differ_between_seeds_and_settings(tmp_path):
    assert len(set(ids(tmp_path))) == 4


def test_a_plugin_that_only_adds_a_metric_changes_no_id(tmp_path):
    names = [plugin(tmp_path, NORM)]
    assert ids(tmp_path, plugins=names) == ids(tmp_path)
    plugin(tmp_path, NORM.replace("norm**power", "2 * norm**power"))
    assert ids(tmp_path, plugins=names) == ids(tmp_path)


def test_ids_follow_the_code_of_the_plugin_that_registers_the_model(tmp_path):
    study = {"plugins": [plugin(tmp_path, LINEAR)], "model": {"name": "linear"}}
    first = ids(tmp_path, **study)
    assert ids(tmp_path, **study) == first

    plugin(tmp_path, LINEAR.replace('"""A linear network."""', '"""Other words."""  # And more.'))
    assert ids(tmp_path, **study) == first, "words are not code"

    plugin(tmp_path, LINEAR.replace("size**0.5", "size**0.4"))
    assert not set(ids(tmp_path, **study)) & set(first)

    # The same plugin beside another model is not part of that model's runs.
    assert ids(tmp_path, plugins=study["plugins"]) == ids(tmp_path)


@pytest.mark.parametrize("kind", ["dataset", "optimizer", "schedule"])
def test_ids_follow_plugins_of_data_optimizers_and_schedules(tmp_path, kind):
    texts = {
        "dataset": """
            import sharpflat as sf
            @sf.dataset
            def mine(*, size: sf.Count = 3):
                return None
        """,
        "optimizer": """
            import optax, sharpflat as sf
            @sf.optimizer
            def mine(*, learning_rate: sf.Positive = 0.1):
                return optax.sgd(learning_rate)
        """,
        "schedule": """
            import sharpflat as sf
            @sf.schedule
            def mine(progress, *, end: sf.Fraction = 0.5):
                return 1 - (1 - end) * progress
        """,
    }
    text = textwrap.dedent(texts[kind])
    key = kind if kind == "dataset" else f"train.{kind}"
    names = [plugin(tmp_path, text)]
    first = ids(tmp_path, f"{key}={{name: mine}}", plugins=names)
    plugin(tmp_path, text + "\nSOMETHING = 1\n")
    assert not set(ids(tmp_path, f"{key}={{name: mine}}", plugins=names)) & set(first)
