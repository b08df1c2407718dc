"""Data files: where they are looked for, how they are downloaded, and that they are verified.

A file is looked for as `<data_dir>/<dataset>/<name>`, then `$SHARPFLAT_DATA/<dataset>/<name>`, then
in the user's cache folder, each raw or gzipped, and is else downloaded into the cache. Its
decompressed content is verified wherever it came from. Nothing on the disk is changed or deleted.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import platformdirs

from sharpflat.validation import InputError

ENVIRONMENT = "SHARPFLAT_DATA"
_TIMEOUT = 30  # seconds without an answer before the next mirror is tried


@dataclass(frozen=True)
class DataFile:
    """A published file.

    Attributes:
        dataset: name of the data set, and of the folder that holds the file.
        name: file name without the `.gz` that the file may carry in addition.
        md5: hex digest of the content under that name, after any `.gz` is undone.
        urls: mirrors, tried in order; each ends in `name` or `name.gz`.
        size: bytes of that content, where known.
    """

    dataset: str
    name: str
    md5: str
    urls: tuple[str, ...]
    size: int | None = None

    @property
    def expected(self) -> str:
        """What the content is known to be, in words."""
        size = "" if self.size is None else f"{self.size} bytes with "
        return f"{size}MD5 {self.md5}"


def cache_folder(dataset: str) -> Path:
    """The folder that downloads of `dataset` go to."""
    return Path(platformdirs.user_cache_dir("sharpflat")) / "data" / dataset


def given_folders(dataset: str, data_dir: str | None = None) -> list[Path]:
    """The folders of `dataset` below `data_dir` and $SHARPFLAT_DATA, as far as these are given."""
    roots = (data_dir, os.environ.get(ENVIRONMENT))
    return [Path(root).expanduser() / dataset for root in roots if root]


def folders(dataset: str, data_dir: str | None = None) -> list[Path]:
    """Every folder where files of `dataset` are looked for, in order; some may not exist."""
    return [*given_folders(dataset, data_dir), cache_folder(dataset)]


def find(file: DataFile, places: Iterable[Path]) -> Path | None:
    """The first of `places` that holds the file, raw or gzipped."""
    candidates = (place / name for place in places for name in (file.name, f"{file.name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def read(file: DataFile, data_dir: str | None = None) -> bytes:
    """The verified, decompressed content of `file`, downloaded where it is nowhere on the disk.

    Raises:
        InputError: the file is damaged, or neither on the disk nor to be downloaded.
    """
    path = find(file, folders(file.dataset, data_dir))
    return download(file, data_dir) if path is None else content(file, path)


def content(file: DataFile, path: Path) -> bytes:
    """The verified, decompressed content of `file` as it lies at `path`.

    Raises:
        InputError: names `path` and what was expected.
    """
    where = f"{file.dataset}: {path}"
    zipped = path.name == f"{file.name}.gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as stream:
            data = stream.read(-1 if file.size is None else file.size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{where}: damaged gzip ({error}); expected {file.expected}") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror or error})") from None
    if file.size is not None and len(data) != file.size:
        found = "more" if len(data) > file.size else f"{len(data)} bytes"
        raise InputError(f"{where}: expected {file.expected}, got {found}")
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if digest != file.md5:
        raise InputError(
            f"{where}: expected {file.expected}, got {len(data)} bytes with MD5 {digest}"
        )
    return data


def download(file: DataFile, data_dir: str | None = None) -> bytes:
    """Download `file` into the cache folder and return its verified, decompressed content.

    Raises:
        InputError: no mirror gave it; says where the file was looked for and how to give it.
    """
    failures = []
    for url in file.urls:
        try:
            return _download_from(url, file)
        except (OSError, ValueError) as error:  # requests' own errors are OSErrors
            reason = "altered content" if isinstance(error, InputError) else type(error).__name__
            failures.append(f"{urlparse(url).hostname}: {reason}")
    looked = ", ".join(str(place) for place in folders(file.dataset, data_dir))
    raise InputError(
        f"{file.dataset}: no file {file.name!r} in {looked}, and it could not be downloaded "
        f"({'; '.join(failures)}); put it into <folder>/{file.dataset}/ and give <folder> as "
        f"{ENVIRONMENT} or data_dir"
    )


def _download_from(url: str, file: DataFile) -> bytes:
    cache = cache_folder(file.dataset)
    cache.mkdir(parents=True, exist_ok=True)
    # In the same file system, so that the verified file moves into its place in one step.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        path = _retrieve(url, Path(folder), f"{file.dataset} {file.name}")
        data = content(file, path)
        path.replace(cache / path.name)
    return data


def _retrieve(url: str, folder: Path, label: str) -> Path:
    import pooch

    # Mirrors compress differently, so the digest that counts is that of the content: `content`
    # checks it, and pooch's advice to pin the compressed one is kept quiet.
    pooch.get_logger().setLevel("WARNING")
    bar = _Bar(label) if sys.stderr.isatty() else None
    downloader = pooch.HTTPDownloader(progressbar=bar or False, timeout=_TIMEOUT)
    name = url.rpartition("/")[2]
    try:
        return Path(pooch.retrieve(url, None, fname=name, path=folder, downloader=downloader))
    finally:
        if bar:
            bar.close()


class _Bar:
    """A progress bar with the names that pooch asks for (its own needs tqdm)."""

    def __init__(self, label: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.total: Any = None
        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(label, total=None)
        self._bar.start()

    def update(self, count: int) -> None:
        self._bar.update(self._task, total=self.total or None, advance=count)

    def reset(self) -> None:
        self._bar.reset(self._task)

    def close(self) -> None:
        self._bar.stop()
