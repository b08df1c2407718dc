"""What made a record: versions, device, data, commit, command, times."""

from __future__ import annotations

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

PACKAGES = ("jax", "jaxlib", "flax", "optax", "matfree", "numpy", "scipy", "orbax-checkpoint")


def provenance(data_digest: str) -> dict[str, Any]:
    """Everything that a reader needs to make the record again."""
    device = jax.devices()[0]
    return {
        "sharpflat": sharpflat.__version__,
        "commit": commit(),
        "command": command(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": {
            "platform": device.platform,
            "kind": processor() if device.platform == "cpu" else device.device_kind,
            "count": jax.local_device_count(),
            "cpu_cores": len(os.sched_getaffinity(0)),
        },
        "data_digest": data_digest,
        "started": now(),
    }


def now() -> str:
    """The time, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def command() -> str:
    """The command line, the program without its folder."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


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
