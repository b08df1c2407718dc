"""What is refused, and the line that says so."""

import datetime

import pydantic
import pytest

from sharpflat.config import Config
from sharpflat.validation import InputError, Positive, validate

STUDY = {
    "study": "tiny",
    "dataset": {"name": "digits"},
    "model": {"name": "mlp"},
    "train": {"batch_size": 8, "epochs": 1, "optimizer": {"name": "adam"}},
}
DATE = datetime.date(2017, 1, 1)


class Inner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    depth: int = 0


class Outer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    inner: Inner | list[Inner] = []
    rho: Positive = 1.0


class Node(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    children: list["Node"] = []


class Forest(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    tree: Node


def complaint(schema, data, where=""):
    with pytest.raises(InputError) as caught:
        validate(schema, data, where)
    return str(caught.value)


def test_what_is_no_json_is_named_by_its_key():
    assert complaint(Config, {**STUDY, "study": DATE}).startswith("study: expected numbers")
    optimizer = {"name": "adam", "rates": [1.0, {"at": DATE}]}
    train = {**STUDY["train"], "optimizer": optimizer}
    said = complaint(Config, {**STUDY, "train": train})
    assert said.startswith("train.optimizer.rates.1.at: expected numbers")
    assert complaint(Outer, {"rho": DATE}, "example").startswith("example.rho: ")


def test_a_key_at_the_wrong_depth_is_told_where_it_belongs():
    assert (
        complaint(Outer, {"depth": 1}) == "depth: unknown key 'depth'; did you mean 'inner.depth'?"
    )
    said = complaint(Outer, {"inner": [{"rho": 1}]})
    assert said == "inner.0.rho: unknown key 'rho'; did you mean 'rho'?"


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({**STUDY, "seed": 1}, "'seeds'"),
        ({**STUDY, "train": {**STUDY["train"], "epoch": 3}}, "'epochs'"),
        ({**STUDY, "optimizer": {}}, "'train.optimizer'"),
        ({**STUDY, "train": {**STUDY["train"], "seed": 1}}, "'seeds'"),
        ({**STUDY, "measure": {"figure": []}}, "'figures'"),
        ({**STUDY, "measure": {"epochs": 3}}, "'train.epochs'"),
    ],
)
def test_what_is_spelt_nearly_so_beside_it_or_at_the_top_comes_first(data, hint):
    assert complaint(Config, data).endswith(f"did you mean {hint}?")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"tre": {}}, "tre: unknown key 'tre'; did you mean 'tree'?"),
        ({"children": []}, "children: unknown key 'children'; did you mean 'tree.children'?"),
    ],
)
def test_a_type_may_hold_itself(data, said):
    assert complaint(Forest, data) == said


def test_what_should_be_a_mapping():
    said = complaint(Config, {**STUDY, "dataset": "mnist"})
    assert said == "dataset: expected a mapping, write {name: mnist}, got 'mnist'"
    said = complaint(Config, {**STUDY, "landscape": [3]})
    assert said == "landscape.0: input should be a mapping, got 3"
