"""On which devices a study trains, and where its data lie: no part of ids, but of rounding."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sharpflat.batch import Batch
from sharpflat.config import Config, RunConfig
from sharpflat.runs.build import Resident, own_data, resident
from sharpflat.training import data_mesh, shares
from sharpflat.validation import InputError

SHARE_OF_MEMORY = 0.5
BYTES_STREAMED = 2**28


class Layout(NamedTuple):
    """How a training is laid out.

    Attributes:
        mesh: the devices that share each pass's examples; None for one alone.
        streamed: whether the data set stays on the host, but for what is in use.
    """

    mesh: Mesh | None = None
    streamed: bool = False

    def data(self, config: dict[str, Any]) -> Resident:
        """A run's data set, on the device where one device trains on all of it."""
        return own_data(config, on_device=self == Layout())

    @property
    def record(self) -> dict[str, Any]:
        """What provenance says of it; nothing of one device with all of the data."""
        if self == Layout():
            return {}
        mesh, processes = None, 1
        if self.mesh is not None:
            mesh, processes = dict(self.mesh.shape), jax.process_count()
        return {"mesh": mesh, "processes": processes, "streamed": self.streamed}

    def streamed_by(self, train: Batch) -> int | None:
        """Examples of the training set that are on the device at a time; None for all."""
        if not self.streamed:
            return None
        example = sum(array.nbytes for array in train) / train.size
        return max(1, int(BYTES_STREAMED / example))

    def notes(self, train: dict[str, Any]) -> list[str]:
        """A line where passes by this `train` block leave devices without a part of their own."""
        size = train["batch_size"] // train["accumulate"]
        if self.mesh is None or shares(self.mesh, size) == self.mesh.size:
            return []
        key = "train.batch_size" if train["accumulate"] == 1 else "train.accumulate"
        return [
            f"{key}: passes of {size} examples fall into {shares(self.mesh, size)} equal parts; "
            f"a multiple of {self.mesh.size} gives each of the {self.mesh.size} devices its own"
        ]


def shared_mesh(data_parallel: bool | None = None) -> Mesh | None:
    """The devices that share each training's examples, of all processes; None for one device each.

    By default there are such where there are several accelerators, or processes.
    """
    if data_parallel is None:
        data_parallel = jax.process_count() > 1 or jax.default_backend() != "cpu"
    return data_mesh(jax.devices()) if data_parallel and jax.device_count() > 1 else None


def is_streamed(spec: dict[str, Any], on_device: bool | None = None) -> bool:
    """Whether the data set `spec` stays on the host.

    By default it does where its two splits do not fit into half of the device's memory.
    """
    if on_device is not None:
        return not on_device
    try:
        return resident(spec).nbytes > SHARE_OF_MEMORY * device_memory()
    except Exception:
        return False  # someone's own data set raises: its runs will, and say so


def check_layout(config: Config, cells: Sequence[RunConfig]) -> None:
    """Refuse a layout that there is not.

    Raises:
        InputError: names the key.
    """
    if config.data_parallel is False and jax.process_count() > 1:
        raise InputError(
            f"data_parallel: false, but {jax.process_count()} processes train as one; leave it out"
        )
    for cell in cells if config.together else ():
        if is_streamed(cell.dataset, config.dataset_on_device):
            raise InputError(
                f"together: {cell.dataset['name']!r} is streamed from the host, which is for runs "
                f"that are trained one by one; leave it out, or set dataset_on_device: true"
            )


def device_memory() -> float:
    """Bytes of a device's memory; of a CPU's, its part of the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is None:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min([whole, *_limits()]) / jax.local_device_count()
    return stats["bytes_limit"]


def _limits(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/")) -> Iterator[int]:
    """Bytes that containers and batch systems allow this process: its control groups' limits."""
    lines = groups.read_text().splitlines() if groups.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # none here, or "max"
                yield int((folder / name).read_text())
