"""Registries that a test may fill; a conftest that imports the fixture gives it to its folder."""

import pytest

from sharpflat import registry
from sharpflat.runs.setup import fill_registries

fill_registries()


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """What a test's plugins register is gone after it."""
    for kind in ("metrics", "models", "datasets", "optimizers", "schedules", "figures", "trackers"):
        entries = getattr(registry, kind)
        monkeypatch.setattr(entries, "_entries", dict(entries._entries))
