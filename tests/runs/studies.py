"""Tiny studies for the tests of configs, runs and the command line."""

import contextlib
import copy
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import yaml

from sharpflat import cli

TINY = {
    "study": "tiny",
    "dataset": {
        "name": "synthetic", "train_examples": 40, "test_examples": 20, "features": 4, "classes": 3,
    },
    "model": {"name": "mlp", "width": 8, "depth": 1},
    "train": {"batch_size": 8, "epochs": 3, "optimizer": {"name": "adam", "learning_rate": 0.01}},
    "seeds": 2,
    "sweep": {"train.batch_size": [8, 40]},
    "measure": {"chunk": 40, "metrics": []},
    "figures": [],
}  # fmt: skip

UPDATES = 5
"""An epoch of it, at batch size 8."""

BATCH_NORM = {"name": "mlp", "width": 8, "depth": 1, "batch_norm": True}

# A model that can be made to fail, and a metric.
LINEAR = '''
import jax
import jax.numpy as jnp
import sharpflat as sf


@sf.model
def linear(outputs: int, *, fail: bool = False) -> sf.Model:
    """A linear network."""

    def init(key, inputs):
        size = inputs[0].size
        return {"w": jax.random.normal(key, (size, outputs)) / size**0.5}

    def apply(params, inputs):
        if fail:
            raise RuntimeError("the weights [fell] off")
        return inputs.reshape(len(inputs), -1) @ params["w"]

    return sf.Model.from_functions(init, apply)
'''

NORM = '''
import sharpflat as sf


@sf.metric
def weight_norm(objective, key, *, power: sf.Positive = 1.0) -> sf.Estimate:
    """The Euclidean norm of all parameters, to a power."""
    # A comment.
    norm = float(sf.trees.norm(objective.params))
    return sf.Estimate(norm**power, 0.0, True, {"norm": norm})
'''


def content(**changes):
    """The tiny study with some of its top-level keys replaced; None removes one."""
    new = {**copy.deepcopy(TINY), **changes}
    return {key: value for key, value in new.items() if value is not None}


def write(folder, **changes):
    """The tiny study as a file."""
    path = Path(folder) / "study.yaml"
    path.write_text(yaml.safe_dump(content(**changes)))
    return path


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def complaint(self):
        """The one line of bad input: exit status 2, nothing else said."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.startswith("sharpflat: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("sharpflat: ").removesuffix("\n")


def sharpflat(*arguments):
    """Run the command line in this process."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["sharpflat", *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    return Outcome(code, out.getvalue(), err.getvalue())


def contents(folder):
    """Every file and folder below `folder`, with its bytes and its time."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def folders(root):
    return sorted((root / "runs").iterdir())


def equal(first, second):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))
