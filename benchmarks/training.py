"""F1's training against PyTorch, against its bare matrix products, and 8 runs at once.

    python -m venv torch && torch/bin/pip install torch numpy
    python benchmarks/training.py --torch-python torch/bin/python [--data-dir DIR]

Three tables, each with its sides' repeats interleaved:

- `torch`: time per Adam update of `sharpflat.training.epochs` against an ordinary eager loop of
  PyTorch over in-memory tensors, two threads each. At B = 1 without batch norm, which PyTorch
  refuses there. Targets: 5, 3, 1.8 and 1.25 times as fast at B = 1, 32, 256 and 6000.
- `products`: the same update against the bare multiplications of its matrices (forward and both
  gradients, without the first layer's input gradient: 7.9 MFLOP an example), and where the rest
  goes. Target: 75 % of their rate at B = 256 and 6000.
- `together`: 8 seeds trained one after another (`together: false`), one on each core (the default
  on a CPU) and as one program (`together: true`), evaluation and records included. Targets: 0.85
  of the time of one after another for F1, 0.5 for a small network on the digits.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

THREADS = 2
HIDDEN, DEPTH, PIXELS, CLASSES = 512, 5, 784, 10
TARGETS = {1: 5.0, 32: 3.0, 256: 1.8, 6000: 1.25}
EXAMPLES = {1: 2_000, 32: 12_000}  # of the 60,000, where a whole epoch is long
LEARNING_RATE = 1e-3


def serve(path: str) -> None:
    """The PyTorch side: each line `batch examples epochs` is answered with seconds an update."""
    import numpy as np
    import torch
    from torch import nn

    torch.set_num_threads(THREADS)
    arrays = np.load(path)
    inputs = torch.from_numpy(arrays["inputs"]).reshape(-1, PIXELS)
    labels = torch.from_numpy(arrays["labels"]).long()

    def f1(batch_norm: bool) -> nn.Module:
        layers: list[nn.Module] = []
        for width in (PIXELS, *[HIDDEN] * (DEPTH - 1)):
            layers += [nn.Linear(width, HIDDEN)]
            layers += [nn.BatchNorm1d(HIDDEN, eps=1e-3, momentum=0.01)] * batch_norm + [nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES))

    sides = {}
    for line in sys.stdin:
        batch, examples, epochs = map(int, line.split())
        if batch not in sides:
            network = f1(batch_norm=batch > 1)
            sides[batch] = network, torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        network, optimizer = sides[batch]
        began, updates = time.perf_counter(), 0
        for _ in range(epochs):
            for indices in torch.randperm(examples).split(batch):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(inputs[indices]), labels[indices])
                loss.backward()
                optimizer.step()
                updates += 1
        print((time.perf_counter() - began) / updates, flush=True)


class Torch:
    """PyTorch in its own process; a call trains so many epochs and gives seconds an update."""

    def __init__(self, python: str, data, folder: str) -> None:
        import numpy as np

        path = Path(folder) / "data.npz"
        np.savez(path, inputs=np.asarray(data.inputs), labels=np.asarray(data.labels))
        self.process = subprocess.Popen(
            [python, __file__, "--serve", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, batch: int, examples: int, epochs: int) -> float:
        self.process.stdin.write(f"{batch} {examples} {epochs}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the PyTorch process ended; see its message above")
        return float(answer)


class Ours:
    """sharpflat's training; a call trains so many epochs and gives seconds an update."""

    def __init__(self, data, batch: int) -> None:
        from sharpflat.training import epochs

        recipe, state = started(data, batch_norm=batch > 1)
        self.epochs = epochs(recipe, state, data, batch_size=batch, seed=0)
        self.updates = -(-data.size // batch)

    def __call__(self, epochs: int) -> float:
        began = time.perf_counter()
        for _ in range(epochs):
            next(self.epochs)
        return (time.perf_counter() - began) / epochs / self.updates


def started(data, batch_norm: bool = True):
    """Recipe and first state of F1 with Adam."""
    import sharpflat as sf
    from sharpflat.objective import cross_entropy
    from sharpflat.training import Recipe, make_optimizer, start

    module = sf.models["mlp"](CLASSES, width=HIDDEN, depth=DEPTH, batch_norm=batch_norm)
    rule = make_optimizer("adam", {"learning_rate": LEARNING_RATE})
    recipe = Recipe(sf.Model.of(module), cross_entropy, rule)
    return recipe, start(recipe, data, seed=0)


def interleaved(sides, repeats: int) -> list[list[float]]:
    """`repeats` times of each side, A B A B."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, seconds in zip(sides, times, strict=True):
            seconds.append(side())
    return times


def spread(values: list[float], factor: float = 1e3) -> str:
    """Median (lowest–highest)."""
    low, high = factor * min(values), factor * max(values)
    return f"{factor * statistics.median(values):.2f} ({low:.2f}–{high:.2f})"


def against_torch(data, options: argparse.Namespace, folder: str) -> None:
    peer = Torch(options.torch_python, data, folder)
    print("\n| B | examples | sharpflat, ms | PyTorch, ms | times as fast | target |")
    print("|---|---|---|---|---|---|", flush=True)
    for batch in options.batch:
        part = data.first(EXAMPLES.get(batch, data.size))
        ours = Ours(part, batch)
        ours(2)  # compiles, and lets the segments grow
        peer(batch, min(part.size, 50 * batch), 1)
        epochs = max(1, round(options.seconds / (ours(1) * ours.updates)))
        sides = [partial(ours, epochs), partial(peer, batch, part.size, 1)]
        mine, theirs = interleaved(sides, options.repeats)
        ratio = statistics.median(theirs) / statistics.median(mine)
        print(
            f"| {batch} | {part.size:,} | {spread(mine)} | {spread(theirs)} | {ratio:.2f} | "
            f"{TARGETS.get(batch, '')} |", flush=True,
        )  # fmt: skip


def against_products(data, options: argparse.Namespace) -> None:
    print(
        "\n| B | products, ms | gradient, ms | update, ms | training, ms | of the products' rate |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for batch in [batch for batch in options.batch if batch > 1]:
        ours = Ours(data.first(EXAMPLES.get(batch, data.size)), batch)
        ours(2)
        sides = [*pieces(data.first(batch), options.seconds), partial(ours, 1)]
        for side in sides:
            side()
        times = interleaved(sides, options.repeats)
        share = statistics.median(times[0]) / statistics.median(times[-1])
        cells = " | ".join(spread(seconds) for seconds in times)
        print(f"| {batch} | {cells} | {100 * share:.0f} % |", flush=True)


def pieces(batch, seconds: float):
    """Bare products, the gradient and the whole update, of one batch: each gives its seconds."""
    import jax

    from sharpflat.training import update

    recipe, state = started(batch)
    keys = iter(jax.random.split(jax.random.key(0), 3 * DEPTH + 3))
    widths = [PIXELS, *[HIDDEN] * DEPTH, CLASSES]

    def normal(*shape: int):
        return jax.random.normal(next(keys), shape)

    layers = [
        (normal(batch.size, a), normal(a, b), normal(batch.size, b))
        for a, b in itertools.pairwise(widths)
    ]

    @jax.jit
    def products(layers):
        forward = [h @ w for h, w, _ in layers]
        weights = [h.T @ g for h, _, g in layers]
        return forward, weights, [g @ w.T for _, w, g in layers[1:]]

    @jax.jit
    def gradient(state, batch):
        def mean_loss(params):
            outputs, averages = recipe.model.apply(
                params, state.model_state, batch.inputs, batch_statistics=True, dropout=True,
                key=jax.random.key(0),
            )  # fmt: skip
            return recipe.loss(outputs, batch.labels).mean(), averages

        return jax.value_and_grad(mean_loss, has_aux=True)(state.params)

    step = jax.jit(partial(update, recipe), donate_argnums=0)
    carry = [jax.tree.map(jax.numpy.copy, state)]

    def one_update():
        carry[0], loss, _ = step(carry[0], batch, jax.random.key(0))
        return loss

    calls = [partial(products, layers), partial(gradient, state, batch), one_update]
    return [partial(timed, call, max(3, round(seconds / 0.2 / batch.size * 256))) for call in calls]


def timed(call, count: int) -> float:
    """Seconds a call."""
    import jax

    began = time.perf_counter()
    for _ in range(count):
        made = call()
    jax.block_until_ready(made)
    return (time.perf_counter() - began) / count


def all_together(options: argparse.Namespace, folder: str) -> None:
    ways = {"one after another": False, "one a core": None, "one program": True}
    print(
        f"\n| 8 seeds of | {' | '.join(f'{way}, s' for way in ways)} | a core | program | target |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    f1 = {"dataset": {"name": "subset", "of": "mnist", "examples": 10_000}, "model": "f1"}
    digits = {"dataset": {"name": "digits"}, "model": "mlp"}
    studies = {
        "F1, B = 32, 2 epochs": (studied(f1, 32, 2), 0.85),
        "F1, B = 256, 4 epochs": (studied(f1, 256, 4), 0.85),
        "digits, B = 50, 60 epochs": (studied(digits, 50, 60), 0.5),
        "digits, B = 8, 20 epochs": (studied(digits, 8, 20), 0.5),
    }
    for name, (content, target) in studies.items():
        if name.partition(",")[0] not in options.networks:
            continue
        sides = [partial(study_seconds, content, way, folder) for way in ways.values()]
        for side in sides:
            side()  # compiles
        times = interleaved(sides, max(3, options.repeats // 2))
        first, *others = (statistics.median(seconds) for seconds in times)
        ratios = " | ".join(f"{other / first:.2f}" for other in others)
        cells = " | ".join(spread(seconds, 1) for seconds in times)
        print(f"| {name} | {cells} | {ratios} | {target} |", flush=True)


def studied(what: dict, batch: int, epochs: int) -> dict:
    """A study's content."""
    optimizer = {"name": "adam", "learning_rate": LEARNING_RATE}
    return {
        "study": "together", "dataset": what["dataset"], "model": {"name": what["model"]},
        "train": {"batch_size": batch, "epochs": epochs, "optimizer": optimizer}, "seeds": 8,
    }  # fmt: skip


def study_seconds(content: dict, together: bool | None, folder: str) -> float:
    """Wall time of its training, from nothing on disk."""
    import yaml

    import sharpflat as sf

    path = Path(folder) / "study.yaml"
    path.write_text(yaml.safe_dump({**content, "together": together}))
    config = sf.load_config(path)
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        runs = sf.train(config, root)
        seconds = time.perf_counter() - began
        assert all(run.finished for run in runs)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch-python", metavar="PATH", help="an interpreter that has PyTorch")
    parser.add_argument("--data-dir", metavar="DIR", help="folder that holds mnist/")
    parser.add_argument("--only", nargs="+", default=["torch", "products", "together"])
    parser.add_argument("--networks", nargs="+", default=["F1", "digits"], help="of `together`")
    parser.add_argument("--batch", type=int, nargs="+", default=list(TARGETS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2, help="length of a repeat, about")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(THREADS))
    if options.data_dir:
        os.environ["SHARPFLAT_DATA"] = options.data_dir
    import jax
    import jax.numpy as jnp

    import sharpflat as sf

    data = sf.Batch(*map(jnp.asarray, sf.datasets["mnist"]().train))
    print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores")
    print(f"median (lowest–highest) of {options.repeats} repeats")
    with tempfile.TemporaryDirectory() as folder:
        if "torch" in options.only and options.torch_python:
            against_torch(data, options, folder)
        if "products" in options.only:
            against_products(data, options)
        if "together" in options.only:
            all_together(options, folder)


if __name__ == "__main__":
    main()
