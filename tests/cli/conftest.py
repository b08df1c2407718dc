"""What a test's plugins register is gone after it."""

import pytest

from sharpflat import registry
from sharpflat.runs.setup import fill_registries

fill_registries()


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    for kind in ("metrics", "models", "datasets", "optimizers", "figures"):
        entries = getattr(registry, kind)
        monkeypatch.setattr(entries, "_entries", dict(entries._entries))
