"""Data files: order of places, verification, downloads, and messages."""

import functools
import gzip
import hashlib
import http.server
import os
import threading

import pytest

from sharpflat.data import files
from sharpflat.data.files import DataFile, content, find, folders, read
from sharpflat.validation import InputError

CONTENT = bytes(range(256)) * 40


def data_file(urls=("https://one.example/numbers.gz", "https://two.example/numbers.gz"), **changes):
    fields = {"md5": hashlib.md5(CONTENT).hexdigest(), "size": len(CONTENT), "urls": tuple(urls)}
    return DataFile("toy", "numbers", **fields | changes)


def put(root, data=CONTENT, name="numbers"):
    path = root / "toy" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["numbers", "numbers.gz"])
def test_reads_raw_and_gzipped(tmp_path, name):
    put(tmp_path, name=name)
    assert read(data_file(), str(tmp_path)) == CONTENT


def test_places_are_searched_in_order(tmp_path, monkeypatch, cache):
    given, named = tmp_path / "given", tmp_path / "named"
    monkeypatch.setenv(files.ENVIRONMENT, str(named))
    places = folders("toy", str(given))
    assert places == [given / "toy", named / "toy", cache / "toy"]
    for root in (cache, named, given):  # each one precedes those before
        path = put(root, name="numbers.gz")
        assert find(data_file(), places) == path


def test_a_folder_without_the_file_falls_through(tmp_path, monkeypatch):
    (tmp_path / "given" / "toy").mkdir(parents=True)
    monkeypatch.setenv(files.ENVIRONMENT, str(tmp_path / "named"))
    put(tmp_path / "named")
    assert read(data_file(), str(tmp_path / "given")) == CONTENT


def test_an_empty_variable_names_no_folder(monkeypatch, cache):
    monkeypatch.setenv(files.ENVIRONMENT, "")
    assert folders("toy") == [cache / "toy"]


def flipped(data):
    return data[:50] + bytes([data[50] ^ 1]) + data[51:]


@pytest.mark.parametrize("name", ["numbers", "numbers.gz"])
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (flipped, f"got {len(CONTENT)} bytes with MD5 "),
        (lambda data: data[:-1], f"got {len(CONTENT) - 1} bytes"),
        (lambda data: data + b"0", "got more"),
        (lambda data: b"", "got 0 bytes"),
    ],
)
def test_altered_content_is_named_and_kept(tmp_path, cache, name, damage, found):
    for root, data_dir in ((tmp_path, str(tmp_path)), (cache, None)):
        path = put(root, damage(CONTENT), name)
        before = path.read_bytes()
        with pytest.raises(InputError) as error:
            read(data_file(), data_dir)
        assert str(error.value).startswith(f"toy: {path}: ")
        assert f"expected {len(CONTENT)} bytes with MD5 {data_file().md5}" in str(error.value)
        assert found in str(error.value)
        assert path.read_bytes() == before


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: data[:-3],
        lambda data: b"no gzip at all",
        lambda data: data[:10] + b"\xff" * 20 + data[30:],  # no deflate block starts so
        flipped,
    ],
)
def test_damaged_gzip_is_named(tmp_path, damage, size):
    path = put(tmp_path, name="numbers.gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"numbers\.gz: .*expected .*MD5 [0-9a-f]{32}"):
        content(data_file(size=size), path)


def test_a_missing_file_without_network_says_what_to_do(tmp_path, monkeypatch, cache):
    monkeypatch.setenv(files.ENVIRONMENT, str(tmp_path / "named"))
    with pytest.raises(InputError) as error:
        read(data_file(), str(tmp_path / "given"))
    message = str(error.value)
    assert "\n" not in message
    for part in ("toy: ", "'numbers'", "SHARPFLAT_DATA", "data_dir", "<folder>/toy/"):
        assert part in message
    for place in (tmp_path / "given" / "toy", tmp_path / "named" / "toy", cache / "toy"):
        assert str(place) in message
    assert "one.example: NoNetwork; two.example: NoNetwork" in message
    assert not list((cache / "toy").iterdir())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local mirror that serves a folder, as (folder, address)."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("terminal", [False, True])
def test_downloads_from_the_first_mirror_with_the_right_content(
    server, cache, monkeypatch, capfd, terminal
):
    folder, address = server
    for mirror, data in (("altered", flipped(CONTENT)), ("good", CONTENT)):
        put(folder / mirror, data, "numbers.gz")
    urls = [f"{address}/{mirror}/toy/numbers.gz" for mirror in ("absent", "altered", "good")]
    totals = []
    monkeypatch.setattr(files.sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(files._Bar, "close", lambda bar: (totals.append(bar.total), _close(bar)))
    assert read(data_file(urls)) == CONTENT
    size = (folder / "good" / "toy" / "numbers.gz").stat().st_size
    assert (size in totals) == terminal
    assert [path.name for path in (cache / "toy").iterdir()] == ["numbers.gz"]
    if not terminal:
        assert capfd.readouterr() == ("", "")
    assert read(data_file(urls=())) == CONTENT  # now from the cache


_close = files._Bar.close


def test_an_altered_download_is_not_kept(server, cache):
    folder, address = server
    put(folder, flipped(CONTENT))
    with pytest.raises(InputError, match=r"could not be downloaded \(127.0.0.1: altered content\)"):
        read(data_file([f"{address}/toy/numbers"]))
    assert not list((cache / "toy").iterdir())


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = put(tmp_path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything
        monkeypatch.setattr("pathlib.Path.open", _denied)
    with pytest.raises(InputError, match=r"toy/numbers: cannot be read \(Permission denied"):
        read(data_file(), str(tmp_path))


def _denied(*args):
    raise PermissionError(13, "Permission denied")
