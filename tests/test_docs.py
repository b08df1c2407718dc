"""The guide to the measures, and the table of their coverage, keep up with them."""

import importlib.util
import re
from pathlib import Path

import jax.numpy as jnp
import pytest
from test_coverage import CASES

import sharpflat as sf
from sharpflat.sharpness import check
from sharpflat.sharpness.measuring import missing_inputs

DOCS = Path(__file__).parents[1] / "docs"
GUIDE = (DOCS / "metrics.md").read_text(encoding="utf-8")
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


def test_the_coverage_table_is_of_the_cases_that_are_tested():
    spec = importlib.util.spec_from_file_location("make_coverage", DOCS / "make_coverage.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    table = (DOCS / "coverage.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in table if line.startswith("| `")]
    assert len(rows) == len(CASES)
    for line, case in zip(rows, CASES, strict=True):
        assert line.startswith(script.head(case))


def test_the_guide_tells_what_measures_need():
    """Of a plain loss; the guide's paragraph names all that refuse it, and all other inputs."""
    params = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    data = (jnp.ones((2000, 2)), jnp.zeros(2000, int))
    plain = sf.Objective.from_function(lambda w, batch: jnp.zeros(()), params, data)
    (paragraph,) = (p for p in GUIDE.split("\n\n") if p.startswith("**What they need.**"))
    named = set(re.findall(r"`(\w+)`", paragraph))
    needed = {name: missing_inputs(entry, {}) for name, entry in sf.metrics.items()}
    inputs = {name: given for name, given in needed.items() if given}
    for name, entry in sf.metrics.items():
        if name in named - set(inputs):
            with pytest.raises(sf.InputError, match="from_function has no outputs"):
                check(entry, plain, entry.arguments({}))
        else:
            check(entry, plain, entry.arguments({}))
    assert named > {*inputs, *(given for several in inputs.values() for given in several)}
