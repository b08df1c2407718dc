"""The command line. JAX is imported inside the commands, so that `--help` is there at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

COMPILE_SECONDS = 3
"""Of one measure of a small network on two cores."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

ConfigFile = Annotated[str, typer.Argument(help="A study's YAML file.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys set anew, as train.batch_size=64.", metavar="[key=value]..."),
]
Root = Annotated[str, typer.Option(help="Folder of all results.")]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="A file of your own entries.")]


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
) -> None:
    """Train, measure, draw; safe to repeat, goes on where it stopped."""
    from sharpflat import report, runs
    from sharpflat.runs.progress import shown

    study = runs.load_config(config, overrides or [], plugin or [])
    if dry_run:
        _print_plan(study, runs.plan(study, root))
        return
    with shown() as reporter:
        done = runs.run(study, root, reporter)
    _show(root, study.study)
    failures = runs.failures(done, study)
    report.draw(root, study.study, study.figures, failures.append)
    _exit_with(failures)


@app.command()
def train(
    config: ConfigFile, overrides: Overrides = None, root: Root = "results", plugin: Plugins = None
) -> None:
    """Train a study's runs; those that are finished stay as they are."""
    from sharpflat import runs
    from sharpflat.runs.progress import shown

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
    figure: Annotated[str | None, typer.Option(help="One figure; all by default.")] = None,
    root: Root = "results",
    plugin: Plugins = None,
) -> None:
    """Draw a study's figures from its records."""
    from sharpflat import config, registry, report, runs

    settings = config.read_yaml(runs.study_folder(root, study) / "config.yaml")
    for file in dict.fromkeys([*settings["plugins"], *(plugin or [])]):
        registry.load_plugin(file)
    content: dict[str, Any] = {}
    for argument in arguments or []:
        content = config.overridden(content, argument)
    if content and figure is None:
        raise registry.InputError(f"plot: {next(iter(content))!r} needs --figure")
    failures: list[str] = []
    asked = settings["figures"] if figure is None else [{figure: content}]
    for path in report.draw(root, study, asked, failures.append):
        print(path)
    _exit_with(failures)


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
    from sharpflat import registry, runs
    from sharpflat.audit import invariance_table, planned, precision_table
    from sharpflat.runs.build import resident
    from sharpflat.runs.progress import shown
    from sharpflat.runs.requests import HANDED_OVER
    from sharpflat.runs.setup import fill_registries, keep_compiled_programs

    fill_registries()
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
        say(_effort(record, objective, planned(objective, metric, inputs, precision)))
        print(invariance_table(objective, metric, seed=seed, say=say, **inputs))
        if precision:
            print("\n", precision_table(objective, metric, seed=seed, say=say, **inputs), sep="")


def _effort(record: Any, objective: Any, asked: list[tuple[str, dict[str, Any]]]) -> str:
    """How many measurements an audit makes, and about how long that takes."""
    from sharpflat.runs.cost import costs_of
    from sharpflat.runs.requests import Request

    size, chunk = objective.data.size, objective.chunk
    requests = [
        Request(name, arguments, "train", size, chunk, objective.batch_norm, 0, None)
        for name, arguments in asked
    ]
    costs = costs_of(record.config, [(request, 1) for request in requests])
    minutes = sum(cost.seconds or 0 for cost in costs) / 60
    compiling = COMPILE_SECONDS * len({request.metric for request in requests}) / 60
    return (
        f"{len(asked)} measurements on {size} examples, about {minutes:.1f} min (gradients by what "
        f"each declares; one timed now), and the first time {compiling:.1f} min or more to compile"
    )


def _meant(start: str, ids: Collection[str], root: str) -> str:
    """The one run whose id begins so."""
    from sharpflat.registry import InputError, closest

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
    """The table of a study's finished runs, gap and sharpness first."""
    from sharpflat.registry import InputError

    studies = sorted(path.parent.name for path in Path(root).glob("studies/*/table.csv"))
    if study is None and not studies:
        raise InputError(f"{root}: holds no studies yet; sharpflat run configs/quickstart.yaml")
    for name in studies if study is None else [study]:
        _show(root, name)


KINDS = ("metrics", "models", "datasets", "optimizers", "schedules", "figures", "config")


@app.command(name="list")
def list_entries(
    kind: Annotated[str, typer.Argument(help=" | ".join(KINDS), metavar="KIND")],
    name: Annotated[
        str | None, typer.Argument(help="One entry, in full.", metavar="[NAME]")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """What there is to choose from; with NAME formula, arguments, source."""
    from sharpflat import registry
    from sharpflat.config import Config

    if kind not in KINDS:
        raise registry.InputError(f"list: unknown kind {kind!r}{registry.closest(kind, KINDS)}")
    if kind == "config":
        print(json.dumps(Config.model_json_schema(), indent=2))
        return
    from sharpflat.runs.setup import fill_registries

    fill_registries()
    for file in plugin or []:
        registry.load_plugin(file)
    entries: registry.Registry = getattr(registry, kind)
    if name is not None:
        print(entries[name].description)
        return
    width = max(len(entry) for entry in entries)
    for entry in entries:
        print(f"{entry:{width}}  {entries[entry].summary}")


def _show(root: str, study: str) -> None:
    from rich.console import Console

    from sharpflat.report import study_table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 110)
    console.print(study_table(root, study))


def _print_plan(study: Any, plan: list[Any]) -> None:
    from sharpflat import runs
    from sharpflat.runs.cost import trainings_seconds
    from sharpflat.runs.requests import left_out, requests

    for row in plan:
        settings = " ".join(f"{key}={value}" for key, value in row.run.swept.items())
        print(f"{row.run.id}  {settings}  {row.status}, {len(row.todo)} measurements to make")
    for line in left_out(requests(study), [row.run for row in plan]):
        print(line)
    trainings = sum(row.to_train for row in plan)
    if trainings:
        seconds, unknown = trainings_seconds(plan)
        beside = f", beside {unknown} that could not be timed" if unknown else ""
        minutes = f"{seconds / 60:.1f} min if none stops early"
        print(f"\n{trainings} trainings, their updates about {minutes}{beside}")
    if any(row.todo for row in plan):
        _print_costs(runs.costs(study, plan))


def _print_costs(costs: list[Any]) -> None:
    print("\nabout what is to be measured, each measure alone, without compiling")
    print("(gradients over its examples; one was timed just now):")
    settings = {cost.request.setting for cost in costs}
    labels = [cost.request.label + cost.request.where * (len(settings) > 1) for cost in costs]
    width = max(map(len, labels))
    print(f"{'measure':{width}}  gradients      a run  runs")
    for label, cost in zip(labels, costs, strict=True):
        gradients = "?" if cost.gradients is None else f"{cost.gradients:.0f}"
        seconds = "?" if cost.seconds is None else f"{cost.seconds / cost.runs:.1f} s"
        shown = f"{gradients:>9} {seconds:>10}"
        print(f"{label:{width}}  {shown}  {cost.runs:4}")
    minutes = sum(cost.seconds or 0 for cost in costs) / 60
    silent = sum(cost.seconds is None for cost in costs)
    beside = f", beside {silent} that are not known" if silent else ""
    print(f"{'the sum':{width}}  about {minutes:.1f} min{beside}")


def _exit_with(failures: list[str]) -> None:
    """Exit status 1 if a training or a measurement failed; its record says why."""
    for line in failures:
        print(f"sharpflat: {line}", file=sys.stderr)
    if failures:
        sys.exit(1)


def main() -> None:
    """Entry point: bad input is one line and exit status 2."""
    from sharpflat.registry import InputError

    try:
        app()
    except InputError as error:
        print(f"sharpflat: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
