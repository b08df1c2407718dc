"""What `curvature.py` and `agreement.py` share: the same weights and data on both sides.

The peers live in a PyTorch process of their own (`torch_peers.py`), kept alive, so that repeats of
the two sides interleave and PyTorch is no dependency.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

THREADS = 2
# Largest relative difference between the sides. Where examples are fitted closely, float32 leaves
# few digits of 1 − p in a softmax, and rounding flips a ReLU here and there: that both sides do the
# same is decided in float64.
SAME = {"float64": 1e-8, "float32": 1e-2}


def two_threads() -> None:
    """Keep this process and its children on two processors; call it before JAX starts."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


class Peers:
    """The PyTorch process, with one problem loaded."""

    def __init__(self, python: str, objective: Any) -> None:
        self.folder = tempfile.TemporaryDirectory()
        server = Path(__file__).with_name("torch_peers.py")
        self.process = subprocess.Popen(
            [python, server], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        weakref.finalize(self, self.process.kill)
        self.objective = objective
        data = {"inputs": objective.data.inputs, "labels": objective.data.labels}
        state = layers(objective.params, objective.model_state)
        self.versions = self("load", path=self.save("problem.npz", {**data, **state}))

    def __call__(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer of `torch_peers.Peers.<do>(**arguments)`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the PyTorch process ended; see its message above")
        return json.loads(answer)

    def save(self, name: str, arrays: dict[str, Any]) -> str:
        path = Path(self.folder.name) / name
        np.savez(path, **{key: np.asarray(array) for key, array in arrays.items()})
        return str(path)

    def compare(self, precision: str = "float64", fisher: bool = False) -> Comparison:
        """Loss, gradient and products with one random unit vector, on both sides.

        Products are those of the Hessian by either library, of the generalised Gauss–Newton
        matrix, and of the empirical Fisher matrix where asked for.
        """
        import jax

        import sharpflat as sf

        with jax.enable_x64(precision == "float64"):
            objective = cast(self.objective, precision)
            params = objective.params
            vector = sf.trees.random_direction(jax.random.key(0), params)
            loss, gradient = objective.value_and_grad(params)
            norm = sf.trees.norm(gradient)
            hvp = objective.linearize_hvp(params)(vector)
            ours = {"PyHessian": hvp, "hessian-eigenthings": hvp}
            ours["Gauss–Newton"] = objective.ggn_vp(params, vector)
            if fisher:
                ours["empirical Fisher"] = fisher_vp(objective, vector)
            vector, ours = layers(vector), {kind: layers(image) for kind, image in ours.items()}
        into = str(Path(self.folder.name) / "products.npz")
        path = self.save("vector.npz", vector)
        theirs = self("evaluate", vector=path, into=into, fisher=fisher)
        images = np.load(into)
        products = {
            kind: distance([(array, images[f"{kind}/{name}"]) for name, array in image.items()])
            for kind, image in ours.items()
        }
        return Comparison(
            (float(loss), theirs["loss"]), (float(norm), theirs["gradient"]), products
        )

    def check(self) -> None:
        """Stop unless both sides compute the same loss, gradient norm and products."""
        rows = {precision: self.compare(precision).apart() for precision in SAME}
        print("| relative difference between the sides |", " | ".join(SAME), "|")
        print("|---|" + "---|" * len(SAME))
        for name in rows["float64"]:
            print(f"| {name} |", " | ".join(f"{apart[name]:.1e}" for apart in rows.values()), "|")
        for precision, apart in rows.items():
            if not max(apart.values()) <= SAME[precision]:
                raise SystemExit(f"{precision}: the two sides do not compute the same thing")


class Comparison(NamedTuple):
    """What both sides compute at the same point: `(ours, theirs)`, or relative differences."""

    loss: tuple[float, float]
    gradient: tuple[float, float]
    products: dict[str, float]

    def apart(self) -> dict[str, float]:
        """Relative differences, by name."""
        values = {"loss": self.loss, "gradient norm": self.gradient}
        of_values = {name: abs(ours / theirs - 1) for name, (ours, theirs) in values.items()}
        return of_values | {f"product, {name}": apart for name, apart in self.products.items()}


def distance(pairs: list[tuple[Any, np.ndarray]]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all arrays together."""
    apart = sum(np.sum((np.asarray(a, np.float64) - b) ** 2) for a, b in pairs)
    return float(np.sqrt(apart / sum(np.sum(np.float64(b) ** 2) for _, b in pairs)))


def fisher_vp(objective: Any, vector: Any) -> Any:
    """(1/n) Σ g_i g_iᵀ times `vector`, for a small network."""
    import jax
    import jax.numpy as jnp

    rows = objective.per_example_gradients(objective.params)
    along = jax.tree.map(lambda g, v: g.reshape(len(g), -1) @ v.reshape(-1), rows, vector)
    weights = sum(jax.tree.leaves(along)) / objective.data.size
    return jax.tree.map(lambda g: jnp.tensordot(weights, g, axes=1), rows)


def cast(tree: Any, precision: str) -> Any:
    """The same tree, or objective, with its floating-point arrays in `precision`."""
    import jax

    return jax.tree.map(
        lambda leaf: leaf.astype(precision) if leaf.dtype.kind == "f" else leaf, tree
    )


def layers(tree: Any, model_state: Any = None) -> dict[str, np.ndarray]:
    """A perceptron's parameters (or a vector like them) under PyTorch's names, in its layout."""
    arrays = {}
    for layer, leaves in tree.items():
        kind, number = layer.split("_")
        name = f"dense_{number}" if kind == "Dense" else f"norm_{number}"
        weight = leaves["kernel"].T if kind == "Dense" else leaves["scale"]
        arrays |= {f"{name}.weight": weight, f"{name}.bias": leaves["bias"]}
    for layer, averages in (model_state or {}).get("batch_stats", {}).items():
        name = f"norm_{layer.split('_')[1]}"
        arrays[f"{name}.running_mean"] = averages["mean"]
        arrays[f"{name}.running_var"] = averages["var"]
    return {name: np.asarray(array) for name, array in arrays.items()}


def trained(data: Any, module: Any, *, batch: int, count: int) -> Any:
    """The objective of a network after a short training with Adam, seed 0.

    Its batch-norm averages are re-estimated over the data and then frozen.
    """
    import sharpflat as sf
    from sharpflat.objective import cross_entropy
    from sharpflat.training import Recipe, epochs, make_optimizer, start

    model = sf.Model.of(module)
    rule = make_optimizer("adam", {"learning_rate": 1e-3})
    recipe = Recipe(model, cross_entropy, rule)
    history = epochs(recipe, start(recipe, data, 0), data, batch_size=min(batch, data.size), seed=0)
    state = [next(history) for _ in range(count)][-1].state
    recalibrated = sf.Objective.from_model(
        model, state.params, state.model_state, data, batch_norm="recalibrated", chunk=data.size
    )
    averages = recalibrated.state_at(state.params)
    return sf.Objective.from_model(model, state.params, averages, data, chunk=data.size)


def f1(options: Any) -> Any:
    """F1's objective on the first MNIST training images: a run's weights, or a short training."""
    import jax
    import jax.numpy as jnp

    import sharpflat as sf

    if options.run:
        run = sf.Run(options.run)
        return run.objective("train", "running", options.examples, options.examples)
    train = sf.datasets["mnist"](data_dir=options.data_dir).train.first(options.examples)
    data = sf.Batch(*jax.tree.map(jnp.asarray, train))
    return trained(data, sf.models["f1"](10), batch=256, count=2)


def add_arguments(parser: Any) -> None:
    """The arguments of both scripts."""
    parser.add_argument("--torch-python", metavar="PATH", required=True, help="has the peers")
    parser.add_argument(
        "--run", metavar="FOLDER", help="F1's weights: ROOT/runs/ID of a finished run"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder that holds mnist/")
    parser.add_argument("--examples", type=int, default=6000)


def versions(peers: Peers) -> str:
    """Packages of both sides."""
    import jax

    import sharpflat as sf

    ours = {"sharpflat": sf.__version__, "jax": jax.__version__}
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    named = [f"{name} {version}" for name, version in {**ours, **peers.versions}.items()]
    return ", ".join([python, *named])
