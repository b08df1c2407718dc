"""The guide to the measures keeps up with them."""

import re
from pathlib import Path

import pytest

import sharpflat as sf

GUIDE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", GUIDE, flags=re.MULTILINE))


def test_every_metric_is_in_the_guide_and_nothing_else():
    assert set(ROWS) == set(sf.metrics)


@pytest.mark.parametrize("name", sf.metrics)
def test_the_guide_tells_what_the_metric_declares_it_costs(name):
    sees, cost, invariant, misleads = (
        cell.strip() for cell in re.split(r"(?<!\\)\|", ROWS[name].strip())
    )
    entry = sf.metrics[name]
    declared = entry.cost(6000, entry.arguments({}))
    assert float(cost) == pytest.approx(declared, rel=0.01)
    assert sees
    assert misleads
    assert re.fullmatch(r"—|\(?[RNPL]\)?( \(?[RNPL]\)?)*", invariant)
