"""No test reads the user's cache, the user's data folder or the network."""

import pytest

from sharpflat.data import files


class NoNetwork(ConnectionError):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, request):
    def refuse(*args, **kwargs):
        raise NoNetwork("no network in tests")

    folder = tmp_path / "cache"
    monkeypatch.setattr(files.platformdirs, "user_cache_dir", lambda name: str(folder / name))
    monkeypatch.delenv(files.ENVIRONMENT, raising=False)
    if "server" not in request.fixturenames:
        monkeypatch.setattr("pooch.retrieve", refuse)
    return folder / "sharpflat" / "data"
