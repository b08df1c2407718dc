"""A plugin, and registries that a test may fill: importing the fixture gives it to a folder."""

import pytest

from sharpflat import registry
from sharpflat.runs.setup import fill_registries

fill_registries()

PLUGIN = '''"""Words."""
import sharpflat as sf


@sf.metric
def mine(objective, key, *, factor: float = 1.0):
    """More words."""
    # A comment.
    return sf.Estimate(factor, 0.0, True)
'''


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """What a test's plugins register is gone after it."""
    for kind in ("metrics", "models", "datasets", "optimizers", "schedules", "figures", "trackers"):
        entries = getattr(registry, kind)
        monkeypatch.setattr(entries, "_entries", dict(entries._entries))
