"""A study: train, measure, compute landscapes, and write the table."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax

from sharpflat import config as configs
from sharpflat.config import Config, RunConfig
from sharpflat.runs import files
from sharpflat.runs.build import ghost_statistics, resident
from sharpflat.runs.cost import Cost, Planned, costs_of
from sharpflat.runs.groups import Group, groups, places
from sharpflat.runs.interrupts import Interrupted, held
from sharpflat.runs.landscapes import compute_landscapes
from sharpflat.runs.layout import Layout, is_streamed, shared_mesh
from sharpflat.runs.measure_run import measure_run
from sharpflat.runs.placing import placed
from sharpflat.runs.preparation import begun, check_free, checked_cells, prepared, record_of
from sharpflat.runs.processes import check_alike, follow, leading
from sharpflat.runs.progress import SILENT, Reporter
from sharpflat.runs.provenance import training_digest
from sharpflat.runs.record import DAMAGED, Run
from sharpflat.runs.refusals import Refusals, Refused
from sharpflat.runs.requests import Request, left_out, missing, requests
from sharpflat.runs.requests import failures as failed_measurements
from sharpflat.runs.setup import fill_registries
from sharpflat.runs.table import read_table, swept_keys, table_rows, write_table
from sharpflat.runs.train_run import follow_group, train_group
from sharpflat.runs.warm_starts import check_warm_starts
from sharpflat.validation import InputError, closest

TABLE_SECONDS = 10.0
"""Between two tables of a study that trains: each reads the records of all its runs."""


def load_config(
    path: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str] = ()
) -> Config:
    """Read and check a config.

    Args:
        path: a YAML file.
        overrides: `train.batch_size=64` and the like, the value read as YAML.
        plugins: plugin files beside those the config names.

    Raises:
        InputError: one line that names the file or key and the closest valid name.
    """
    fill_registries()
    return configs.load(path, overrides, plugins)


def run(config: Config, root: str | Path = "results", reporter: Reporter = SILENT) -> list[Run]:
    """Train, measure and compute the landscapes of a study; what is there is not repeated.

    Args:
        config: from `load_config`.
        root: folder of all results.
        reporter: told of progress; silent by default.

    Returns:
        The study's runs.

    Raises:
        InputError: the config does not fit the data, or the folder cannot be written.
        Refused: of some runs, the others are trained and measured.
    """
    with Refusals(reporter.say, Refused) as refused:
        runs = list[Run]()
        with refused.kept():
            runs = train(config, root, reporter)
        if not jax.process_index():
            with refused.kept():
                runs = measure(config, root, reporter)
    return runs


def train(config: Config, root: str | Path = "results", reporter: Reporter = SILENT) -> list[Run]:
    """Train every run of a study that is not trained yet, and load the others.

    Where JAX was told of several processes, each of them calls this, and they train as one.
    """
    # From the first check on: Python drops a KeyboardInterrupt that JAX's garbage collection meets.
    with held() as interrupts, contextlib.suppress(Interrupted):
        cells = checked_cells(config, root)
        check_warm_starts(cells, root)
        trainings = _trainings(config, cells, Path(root))
        if jax.process_index():
            follow(trainings, follow_group)
            return begun(cells, root)
        with leading():
            check_free([record_of(cell, root) for cell in cells])
            folder = prepared(config, cells, Path(root))
            for line in dict.fromkeys(_notes(trainings.values())):
                reporter.say(line)
            found, seconds = list(trainings.values()), config.checkpoint_seconds
            with (
                Refusals(reporter.say) as refused,
                _table(config, cells, folder, refused) as now_and_then,
            ):

                def work(training: tuple[Group, Layout]) -> None:
                    with refused.kept():
                        train_group(*training, Path(root), reporter, interrupts, seconds)

                for _ in placed(work, found, _places(config, found), interrupts.stop):
                    now_and_then()
                    if interrupts.received:
                        break
    return begun(cells, root)


def _places(config: Config, found: Sequence[tuple[Group, Layout]]) -> list[jax.Device]:
    """Devices for one training each; one for trainings that are on all of them, one by one."""
    if any(layout.mesh is not None for _, layout in found):
        return jax.local_devices()[:1]
    return places([group for group, _ in found], config.together)


def _notes(trainings: Iterable[tuple[Group, Layout]]) -> Iterator[str]:
    for group, layout in trainings:
        yield from layout.notes(group.members[0].train)
        said = None
        with contextlib.suppress(Exception):  # a model that raises: its runs will, and say so
            said = ghost_statistics(group.members[0].resolved())
        yield from [said] if said else []


def _trainings(
    config: Config, cells: Sequence[RunConfig], root: Path
) -> dict[str, tuple[Group, Layout]]:
    """By their ids; the same ones in every process."""
    mesh = shared_mesh(config.data_parallel)
    devices = jax.local_device_count() if mesh is None else 1
    found = {}
    for group in groups(cells, config.together, config.dataset_on_device, devices, root):
        streamed = is_streamed(group.members[0].dataset, config.dataset_on_device)
        found[group.id] = group, Layout(mesh, streamed)
    if jax.process_count() > 1:
        data = (resident(cell.dataset).dataset.digest for cell in cells)
        check_alike([*found, training_digest(), *data])
    return found


def measure(config: Config, root: str | Path = "results", reporter: Reporter = SILENT) -> list[Run]:
    """Measure a study's finished runs, compute its landscapes and write its table."""
    cells = checked_cells(config, root)
    folder = prepared(config, cells, Path(root))
    runs, asked = begun(cells, root), requests(config)
    if not runs:
        raise InputError(f"study {config.study!r}: has no runs under {root} yet; train it first")
    for line in left_out(asked, runs):
        reporter.say(line)
    with Refusals(reporter.say) as refused:
        with _table(config, cells, folder, refused) as now_and_then:
            for record in runs:
                with refused.kept():
                    # Its last epoch is refused here where it is lost, before anything is measured.
                    if record.finished and record.last_epoch:
                        measure_run(record, asked, reporter)
                now_and_then()
        _say_unfinished(runs, len(cells), reporter)
        with refused.kept():
            _landscapes(config, runs, folder, reporter)
    return runs


def _say_unfinished(runs: Sequence[Run], asked: int, reporter: Reporter) -> None:
    whole = [record for record in runs if record.damage is None]
    finished = sum(record.finished for record in whole)
    if finished + len(runs) - len(whole) < asked:
        reporter.say(f"{finished} of {asked} runs are finished; others are not measured")


def _landscapes(config: Config, runs: Sequence[Run], folder: Path, reporter: Reporter) -> None:
    """Not around damage: a line might be drawn between other runs than those it is of."""
    if all(record.damage is None for record in runs):
        compute_landscapes(config, runs, folder / "landscapes", reporter)
    elif config.landscape:
        reporter.say("landscapes are left as they are while a run is damaged")


def plan(config: Config, root: str | Path = "results") -> list[Planned]:
    """What `run` would do, a run a row."""
    asked, rows = requests(config), []
    cells = checked_cells(config, root)
    check_warm_starts(cells, root)
    for cell in cells:
        record, todo = record_of(cell, root), list[Request]()
        status = "new" if not record.exists else record.state if not record.damage else DAMAGED
        with contextlib.suppress(InputError):  # it is refused, alone, when its turn comes
            wanted = [request for request in asked if request.wants(record)]
            todo = missing(record, asked) if record.finished else wanted
        rows.append(Planned(record, status, todo))
    return rows


def costs(config: Config, planned: Sequence[Planned]) -> list[Cost]:
    """About what each measurement that is still to be made costs, over the runs that lack it."""
    kinds: dict[str, list[Planned]] = {}
    for row in planned:
        named = [row.run.config[key] for key in ("dataset", "model")]
        kinds.setdefault(repr(named), []).append(row)
    asked, found = requests(config), list[Cost]()
    for rows in kinds.values():
        lacking = [sum(request in row.todo for row in rows) for request in asked]
        wanted = [(request, runs) for request, runs in zip(asked, lacking, strict=True) if runs]
        found += costs_of(rows[0].run.config, wanted)
    return [
        Cost.total([cost for cost in found if cost.request == request])
        for request in asked if any(cost.request == request for cost in found)
    ]  # fmt: skip


def failures(runs: Sequence[Run], config: Config | None = None) -> list[str]:
    """A line for each training that failed, and for each measurement of `config` that did.

    Of records that are damaged there is none: they are refused, and that says why.
    """
    lines = list[str]()
    for record in runs:
        with contextlib.suppress(InputError):
            for line in _failures(record, config):
                lines.append(f"run {record.id}: {line}")
    return lines


def _failures(record: Run, config: Config | None) -> Iterator[str]:
    status = record.status
    if status["status"] == "failed":
        yield f"failed: {status['reason']}"
    if config is not None:
        yield from failed_measurements(record, requests(config))


def records(config: Config, root: str | Path = "results") -> list[Run]:
    """The runs of a study that were begun, by the config that asks for them now."""
    return begun(configs.cells(config), root)


def load_runs(root: str | Path = "results", study: str | None = None) -> list[Run]:
    """The runs under `root`, all of them or those of one study, from their records.

    Raises:
        InputError: no such study; the closest there is.
    """
    root = Path(root)
    if study is None:
        return [Run(path.parent) for path in sorted(root.glob("runs/*/config.yaml"))]
    rows = read_table(study_folder(root, study) / "table.csv")
    keys = swept_keys(rows)
    return [Run(root / "runs" / row["run"], {key: row[key] for key in keys}) for row in rows]


def study_folder(root: str | Path, study: str) -> Path:
    """The folder of a study that has a table.

    Raises:
        InputError: there is none; the closest name.
    """
    tables = sorted(Path(root).glob("studies/*/table.csv"))
    known = {path.parent.name: path.parent for path in tables}
    if study not in known and (Path(root) / "studies" / study / "runs.json").exists():
        raise InputError(f"study {study!r}: has no table yet; its first run that ends writes it")
    if study not in known:
        hint = closest(study, known) if known else f"; {root} holds no studies yet"
        raise InputError(f"study: unknown {study!r}{hint}")
    return known[study]


@contextlib.contextmanager
def _table(
    config: Config, cells: Sequence[RunConfig], folder: Path, refused: Refusals
) -> Iterator[Callable[[], None]]:
    """Gives what writes the table if the last one is old; at the end it is written anyhow."""
    written = -math.inf

    def write() -> None:
        rows, damage = table_rows(begun(cells, folder.parents[1]), requests(config))
        if rows:
            with files.writable(folder / "table.csv"):
                write_table(folder / "table.csv", rows)
        if damage is not None:
            raise damage

    def now_and_then() -> None:
        nonlocal written
        if time.monotonic() - written > TABLE_SECONDS:
            written = time.monotonic()
            with contextlib.suppress(OSError, InputError):  # the work goes on; the end tells
                write()

    try:
        yield now_and_then
    except BaseException:
        with contextlib.suppress(OSError, InputError):  # what was raised first is told
            write()
        raise
    with refused.kept():
        write()
