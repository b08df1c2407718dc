"""The command line. JAX is imported inside the commands, so that `--help` is there at once."""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from types import FrameType
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

ConfigFile = Annotated[str, typer.Argument(help="A study's YAML file.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys set anew, as train.batch_size=64.", metavar="[key=value]..."),
]
Root = Annotated[str, typer.Option(help="Folder of all results.")]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="A file of your own entries.")]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="Train with the other processes of this job.")
]


@app.callback()
def _sharpflat() -> None:
    """Train with small and large batches, measure how sharp the minima are, compare."""


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    root: Root = "results",
    plugin: Plugins = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
    distributed: Distributed = False,
) -> None:
    """Train, measure, draw; safe to repeat, goes on where it stopped."""
    from sharpflat import report, runs
    from sharpflat.runs.processes import join, leave
    from sharpflat.runs.progress import shown
    from sharpflat.runs.setup import use_all_cores
    from sharpflat.validation import InputError

    if dry_run and distributed:
        raise InputError("--dry-run: each process would time for itself; leave --distributed out")
    if distributed:
        join()
    else:
        use_all_cores()
    study = runs.load_config(config, overrides or [], plugin or [])
    if dry_run:
        for line in report.plan_lines(study, runs.plan(study, root)):
            print(line)
        return
    with runs.Refusals(_complain, runs.Refused) as refused:
        with shown() as reporter:
            with refused.kept():
                runs.train(study, root, reporter)
            if distributed and not leave():
                return
            with refused.kept():
                runs.measure(study, root, reporter)
        _show(root, study.study)
        failures = runs.failures(runs.records(study, root), study)
        drawn = report.draw(root, study.study, study.figures, failures.append)
        made = "table.csv and figures" if drawn else "table.csv"
        print(f"\n{made} in {runs.study_folder(root, study.study)}")
        for line in failures:
            _complain(line)
    if failures:
        sys.exit(1)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    root: Root = "results",
    plugin: Plugins = None,
    distributed: Distributed = False,
) -> None:
    """Train a study's runs; those that are finished stay as they are."""
    from sharpflat import runs
    from sharpflat.runs.processes import join
    from sharpflat.runs.progress import shown
    from sharpflat.runs.setup import use_all_cores

    if distributed:
        join()
    else:
        use_all_cores()
    study = runs.load_config(config, overrides or [], plugin or [])
    with shown() as reporter:
        done = runs.train(study, root, reporter)
    _exit_with(runs.failures(done))


@app.command()
def measure(
    config: ConfigFile, overrides: Overrides = None, root: Root = "results", plugin: Plugins = None
) -> None:
    """Measure a study's finished runs; what is measured already is not repeated."""
    from sharpflat import runs
    from sharpflat.runs.progress import shown

    study = runs.load_config(config, overrides or [], plugin or [])
    with shown() as reporter:
        done = runs.measure(study, root, reporter)
    _exit_with(runs.failures(done, study))


@app.command()
def plot(
    study: Annotated[str, typer.Argument(help="A study's name.", metavar="STUDY")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="The figure's own.", metavar="[key=value]...")
    ] = None,
    figure: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable.")] = None,
    root: Root = "results",
    plugin: Plugins = None,
) -> None:
    """Draw a study's figures from its records."""
    from sharpflat import config, registry, report, runs
    from sharpflat.validation import InputError

    settings = config.read_yaml(runs.study_folder(root, study) / "config.yaml")
    for file in dict.fromkeys([*settings["plugins"], *(plugin or [])]):
        registry.load_plugin(file)
    content: dict[str, Any] = {}
    for argument in arguments or []:
        content = config.overridden(content, argument)
    if content and len(figure or []) != 1:
        raise InputError(f"plot: {next(iter(content))!r} needs --figure, and one alone")
    failures: list[str] = []
    asked = [{name: content} for name in figure] if figure else settings["figures"]
    drawn = report.draw(root, study, asked, failures.append)
    for line in report.damages(runs.load_runs(root, study)):
        _complain(f"drawn without it: {line}")
    for path in drawn:
        print(path)
    if not failures:
        there = {path.stem for path in drawn}
        failures += [_undrawn(study, name) for name in figure or () if name not in there]
    if not drawn and not failures:
        failures.append(f"plot: study {study!r} has nothing to draw yet, or asks for no figure")
    _exit_with(failures)


def _undrawn(study: str, name: str) -> str:
    return (
        f"figure {name}: study {study!r} lacks what it draws; sharpflat list figures {name} says "
        f"what that is"
    )


@app.command()
def audit(
    run: Annotated[str, typer.Argument(help="A run's id, or its beginning.", metavar="RUN")],
    metric: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable.")] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="The first of the training set; 1,000 by default.")
    ] = None,
    precision: Annotated[bool, typer.Option(help="How many digits survive, too.")] = False,
    root: Root = "results",
    plugin: Plugins = None,
) -> None:
    """Tell which measures are fooled by changes that leave a run's network as it is."""
    from sharpflat import registry, report, runs
    from sharpflat.audit import invariance_table, planned, precision_table
    from sharpflat.runs.build import resident
    from sharpflat.runs.progress import shown
    from sharpflat.runs.requests import HANDED_OVER
    from sharpflat.runs.setup import check_devices, fill_registries, keep_compiled_programs

    fill_registries()
    check_devices()
    keep_compiled_programs()
    for file in plugin or []:
        registry.load_plugin(file)
    records = {record.id: record for record in runs.load_runs(root)}
    record = records[_meant(run, records, root)]
    examples = examples or min(1000, resident(record.config["dataset"]).train.size)
    objective = record.objective("train", "running", examples=examples)
    inputs = {name: read(record) for name, read in HANDED_OVER.items()}
    with shown() as reporter:
        say, seed = reporter.say, record.seed
        say(report.effort(record, objective, planned(objective, metric, inputs, precision)))
        print(invariance_table(objective, metric, seed=seed, say=say, **inputs))
        if precision:
            print("\n", precision_table(objective, metric, seed=seed, say=say, **inputs), sep="")


def _meant(start: str, ids: Collection[str], root: str) -> str:
    """The one run whose id begins so."""
    from sharpflat.validation import InputError, closest

    found = [name for name in ids if name.startswith(start)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"run: {start!r} is the beginning of {' and '.join(found)}")
    hint = closest(start, ids) if ids else f"; {root} holds no runs yet"
    raise InputError(f"run: unknown {start!r}{hint}")


@app.command()
def show(
    study: Annotated[str | None, typer.Argument(help="A study's name.", metavar="[STUDY]")] = None,
    root: Root = "results",
) -> None:
    """The table of a study's finished runs, gap and sharpness first; how far it has come."""
    from sharpflat.report import begun_studies
    from sharpflat.validation import InputError

    studies = begun_studies(root)
    if study is None and not studies:
        raise InputError(f"{root}: holds no studies yet; sharpflat run configs/quickstart.yaml")
    for name in studies if study is None else [study]:
        _show(root, name)


KINDS = (
    "metrics", "trackers", "models", "datasets", "optimizers", "schedules", "figures", "config",
)  # fmt: skip


@app.command(name="list")
def list_entries(
    kind: Annotated[str, typer.Argument(help=" | ".join(KINDS), metavar="KIND")],
    name: Annotated[
        str | None, typer.Argument(help="One entry, in full; of config a key.", metavar="[NAME]")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """What there is to choose from; with NAME formula, arguments, source."""
    from sharpflat import registry
    from sharpflat.config import Config
    from sharpflat.config.schema import Every
    from sharpflat.validation import InputError, closest

    if kind not in KINDS:
        raise InputError(f"list: unknown kind {kind!r}{closest(kind, KINDS)}")
    if kind == "config":
        schema = Config.model_json_schema()
        print(json.dumps(schema if name is None else _schema_of(schema, name), indent=2))
        return
    from sharpflat.runs.setup import fill_registries

    fill_registries()
    for file in plugin or []:
        registry.load_plugin(file)
    entries: registry.Registry = getattr(registry, kind)
    if name is not None:
        print(entries[name].description)
        if kind == "trackers":
            for key, field in Every.model_fields.items():
                said = f"{key}: {Every.__annotations__[key]} = {field.default!r}"
                print(f"  {said} (of every tracker)")
        return
    width = max(len(entry) for entry in entries)
    for entry in entries:
        print(f"{entry:{width}}  {entries[entry].summary}")


def _schema_of(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """The part of the config's schema at a dotted key, with the definitions that it refers to."""
    from sharpflat.validation import InputError, closest

    part, defs = schema, schema["$defs"]
    for key in name.split("."):
        fields = _fields(part, defs)
        if key not in fields:
            raise InputError(f"list config: unknown key {key!r}{closest(key, fields)}")
        part = dict(fields[key])
    if "$ref" in part:
        part |= defs[part.pop("$ref").rpartition("/")[2]]
    needed = _referred(part, defs)
    return {**part, "$defs": {key: defs[key] for key in sorted(needed)}} if needed else part


def _fields(part: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """The keys of a mapping, of a list's elements, of whichever a union allows."""
    fields = dict(part.get("properties", {}))
    referred = [defs[part["$ref"].rpartition("/")[2]]] if "$ref" in part else []
    elements = [part["items"]] if "items" in part else []
    for inner in (*referred, *part.get("anyOf", ()), *elements):
        fields |= _fields(inner, defs)
    return fields


def _referred(part: dict[str, Any], defs: dict[str, Any]) -> set[str]:
    names = {name for name in defs if f'"#/$defs/{name}"' in json.dumps(part)}
    return names.union(*(_referred(defs[name], defs) for name in names))


def _show(root: str, study: str) -> None:
    from rich.console import Console

    from sharpflat.report import study_table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 110)
    console.print(study_table(root, study, console.width))


def _exit_with(failures: list[str]) -> None:
    """Exit status 1 if a training or a measurement failed; its record says why."""
    for line in failures:
        _complain(line)
    if failures:
        sys.exit(1)


def _complain(line: str) -> None:
    print(f"sharpflat: {' '.join(line.split())}", file=sys.stderr)


def interrupt(number: int, frame: FrameType | None) -> None:
    """As Python's own, but where the exception would be dropped: a moment later, once more."""
    while frame is not None:
        if frame.f_code.co_name == "_xla_gc_callback":
            _thread.start_new_thread(_signal_later, (number,))  # takes no lock that is held here
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _signal_later(number: int) -> None:
    time.sleep(0.01)
    os.kill(os.getpid(), number)


def main() -> None:
    """Entry point: bad input is one line and exit status 2."""
    from sharpflat.validation import InputError

    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except InputError as error:
        _complain(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
