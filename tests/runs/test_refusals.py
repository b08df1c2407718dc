"""What is refused of single runs is told, at the latest when the work ends."""

import pytest

import sharpflat as sf
from sharpflat.runs import Refusals, Refused


def refuse(refused, *lines, then=None):
    for line in lines:
        with refused.kept():
            raise sf.InputError(line)
    if then is not None:
        raise then


def test_the_first_is_raised_and_the_others_are_said_once():
    said = []
    with pytest.raises(Refused, match="^a$"), Refusals(said.append) as refused:
        refuse(refused, "a", "b", "a", "b")
    assert said == ["b"]


def test_all_are_said_where_the_work_is_broken_off():
    said = []
    with pytest.raises(KeyboardInterrupt), Refusals(said.append) as refused:
        refuse(refused, "a", "b", then=KeyboardInterrupt())
    assert said == ["a", "b"]


def test_only_what_is_of_its_kind_is_kept():
    with pytest.raises(sf.InputError, match="^a$") as raised, Refusals(print, Refused) as refused:
        refuse(refused, "a")
    assert type(raised.value) is sf.InputError
