"""Parameters on disk: one .npz of named arrays, readable without sharpflat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sharpflat.runs.files import replacing
from sharpflat.validation import InputError


def save_tree(path: Path, tree: Any) -> None:
    """Write every leaf of `tree` under its path (`params/Dense_0/kernel`), atomically."""
    with replacing(path) as temporary:
        np.savez(temporary, **dict(zip(_names(tree), to_host(tree), strict=True)))  # type: ignore[arg-type]


def load_tree(path: Path, like: Any) -> Any:
    """The tree `save_tree` wrote, in the structure of `like`.

    Raises:
        InputError: the file is damaged, or holds another tree.
    """
    return from_host([*load_arrays(path, _names(like)).values()], like)


def load_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Those of an .npz, all of them by default.

    Raises:
        InputError: the file is damaged, not there, or lacks one.
    """
    try:
        # NumPy itself leaves a broken file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in (file.files if names is None else names)}
    except FileNotFoundError:
        raise InputError(f"{path}: is not there; bring it back") from None
    except Exception as error:  # zipfile and NumPy raise many kinds
        raise InputError(f"{path}: cannot be read: {error}") from None


def to_host(tree: Any) -> list[np.ndarray]:
    """The leaves as NumPy arrays; typed PRNG keys, which NumPy lacks, as their numbers."""
    leaves = jax.tree.leaves(tree)
    return [np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for leaf in leaves]


def from_host(arrays: Sequence[Any], like: Any) -> Any:
    """`to_host` undone."""
    leaves, structure = jax.tree.flatten(like)
    arrays = [jax.numpy.asarray(array) for array in arrays]
    pairs = zip(arrays, leaves, strict=True)
    restored = [jax.random.wrap_key_data(a) if _is_key(leaf) else a for a, leaf in pairs]
    return jax.tree.unflatten(structure, restored)


def _names(tree: Any) -> list[str]:
    paths, _ = jax.tree.flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)
