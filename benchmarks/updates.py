"""F1's time for one Adam update on MNIST: sharpflat's training against a bare `lax.scan` loop.

    python benchmarks/updates.py --data-dir DIR        # DIR/mnist/train-images-idx3-ubyte.gz, ...

Without `--data-dir` MNIST comes from $SHARPFLAT_DATA or a download; `--random` needs no data.

sharpflat's side is `sharpflat.training.epochs`, all of it: Python loop, segments, an epoch's order,
sums of loss and accuracy for the history. The bare side is what one would write without a
framework: plain JAX, the same layers and averages, an epoch in one jitted scan with donated state.
Both train on, epoch after epoch, in one process, their repeats interleaved in alternating order.
Before that, both are shown to learn the same thing. Target: at most 1.3 times the bare loop's time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial

EXAMPLES = {32: 12_000}  # of the 60,000, where a whole epoch is long
LEARNING_RATE = 1e-3
TARGET = 1.3


class Ours:
    """sharpflat's training, an epoch a call."""

    def __init__(self, data, batch: int) -> None:
        from sharpflat.training import epochs

        recipe, state = started(data)
        self.epochs = epochs(recipe, state, data, batch_size=batch, seed=0)

    def __call__(self) -> float:
        """Train an epoch; its mean loss."""
        return next(self.epochs).train_loss


class Bare:
    """The same epochs from the same start, in plain JAX, an epoch a call."""

    def __init__(self, data, batch: int) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        n, optimizer = data.size, optax.adam(LEARNING_RATE)

        def forward(params, averages, inputs):
            x, updated = inputs.reshape(len(inputs), -1), []
            *hidden, last = params
            for layer, (mean, variance) in zip(hidden, averages, strict=True):
                kernel, bias, scale, shift = layer
                x = x @ kernel + bias
                m = x.mean(axis=0)
                v = jnp.maximum((x * x).mean(axis=0) - m * m, 0)
                updated.append((0.99 * mean + 0.01 * m, 0.99 * variance + 0.01 * v))
                x = jax.nn.relu((x - m) * (jax.lax.rsqrt(v + 1e-3) * scale) + shift)
            return x @ last[0] + last[1], updated

        def update(data, carry, indices):
            params, averages, opt_state = carry

            def mean_loss(params):
                logits, updated = forward(params, averages, data.inputs[indices])
                losses = optax.softmax_cross_entropy_with_integer_labels(
                    logits, data.labels[indices]
                )
                return losses.mean(), updated

            (loss, averages), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), averages, opt_state), loss

        @partial(jax.jit, donate_argnums=0)
        def train(carry, data, epoch):
            # The order in which sharpflat's epochs with seed 0 see the examples.
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), epoch)
            order = jax.random.permutation(key, n)
            whole = n - n % batch
            carry, losses = jax.lax.scan(
                partial(update, data), carry, order[:whole].reshape(-1, batch)
            )
            total = losses.sum() * batch
            if whole < n:
                carry, loss = update(data, carry, order[whole:])
                total += loss * (n - whole)
            return carry, total / n

        params, averages = layers(started(data)[1])
        self.carry = jax.tree.map(jnp.copy, (params, averages, optimizer.init(params)))
        self.train, self.data, self.epoch = train, data, 0

    def __call__(self) -> float:
        """Train an epoch; its mean loss."""
        self.epoch += 1
        self.carry, loss = self.train(self.carry, self.data, self.epoch)
        return float(loss)


def started(data):
    """Recipe and first state of F1 with Adam, as a run of sharpflat's has them, in data's dtype."""
    import jax

    import sharpflat as sf
    from sharpflat.objective import cross_entropy
    from sharpflat.training import Recipe, make_optimizer, start

    network = sf.Model.of(sf.models["f1"](10))
    rule = make_optimizer("adam", {"learning_rate": LEARNING_RATE})
    recipe = Recipe(network, cross_entropy, rule)
    state = start(recipe, data, seed=0)
    floats = data.inputs.dtype

    def cast(leaf):
        return leaf.astype(floats) if leaf.dtype.kind == "f" else leaf

    return recipe, jax.tree.map(cast, state)


def layers(state):
    """F1's parameters, layer by layer, and its batch-norm averages."""
    params, averages = [], []
    count = sum(name.startswith("Dense") for name in state.params)
    for i in range(count):
        layer = [state.params[f"Dense_{i}"][name] for name in ("kernel", "bias")]
        if i < count - 1:
            layer += [state.params[f"BatchNorm_{i}"][name] for name in ("scale", "bias")]
            norm = state.model_state["batch_stats"][f"BatchNorm_{i}"]
            averages.append((norm["mean"], norm["var"]))
        params.append(tuple(layer))
    return params, averages


def load(options: argparse.Namespace):
    """The training set, on the device."""
    import jax
    import jax.numpy as jnp

    import sharpflat as sf

    if options.random:
        inputs = jax.random.uniform(jax.random.key(0), (60_000, 28, 28, 1))
        return sf.Batch(inputs, jax.random.randint(jax.random.key(1), (60_000,), 0, 10))
    inputs, labels = sf.datasets["mnist"](data_dir=options.data_dir).train
    return sf.Batch(jnp.asarray(inputs), jnp.asarray(labels))


def check(data, batch: int) -> None:
    """Stop unless both sides' mean epoch losses agree.

    In float32 that is asked of one epoch only, for Adam amplifies rounding; in float64 of three,
    and there no difference in the mathematics could hide.
    """
    import jax

    print(f"Mean epoch losses, {data.size:,} examples, B = {batch}:")
    _agree(data, batch, epochs=1, tolerance=1e-3)
    with jax.enable_x64(True):
        _agree(data._replace(inputs=data.inputs.astype("float64")), batch, 3, tolerance=1e-9)


def _agree(data, batch: int, epochs: int, tolerance: float) -> None:
    ours, bare = Ours(data, batch), Bare(data, batch)
    for epoch in range(1, epochs + 1):
        losses = ours(), bare()
        apart = abs(losses[0] - losses[1]) / losses[1]
        print(
            f"  {data.inputs.dtype}, epoch {epoch}: sharpflat {losses[0]:.6f}, bare "
            f"{losses[1]:.6f}, relative difference {apart:.1e} (at most {tolerance:g})"
        )
        if not apart <= tolerance:
            raise SystemExit("the two sides do not do the same work")


def seconds(side, epochs: int) -> float:
    """Wall time of an epoch."""
    began = time.perf_counter()
    for _ in range(epochs):
        side()
    return (time.perf_counter() - began) / epochs


def compare(data, batch: int, repeats: int, budget: float) -> str:
    """A row of the table."""
    sides = [Ours(data, batch), Bare(data, batch)]
    for side in sides:
        seconds(side, 2)  # compiles, and lets the segments grow
    updates = -(-data.size // batch)
    epochs = max(1, round(budget / max(seconds(side, 1) for side in sides)))
    times: list[list[float]] = [[], []]
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            times[which].append(1e3 * seconds(sides[which], epochs) / updates)
    ours, bare = (statistics.median(side) for side in times)
    cells = [f"{statistics.median(side):.2f} ({min(side):.2f}–{max(side):.2f})" for side in times]
    pairs = sorted(a / b for a, b in zip(*times, strict=True))
    ratio = f"{ours / bare:.2f} ({pairs[0]:.2f}–{pairs[-1]:.2f})"
    return f"| {batch} | {data.size:,} | {updates * epochs} | {cells[0]} | {cells[1]} | {ratio} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", metavar="DIR", help="folder that holds mnist/")
    parser.add_argument("--random", action="store_true", help="random data of MNIST's shape")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256, 6000])
    parser.add_argument("--examples", type=int, help="train on the first so many")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5, help="length of a repeat, about")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    data = load(options)
    print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores")
    check(data.first(2000), 256)
    print(f"\nmedian (lowest–highest) of {options.repeats} repeats; target: ratio ≤ {TARGET}\n")
    print("| B | examples | updates a repeat | sharpflat, ms | bare scan, ms | ratio |")
    print("|---|---|---|---|---|---|", flush=True)
    for batch in options.batch:
        part = data.first(options.examples or EXAMPLES.get(batch, data.size))
        print(compare(part, batch, options.repeats, options.seconds), flush=True)


if __name__ == "__main__":
    main()
