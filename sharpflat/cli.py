"""The command line. JAX is imported inside the commands, so that `--help` is there at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sharpflat.registry import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _sharpflat() -> None:
    """Train with small and large batches, measure how sharp the minima are, compare."""


ConfigFile = Annotated[str, typer.Argument(help="a study's YAML file", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="train.batch_size=64 and the like", metavar="[key=value ...]")
]
Root = Annotated[str, typer.Option(help="folder of all results")]
Plugin = Annotated[list[str] | None, typer.Option(help="a file with your own entries")]


@app.command()
def train(
    config: ConfigFile, overrides: Overrides = None, root: Root = "results", plugin: Plugin = None
) -> None:
    """Train a study's runs; those that are finished stay as they are."""
    from sharpflat import runs
    from sharpflat.runs.progress import shown

    study = runs.load_config(config, overrides or [], plugin or [])
    with shown() as reporter:
        runs.train(study, root, reporter)


def main() -> None:
    """Entry point: bad input is one line and exit status 2."""
    try:
        app()
    except InputError as error:
        print(f"sharpflat: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
