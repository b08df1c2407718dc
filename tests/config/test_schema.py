"""What `sharpflat list` says of the config's own types."""

import re

import pytest

from sharpflat import cli
from sharpflat.config import Config
from sharpflat.config.schema import Every


@pytest.mark.parametrize(
    ("name", "fits"),
    [("keskar2017-f1", True), ("a.b_c", True), (".hidden", False), ("a/b", False), ("", False)],
)
def test_the_json_schema_says_what_a_study_may_be_called(name, fits):
    """The same as what refuses it."""
    pattern = Config.model_json_schema()["properties"]["study"]["pattern"]
    assert (re.search(pattern, name) is not None) == fits


def test_of_a_tracker_it_is_said_how_often_it_looks(capsys):
    """`Every` alone tells what there is, and its defaults."""
    cli.list_entries("trackers", "batch_losses")
    said = capsys.readouterr().out
    assert "  every: Count = 1 (of every tracker)\n" in said
    assert "  unit: Literal['epochs', 'updates'] = 'epochs' (of every tracker)\n" in said
    assert said.count("(of every tracker)") == len(Every.model_fields)
