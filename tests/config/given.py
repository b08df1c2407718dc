"""Tiny configs, loaded or refused."""

from pathlib import Path

import pytest
from runs.studies import write

import sharpflat as sf
from sharpflat import config as configs

CONFIGS = Path(__file__).parents[2] / "configs"


def load(tmp_path, *overrides, **changes):
    return sf.load_config(write(tmp_path, **changes), overrides)


def cells(tmp_path, *overrides, **changes):
    return configs.cells(load(tmp_path, *overrides, **changes))


def sizes(runs):
    return [run.train["batch_size"] for run in runs]


def refusal(tmp_path, *overrides, **changes):
    with pytest.raises(sf.InputError) as caught:
        load(tmp_path, *overrides, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def plugin(tmp_path, text, name="mine.py"):
    (tmp_path / name).write_text(text)
    return name
