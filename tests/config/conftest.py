"""Registries that forget what a test registers."""

import pytest

from sharpflat import registry
from sharpflat.runs.setup import fill_registries

fill_registries()  # a room that is first imported during a test would register for that test only


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """What a test's plugins register is gone after it."""
    for kind in ("metrics", "models", "datasets", "optimizers", "schedules", "figures"):
        entries = getattr(registry, kind)
        monkeypatch.setattr(entries, "_entries", dict(entries._entries))
