"""Files that survive being killed: whole or not there, and lines that are whole or ignored."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from sharpflat.validation import InputError

LOOK_SECONDS = 0.2
"""Longer than who only looks at a lock keeps it from who would hold it."""


def make_folder(path: Path) -> Path:
    """`path`, made with its parents; one clear line where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output folder {path}: cannot be written: {_reason(error)}") from None
    check_folder(path)
    return path


def check_folder(path: Path) -> None:
    """Refuse where nothing can be written, whether the folder is there yet or not; makes none."""
    try:
        there = next(part for part in (path, *path.absolute().parents) if part.exists())
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise InputError(f"output folder {path}: cannot be written: {_reason(error)}") from None
    if not there.is_dir():
        raise InputError(f"output folder {path}: cannot be written: not a directory")
    if not os.access(there, os.W_OK):
        raise InputError(f"output folder {path}: cannot be written: permission denied")


def _reason(error: OSError) -> str:
    """What the system says, in lower case."""
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes `path`'s place at the end, all at once."""
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    temporary.touch(exist_ok=False)  # tempfile's would be nobody else's to read
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; what is not finite becomes null."""
    write_text(path, json.dumps(plain(content), indent=2) + "\n")


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """One clear line where what is written inside, at `path`, cannot be.

    Raises:
        InputError: as on a full disk.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {_reason(error)}; what is there is kept: make room, "
            f"start again"
        ) from None


def write_status(folder: Path, status: Mapping[str, Any]) -> None:
    """Write what became of a run.

    Raises:
        InputError: it cannot be written, as on a full disk.
    """
    with writable(folder):
        write_json(folder / "status.json", status)


def read_json(path: Path) -> Any:
    """The JSON in `path`.

    Raises:
        InputError: it is damaged, or not there.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: is not there; bring it back") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {_reason(error)}") from None
    except ValueError as error:
        raise InputError(f"{path}: is damaged; mend it: {error}") from None


def read_fields(path: Path, *needed: str) -> dict[str, Any]:
    """The JSON mapping in `path`.

    Raises:
        InputError: it is damaged, or lacks one of the fields.
    """
    content = read_json(path)
    _check_fields(content, needed, f"{path}: is damaged; mend it")
    return content


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines, to the disk itself; a line cut short by a kill is dropped first."""
    kept = _whole_bytes(path)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(kept)
        file.seek(kept)
        file.write(_lines(rows).encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(
    path: Path, needed: Sequence[str] = (), numbers: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """All whole JSON lines of `path`; none if it is not there.

    Args:
        path: the file.
        needed: fields that every line must have.
        numbers: fields that hold a number or null where they are there.

    Raises:
        InputError: names a line that is damaged.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {_reason(error)}") from None
    return [_read_line(path, i, line, needed, numbers) for i, line in enumerate(lines, start=1)]


def _read_line(
    path: Path, number: int, line: bytes, needed: Sequence[str], numbers: Sequence[str]
) -> dict[str, Any]:
    where = f"{path}: line {number} is damaged; mend or remove it"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    _check_fields(row, needed, where)
    for name in numbers:
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise InputError(f"{where}: {name!r} is no number, but {value!r}")
    return row


def _check_fields(content: Any, needed: Sequence[str], where: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a mapping, got {content!r}")
    missing = [name for name in needed if name not in content]
    if missing:
        raise InputError(f"{where}: it has no {missing[0]!r}")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace all lines of `path` atomically."""
    write_text(path, _lines(rows))


def digest(array: np.ndarray) -> str:
    """Digest of an array's dtype, shape and bytes."""
    content = f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(plain(row)) + "\n" for row in rows)


def _whole_bytes(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def plain(value: Any) -> Any:
    """`value` in JSON's own types; arrays become lists, what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return plain(np.asarray(value).tolist())


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` against other processes; the end of this one frees it, however it ends.

    Raises:
        InputError: another process holds it, or it cannot be written.
    """
    with _locked(folder / ".lock", "a+", fcntl.LOCK_EX) as file:
        with contextlib.suppress(OSError):  # a full disk; who works on it is a help, no more
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
        yield


def check_free(folder: Path) -> None:
    """Look whether another process holds `folder`; writes nothing.

    Raises:
        InputError: one does, or that cannot be told.
    """
    lock = folder / ".lock"
    if lock.exists():
        with _locked(lock, "r", fcntl.LOCK_SH):
            pass


@contextlib.contextmanager
def _locked(path: Path, mode: Literal["a+", "r"], how: int) -> Iterator[TextIO]:
    try:
        file = path.open(mode)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {_reason(error)}") from None
    with file:
        _lock(file, how, path.parent)
        yield file


def _lock(file: TextIO, how: int, folder: Path) -> None:
    until = time.monotonic() + (LOOK_SECONDS if how == fcntl.LOCK_EX else 0)
    while True:
        try:
            return fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(LOOK_SECONDS / 10)
                continue
            file.seek(0)
            raise InputError(
                f"run {folder.name}: another process works on it ({file.read() or 'unknown'}); "
                f"let it end, or give another --root"
            ) from None
        except OSError as error:
            raise InputError(f"{folder / '.lock'}: cannot be locked: {_reason(error)}") from None
