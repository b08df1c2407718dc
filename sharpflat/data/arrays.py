"""arrays: any data set that lies in one .npz file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from sharpflat.batch import Batch
from sharpflat.data.base import Dataset, unit_interval
from sharpflat.data.files import ENVIRONMENT, given_folders
from sharpflat.registry import dataset
from sharpflat.validation import InputError, Location, closest

KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataset
def arrays(
    *, path: str, data_dir: Annotated[str | None, Location] = None, note: str = ""
) -> Dataset:
    """The arrays `x_train`, `y_train`, `x_test` and `y_test` of an .npz file.

    Integer labels mean classification, with max + 1 classes over both splits; float labels mean
    regression. Labels `[n, 1]` become `[n]`. Files with pickled objects are refused.

    Args:
        path: absolute, or relative to the working folder, else to `<data_dir>/arrays/`, else to
            `$SHARPFLAT_DATA/arrays/`.
        data_dir: see `path`.
        note: a label that results on this data must carry, such as "JPEG-compressed".

    Returns:
        Inputs as they are, except that uint8 inputs are divided by 255.

    Raises:
        InputError: the file or a key is missing, the file is damaged, holds pickled objects, or
            the splits differ in kind.
    """
    file = _find(path, data_dir)
    x_train, y_train, x_test, y_test = _read(file)
    train = Batch(_inputs(x_train, f"{file}: x_train"), _labels(y_train, f"{file}: y_train"))
    test = Batch(_inputs(x_test, f"{file}: x_test"), _labels(y_test, f"{file}: y_test"))
    # Same scale, same task: pixels and floats, or classes and floats, are not mixed by accident.
    for name, first, second in (("x", x_train, x_test), ("y", y_train, y_test)):
        if (first.dtype.kind == "f") != (second.dtype.kind == "f"):
            raise InputError(
                f"arrays: {file}: {name}_train is {first.dtype}, but {name}_test {second.dtype}"
            )
    return Dataset("arrays", train, test, _classes(train, test), note)


def _classes(train: Batch, test: Batch) -> int | None:
    if train.labels.dtype.kind == "f" or not (train.labels.size and test.labels.size):
        return None
    return int(max(train.labels.max(), test.labels.max())) + 1


def _find(path: str, data_dir: str | None) -> Path:
    places = [Path(), *given_folders("arrays", data_dir)]
    candidates = [place / Path(path).expanduser() for place in places]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    parents = dict.fromkeys(candidate.absolute().parent for candidate in candidates)
    siblings = {file.name for parent in parents for file in parent.glob("*.npz")}
    hint = closest(Path(path).name, siblings) if siblings else ""
    raise InputError(
        f"arrays: no file {path!r} in {', '.join(map(str, parents))}{hint} "
        f"(give its folder as {ENVIRONMENT}=<folder> or data_dir, with the file in <folder>/arrays)"
    )


def _read(file: Path) -> list[Any]:
    try:
        with file.open("rb") as stream:  # np.load itself leaves a broken file open
            opened = np.load(stream, allow_pickle=False)
            if isinstance(opened, np.lib.npyio.NpzFile):
                return [_member(opened, key, file) for key in KEYS]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"arrays: {file}: is not a sound .npz file ({_line(error)})") from None
    raise InputError(f"arrays: {file}: holds a single array, expected an .npz file")


def _member(opened: np.lib.npyio.NpzFile, key: str, file: Path) -> Any:
    if key not in opened.files:
        raise InputError(f"arrays: {file}: has no key {key!r}{closest(key, opened.files)}")
    try:
        array = opened[key]
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"arrays: {file}: {key} cannot be read ({_line(error)})") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"arrays: {file}: {key} is not an array in .npy format")
    return array


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _inputs(array: np.ndarray, where: str) -> Any:
    if array.dtype == np.uint8:
        return unit_interval(array)
    if array.dtype.kind != "f":
        raise InputError(f"arrays: {where}: expected uint8 or floats, got {array.dtype}")
    return array


def _labels(array: np.ndarray, where: str) -> Any:
    if array.dtype.kind not in "uif":
        raise InputError(f"arrays: {where}: expected integers or floats, got {array.dtype}")
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
