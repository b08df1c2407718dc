"""The example configs: every optimizer, schedule and rule has one, and each trains."""

from pathlib import Path

import pytest
import yaml

import sharpflat as sf
from sharpflat.config import LATER

FILES = sorted((Path(__file__).parents[1] / "configs" / "examples").glob("*.yaml"))
CONTENTS = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}


def test_every_optimizer_schedule_and_rule_has_an_example():
    trains = [content["train"] for content in CONTENTS.values()]
    built_in = {name for name, entry in sf.optimizers.items() if entry.built_in}
    assert {train["optimizer"]["name"] for train in trains} == built_in
    named = {train["schedule"]["name"] for train in trains if "schedule" in train}
    assert named == set(sf.schedules) - {"constant"}  # which is what there is without one
    assert {key for train in trains for key in LATER if key in train} == set(LATER)
    assert all(any(key in train for train in trains) for key in ("track", "init_from"))


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
