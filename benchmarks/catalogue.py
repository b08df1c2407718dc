"""The whole catalogue of measures on F1 with 6,000 MNIST images: seconds a metric and in all.

    python benchmarks/catalogue.py --data-dir DIR      # DIR/mnist/train-images-idx3-ubyte.gz, ...
    python benchmarks/catalogue.py --run results RUN   # at a trained run's minimum

Every metric at its defaults in one `sf.measure`-like pass that shares what can be shared, from a
cold process (compiling counts). Target: 15 minutes on two cores. `gradients` is what the metric
declares it costs, alone; `declared` that many times one gradient, as `--dry-run` tells beforehand.
"""

from __future__ import annotations

import argparse
import os
import time

TARGET = 15 * 60


def trained(options: argparse.Namespace):
    """F1 after two epochs of Adam on the same images, averages re-estimated, and its inputs."""
    import jax
    import jax.numpy as jnp

    import sharpflat as sf
    from sharpflat.objective import cross_entropy
    from sharpflat.training import Recipe, epochs, make_optimizer, start

    images = sf.datasets["mnist"](data_dir=options.data_dir).train
    data = sf.Batch(*(jnp.asarray(part[: options.examples]) for part in images))
    network = sf.Model.of(sf.models["f1"](10))
    recipe = Recipe(network, cross_entropy, make_optimizer("adam", {"learning_rate": 1e-3}))
    state = start(recipe, data, seed=0)
    initial = jax.tree.map(jnp.copy, state.params)
    steps = epochs(recipe, state, data, batch_size=256, seed=0)
    for _ in range(2):
        state = next(steps).state
    inputs = {
        "initial_params": initial,
        "opt_state": state.opt_state,
        "hyperparams": {"name": "adam"},
        "optimizer": recipe.optimizer,
    }
    whole = (network, state.params, state.model_state, data, "cross_entropy")
    averages = sf.Objective.from_model(*whole, "recalibrated").state_at(state.params)
    objective = sf.Objective.from_model(
        network, state.params, averages, data, chunk=options.examples
    )
    return objective, inputs


def loaded(options: argparse.Namespace):
    """A finished run's minimum."""
    import sharpflat as sf

    root, run_id = options.run
    (run,) = [run for run in sf.load_runs(root) if run.id.startswith(run_id)]
    inputs = {"initial_params": run.initial_params, "opt_state": run.opt_state}
    inputs["hyperparams"] = run.config["train"]["optimizer"]
    inputs["optimizer"] = sf.optimizers[run.config["train"]["optimizer"]["name"]]()
    count = options.examples
    return run.objective("train", "running", chunk=count, examples=count), inputs


def gradient_seconds(objective) -> float:
    """The shortest of three gradients, compiled before."""
    import jax

    times = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(objective.value_and_grad(objective.params))
        times.append(time.perf_counter() - began)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", metavar="DIR", help="folder that holds mnist/")
    parser.add_argument("--run", nargs=2, metavar=("ROOT", "RUN"), help="a finished run")
    parser.add_argument("--examples", type=int, default=6_000)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    import sharpflat as sf
    from sharpflat.sharpness import measure_each

    objective, inputs = loaded(options) if options.run else trained(options)
    once = gradient_seconds(objective)
    print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores")
    print(f"{options.examples:,} examples, one gradient {once:.2f} s\n")
    print("| metric | value | standard error | converged | s | gradients | declared, s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    total, failed, requests = 0.0, 0, [(name, {}) for name in sf.metrics]
    for found in measure_each(objective, requests, 0, inputs):
        total += found.seconds
        failed += found.error is not None
        cost = sf.metrics[found.name].cost(options.examples, found.arguments)
        shown = f"failed: {found.error} | | "
        if found.estimate is not None:
            value, error, converged, _ = found.estimate
            shown = f"{value:.4g} | {'—' if error is None else f'{error:.2g}'} | {converged}"
        print(
            f"| {found.name} | {shown} | {found.seconds:.1f} | {cost:.0f} | {cost * once:.0f} |",
            flush=True,
        )
    met = "met" if total <= TARGET and not failed else "not met"
    print(f"\nIn all {total:.0f} s, {failed} failed; target {TARGET} s {met}.")


if __name__ == "__main__":
    main()
