"""What `sharpflat list` says of the config's own types."""

import re

import pytest

from sharpflat.config import Config


@pytest.mark.parametrize(
    ("name", "fits"),
    [("keskar2017-f1", True), ("a.b_c", True), (".hidden", False), ("a/b", False), ("", False)],
)
def test_the_json_schema_says_what_a_study_may_be_called(name, fits):
    """The same as what refuses it."""
    pattern = Config.model_json_schema()["properties"]["study"]["pattern"]
    assert (re.search(pattern, name) is not None) == fits
