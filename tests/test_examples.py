"""The example configs: every optimizer, schedule and rule has one, and each trains."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

import sharpflat as sf
from sharpflat.config import LATER
from sharpflat.config.schema import Augment, LearningRateRule

FILES = sorted((Path(__file__).parents[1] / "configs" / "examples").glob("*.yaml"))
CONTENTS = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}


SHOWN = {
    **{f"optimizer.name={name}": name for name, entry in sf.optimizers.items() if entry.built_in},
    **{f"schedule.name={name}": name for name, entry in sf.schedules.items() if entry.built_in},
    "learning_rate_rule.rule=linear": "linear_scaling",
    "learning_rate_rule.rule=sqrt": "sqrt_scaling",
    "learning_rate_rule.rule=none": "no_scaling",
    "augment.flip": "flip", "augment.rotate": "augmentation", "augment.shift": "augmentation",
    "label_noise.draw": "label_noise", "label_noise.resample=True": "resampled_label_noise",
    "warmup": "constant", "clip": "clipping", "compute_dtype": "bfloat16",
    **{key: key for key in (
        "accumulate", "adversarial", "conservative", "ema", "ghost_batch_norm", "gradient_penalty",
        "init_from", "matmul_precision", "regime_adaptation", "swa", "track",
    )},
}  # fmt: skip
"""What an example sets in `train`, and its file."""


def settings(content, where=""):
    """Dotted keys, each alone and with its value."""
    for key, value in content.items():
        yield from (f"{where}{key}", f"{where}{key}={value}")
        if isinstance(value, dict):
            yield from settings(value, f"{where}{key}.")


@pytest.mark.parametrize("setting", SHOWN)
def test_there_is_an_example_of(setting):
    assert setting in settings(CONTENTS[SHOWN[setting]]["train"])


def test_examples_are_of_every_key_and_none_shows_nothing():
    assert set(SHOWN.values()) == set(CONTENTS)
    assert {setting.split(".")[0] for setting in SHOWN} >= {*LATER, "track", "init_from"}
    assert {f"augment.{key}" for key in Augment.model_fields} <= set(SHOWN)
    rules = get_args(LearningRateRule.model_fields["rule"].annotation)
    assert {f"learning_rate_rule.rule={rule}" for rule in rules} <= set(SHOWN)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_example_runs(file, tmp_path):
    head = file.read_text().splitlines()
    assert f"# sharpflat run configs/examples/{file.name}" in head[:3]
    few = ["train.epochs=2", "train.batch_size=100", "measure.metrics=[]", "train.eval_every=2"]
    keys = CONTENTS[file.stem]["train"]
    few += ["train.warmup=1"] * ("warmup" in keys) + ["train.swa.start=2"] * ("swa" in keys)
    if "init_from" in keys:
        (source,) = sf.train(sf.load_config(file.with_name("track.yaml")), tmp_path)
        assert keys["init_from"]["run"] == source.id
    config = sf.load_config(file, few)
    assert config.study == f"example-{file.stem.replace('_', '-')}"
    (run,) = sf.run(config, tmp_path)
    assert run.finished
    assert run.history[-1]["full_train_loss"] < 2.3  # log 10, which is guessing
