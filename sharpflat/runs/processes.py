"""Several processes that train as one: the first decides and keeps the records, others follow it.

They meet at each training's beginning, and within one at each segment's end. Measurements are the
first one's alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from sharpflat.validation import InputError

VARIABLES = ("SHARPFLAT_COORDINATOR", "SHARPFLAT_PROCESSES", "SHARPFLAT_PROCESS")
NONE = "0" * 16

T = TypeVar("T")


def join() -> None:
    """Join the other processes of this job, before anything else is asked of JAX.

    They are those that `SHARPFLAT_COORDINATOR` (host:port of the first), `SHARPFLAT_PROCESSES` (how
    many) and `SHARPFLAT_PROCESS` (which, from 0) tell of, or those that JAX itself finds, under
    Slurm, Open MPI, Kubernetes and on TPUs.

    Raises:
        InputError: there is no such job.
    """
    address, count, index = (os.environ.get(name) for name in VARIABLES)
    try:
        jax.distributed.initialize(
            address, None if count is None else int(count), None if index is None else int(index)
        )
    except (ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"--distributed: set {', '.join(VARIABLES)}: {said}") from None


def leave() -> bool:
    """Part from the others, which are no longer needed; whether this is the first process."""
    first = jax.process_index() == 0
    jax.distributed.shutdown()
    return first


def check_alike(digests: Sequence[str]) -> None:
    """Refuse processes that were given different work, by its digests.

    Raises:
        InputError: in each of them.
    """
    total = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    found = multihost_utils.process_allgather(_numbers(total))
    if (found != found[0]).any():
        raise InputError("--distributed: the processes have different configs, code or data")


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """The first process at work; at the end of it the others end, too."""
    try:
        yield
    finally:
        announced(NONE)


def announced(training: str) -> str:
    """The id of the training that begins now, as the first process has it."""
    if jax.process_count() == 1:
        return training
    said = multihost_utils.broadcast_one_to_all(_numbers(training))
    return np.asarray(said, np.uint8).tobytes().hex()


def follow(trainings: Mapping[str, T], train: Callable[[T], None]) -> None:
    """`train` what the first process trains, until it ends."""
    while (training := announced(NONE)) != NONE:
        train(trainings[training])


def _numbers(digest: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digest), np.uint8)
