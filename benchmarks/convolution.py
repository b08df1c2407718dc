"""C1's time for one Adam update on a CPU: sharpflat in a compiled loop against PyTorch eager.

    python -m venv torch && torch/bin/pip install torch numpy
    python benchmarks/convolution.py --torch-python torch/bin/python

Both sides train the same layers on random data of CIFAR's shape, dropout and batch statistics on,
with two threads. PyTorch lives in a process of its own, kept alive, so that the repeats of the two
sides interleave. Target: at most twice PyTorch's time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from functools import partial

THREADS = 2


def serve() -> None:
    """The PyTorch side: each line `batch updates` on stdin is answered with seconds an update."""
    import torch
    from torch import nn

    torch.set_num_threads(THREADS)

    def c1(outputs: int) -> nn.Module:
        def norm(kind: type, features: int) -> list[nn.Module]:
            return [kind(features, eps=1e-3, momentum=0.01), nn.ReLU()]

        layers: list[nn.Module] = []
        for channels in (3, 64):
            layers += [nn.Conv2d(channels, 64, 5, padding=2), *norm(nn.BatchNorm2d, 64)]
            layers += [nn.MaxPool2d(3, 2, padding=1)]
        layers += [nn.Flatten()]
        for width, features in ((4096, 384), (384, 192)):
            layers += [nn.Linear(width, features), *norm(nn.BatchNorm1d, features), nn.Dropout(0.5)]
        return nn.Sequential(*layers, nn.Linear(192, outputs))

    sides = {}
    for line in sys.stdin:
        batch, updates = map(int, line.split())
        if batch not in sides:
            network = c1(10)
            data = torch.rand(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
            sides[batch] = network, torch.optim.Adam(network.parameters()), *data
        network, optimizer, inputs, labels = sides[batch]
        start = time.perf_counter()
        for _ in range(updates):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
        print((time.perf_counter() - start) / updates, flush=True)


class Torch:
    """PyTorch in its own process."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, batch: int, updates: int) -> float:
        self.process.stdin.write(f"{batch} {updates}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the PyTorch process ended; see its message above")
        return float(answer)


class Ours:
    """A network of sharpflat's, `updates` of Adam in one compiled loop."""

    def __init__(self, name: str) -> None:
        import jax
        import optax

        import sharpflat as sf

        module = sf.models[name](10)
        optimizer = optax.adam(1e-3)
        self.sides: dict[int, list] = {}

        def update(batch, carry, key):
            inputs, labels = batch
            params, state, opt_state = carry

            def loss(params):
                logits, new = module.apply(
                    {"params": params, **state}, inputs, batch_statistics=True, dropout=True,
                    rngs={"dropout": key}, mutable=["batch_stats"],
                )  # fmt: skip
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), new

            gradient, state = jax.grad(loss, has_aux=True)(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), state, opt_state), None

        @partial(jax.jit, donate_argnums=0)
        def train(carry, batch, keys):
            return jax.lax.scan(partial(update, batch), carry, keys)[0]

        @partial(jax.jit, static_argnums=0)
        def start(batch):
            inputs = jax.random.uniform(jax.random.key(0), (batch, 32, 32, 3))
            labels = jax.random.randint(jax.random.key(1), (batch,), 0, 10)
            state = module.init(jax.random.key(2), inputs, batch_statistics=True, dropout=False)
            params = state.pop("params")
            return (params, state, optimizer.init(params)), (inputs, labels)

        self.train, self.start = train, start

    def __call__(self, batch: int, updates: int) -> float:
        import jax

        if batch not in self.sides:
            self.sides[batch] = list(self.start(batch))
        side = self.sides[batch]
        keys = jax.random.split(jax.random.key(3), updates)
        start = time.perf_counter()
        side[0] = jax.block_until_ready(self.train(side[0], side[1], keys))
        return (time.perf_counter() - start) / updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch-python", metavar="PATH", help="an interpreter that has PyTorch")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--c2", action="store_true", help="time C2 at batch 32 as well")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    def row(name: str, batch: int, ours: Ours, peer: Torch | None) -> None:
        updates = max(1, 128 // batch)
        sides = [ours, peer] if peer else [ours]
        times: list[list[float]] = [[] for _ in sides]
        for repeat in range(options.repeats + 1):
            for side, seconds in zip(sides, times, strict=True):
                taken = side(batch, updates)
                if repeat:  # the first one compiles
                    seconds.append(1e3 * taken)
        shown = [f"{statistics.median(s):.1f} ({min(s):.1f}–{max(s):.1f})" for s in times]
        cells = [f"{name:>7} {batch:>5} {shown[0]:>22}"]
        if peer:
            ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
            cells += [f"{shown[1]:>22} {ratio:>6.2f}"]
        print(*cells, flush=True)

    peer = Torch(options.torch_python) if options.torch_python else None
    print(f"{'network':>7} {'batch':>5} {'ours, ms':>22} {'torch, ms':>22} {'ratio':>6}")
    c1 = Ours("c1")
    for batch in options.batch:
        row("c1", batch, c1, peer)
    if options.c2:
        row("c2", 32, Ours("c2"), None)
    if peer:
        peer.process.stdin.close()
        peer.process.wait()


if __name__ == "__main__":
    main()
