"""Write docs/invariance.md: which measures a change of parametrisation fools, on small networks.

    python docs/make_invariance.py

Two networks on the embedded digits, one with batch norm and one without, trained for a moment.
About four minutes on two cores, nearly all of it compilation, and less the second time.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jax

import sharpflat as sf

HERE = Path(__file__).parent
SETTINGS = [
    "study=invariance", "model={name: mlp, width: 32, depth: 2}", "seeds=1", "train.epochs=20",
    "train.optimizer={name: adam, learning_rate: 0.001}", "train.batch_size=32",
    "sweep={model.batch_norm: [false, true]}", "measure={metrics: []}", "landscape=[]",
]  # fmt: skip
EXAMPLES = 500
PAGE = """# Which measures a reparametrisation fools

Made by `python docs/make_invariance.py` (jax {version}, {platform}); of a run of your own,
`sharpflat audit RUN` tells the same.

A measure that changes although the network's function does not says something of its parameters,
not of the function (Dinh et al., 2017). Each number below is the measure after a change over the
measure before. The networks are perceptrons with two hidden layers of 32 units, trained on the
digits for 20 epochs; the loss is that of {examples} training examples. Each change is made at every
hidden layer: ReLU rescaling (a layer, or the batch norm behind it, times α, the next layer divided
by α; where layers share a kernel α and 1/α in turn, so that it does not get back what it gave), the
scale of weights before batch norm, a permutation of the units; and, which does change the function
but no prediction, logits times α. The second moments that `preconditioned_sharpness` takes follow
each change that keeps the function: they are those of the gradients after it; under the last they
stay as they are, so that its number there is of a new Hessian and old moments. Where a measure is
fooled, it is shown; what holds at one α is no proof.
"""


def main() -> None:
    """Train, measure, write."""
    page = PAGE.format(version=jax.__version__, platform=jax.default_backend(), examples=EXAMPLES)
    config = sf.load_config(HERE.parent / "configs" / "quickstart.yaml", SETTINGS)
    with tempfile.TemporaryDirectory() as root:
        for run in sf.train(config, root):
            normalised = run.swept["model.batch_norm"]
            table = sf.invariance_table(
                run.objective("train", "running", examples=EXAMPLES),
                initial_params=run.initial_params,
                opt_state=run.opt_state,
                hyperparams=run.config["train"]["optimizer"],
                say=lambda line: print(line, file=sys.stderr),
            )
            page += f"\n## {'With' if normalised else 'Without'} batch norm\n\n{table.markdown()}"
    (HERE / "invariance.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
