"""What made a record: versions, device, data, commit, command, times."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

import sharpflat
from sharpflat import digests
from sharpflat.data import Dataset

ROOMS = ("networks", "objective", "training")
MODULES = (
    "batch.py", "trees.py", "runs/build.py", "runs/evaluation.py", "runs/groups.py",
    "runs/member.py", "runs/train_run.py", "runs/warm_starts.py",
)  # fmt: skip
"""The code that trains and evaluates, with `ROOMS`."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "orbax-checkpoint")


def provenance(dataset: Dataset) -> dict[str, Any]:
    """Everything that a reader needs to make the record again."""
    return {
        "sharpflat": sharpflat.__version__,
        "commit": commit(),
        "training_digest": training_digest(),
        "command": command(),
        "python": platform.python_version(),
        "versions": versions(),
        "device": device(),
        "data_digest": dataset.digest,
        "data_note": dataset.note,
        "started": now(),
    }


@functools.cache
def training_digest() -> str:
    """Digest of sharpflat's code that trains and evaluates runs: ids do not depend on it."""
    package = Path(sharpflat.__file__).parent
    of_rooms = [file for room in ROOMS for file in (package / room).glob("*.py")]
    return digests.of_files([*of_rooms, *(package / file for file in MODULES)])


@functools.cache
def versions() -> dict[str, str]:
    """The installed versions of what shapes the numbers."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def device() -> dict[str, Any]:
    """Platform, name and count of the devices, and the CPU cores this process may use."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": processor() if first.platform == "cpu" else first.device_kind,
        "count": jax.local_device_count(),
        "cpu_cores": len(os.sched_getaffinity(0)),
    }


def now() -> str:
    """The time, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def command() -> str:
    """The command line, the program without its folder."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


@functools.cache
def commit() -> str | None:
    """The commit of the source tree, with `+changes` if it had any; None outside a checkout."""
    folder = Path(sharpflat.__file__).parent
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    tracked = head and _git(folder, "ls-files", "__init__.py")
    if not tracked:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{head}+changes" if changes else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
