"""Peak memory of measuring F1 on 6,000 and on 60,000 MNIST images, in chunks of the same size.

    python benchmarks/memory.py --data-dir DIR        # DIR/mnist/train-images-idx3-ubyte.gz, ...

Each measurement runs in a process of its own, which reports its peak resident memory. Target: less
the data themselves, 60,000 examples need at most 1.15 times what 6,000 do; less what the process
held before it measured anything, the ratio is printed too, which hides nothing behind Python.
Without `--data-dir` MNIST comes from $SHARPFLAT_DATA or a download.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys

TARGET = 1.15
METRICS = {
    "gradient_norm": {},
    "hessian_top_eigenvalues": {"max_steps": 3},
    "hessian_trace": {"steps": 2, "probes": 2},
    "ggn_top_eigenvalues": {"max_steps": 3},
    "low_pass_filter": {"draws": 2},
    "gradient_covariance_trace": {},
    "input_gradient_norm": {},
    "batch_sharpness": {"draws": 2},
}


def megabytes() -> float:
    """The process's peak resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(metric: str, examples: int, chunk: int, data_dir: str | None) -> None:
    """Measure once; print peaks before and after."""
    import jax
    import jax.numpy as jnp

    import sharpflat as sf

    images = sf.datasets["mnist"](data_dir=data_dir).train
    data = sf.Batch(*(jnp.asarray(part[:examples]) for part in images))
    del images
    model = sf.Model.of(sf.models["f1"](10))
    params, state = model.init(jax.random.key(0), data.inputs[:1])
    objective = sf.Objective.from_model(model, params, state, data, chunk=chunk)
    before = megabytes()
    sf.measure(objective, {metric: METRICS[metric]})
    held = (data.inputs.nbytes + data.labels.nbytes) / 2**20
    print(json.dumps({"before": before, "peak": megabytes(), "data": held}))


def measured(metric: str, examples: int, options: argparse.Namespace) -> dict[str, float]:
    """What a process of its own reports."""
    place = ["--data-dir", options.data_dir] if options.data_dir else []
    arguments = ["--child", metric, "--examples", str(examples), "--chunk", str(options.chunk)]
    out = subprocess.run(
        [sys.executable, __file__, *arguments, *place], check=True, capture_output=True, text=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", metavar="DIR", help="folder that holds mnist/")
    parser.add_argument("--chunk", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=list(METRICS), choices=list(METRICS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--examples", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if options.child:
        return child(options.child, options.examples, options.chunk, options.data_dir)
    print(f"chunk {options.chunk}; peak less data, MiB; target: ratio ≤ {TARGET}\n")
    print("| metric | 6,000 | 60,000 | ratio | above the start, 6,000 | 60,000 |")
    print("|---|---|---|---|---|---|")
    for metric in options.only:
        few, many = (measured(metric, n, options) for n in (6_000, 60_000))
        beyond = [one["peak"] - one["data"] for one in (few, many)]
        above = [one["peak"] - one["before"] for one in (few, many)]
        print(
            f"| {metric} | {beyond[0]:.0f} | {beyond[1]:.0f} | {beyond[1] / beyond[0]:.2f} "
            f"| {above[0]:.0f} | {above[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
