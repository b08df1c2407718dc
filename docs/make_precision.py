"""Write docs/precision.md: how many digits of each measure survive in coarser number formats.

    python docs/make_precision.py

One network with batch norm on the embedded digits, trained for a moment. About five minutes on two
cores, nearly all of it compilation, and less the second time. On a GPU the page has a column for
TF32 too.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jax

import sharpflat as sf

HERE = Path(__file__).parent
SETTINGS = [
    "study=precision", "model={name: mlp, width: 32, depth: 2, batch_norm: true}", "seeds=1",
    "train.epochs=20", "train.optimizer={name: adam, learning_rate: 0.001}",
    "train.batch_size=32", "sweep={}", "measure={metrics: []}", "landscape=[]",
]  # fmt: skip
EXAMPLES = 500
PAGE = """# How many digits survive

Made by `python docs/make_precision.py` (jax {version}, {platform}); of a run of your own,
`sharpflat audit RUN --precision` tells the same.

Parameters, batch-norm averages and examples are cast to each format, and the measure is taken
there. The network is a perceptron with two hidden layers of 32 units and batch norm, trained in
float32 on the digits for 20 epochs; the loss is that of {examples} training examples. Differences
of nearly equal losses lose the most. A certificate says that a solver's criterion held in that
format, not that the format was fine enough.

"""


def main() -> None:
    """Train, measure, write."""
    page = PAGE.format(version=jax.__version__, platform=jax.default_backend(), examples=EXAMPLES)
    config = sf.load_config(HERE.parent / "configs" / "quickstart.yaml", SETTINGS)
    with tempfile.TemporaryDirectory() as root:
        (run,) = sf.train(config, root)
        table = sf.precision_table(
            run.objective("train", "running", examples=EXAMPLES),
            initial_params=run.initial_params,
            opt_state=run.opt_state,
            hyperparams=run.config["train"]["optimizer"],
            say=lambda line: print(line, file=sys.stderr),
        )
    (HERE / "precision.md").write_text(page + table.markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
