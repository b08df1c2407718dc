"""Peak memory of measuring F1 on 6,000 and on 60,000 MNIST images, in chunks of the same size.

    python benchmarks/memory.py --data-dir DIR        # DIR/mnist/train-images-idx3-ubyte.gz, ...

Each measurement runs in a process of its own that is handed its images and nothing else; its peak
counts from when it holds them. Target: less the images themselves, 60,000 need at most 1.15 times
what 6,000 do. What the measurement adds to the process is printed too: it hides nothing behind
Python and XLA. Linux only. Without `--data-dir` MNIST comes from $SHARPFLAT_DATA or a download.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TARGET = 1.15
COUNTS = (6_000, 60_000)
METRICS = {
    "gradient_norm": {},
    "hessian_top_eigenvalues": {"max_steps": 3},
    "hessian_trace": {"steps": 2, "probes": 2},
    "ggn_top_eigenvalues": {"max_steps": 3},
    "low_pass_filter": {"draws": 2},
    "gradient_covariance_trace": {},
    "input_gradient_norm": {},
    "batch_sharpness": {"draws": 2},
    "keskar_sharpness": {"iterations": 1, "starts": ["sign"]},
    "worst_case_sharpness": {"steps": 2, "subsets": 2},
    "hessian_spectral_density": {"probes": 2, "steps": 3},
    "layerwise_hessian": {"probes": 2, "steps": 2, "max_steps": 3},
    "local_learning_coefficient": {"chains": 2, "steps": 2, "burn_in": 2},
    "pac_bayes_flatness": {"draws": 2, "steps": 2},
    "relative_flatness": {"draws": 2},
    "normalized_margin": {},
}


def resident(field: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def child(metric: str, file: str, chunk: int) -> None:
    """Measure once; print what was held before and the peak."""
    import jax
    import jax.numpy as jnp

    import sharpflat as sf

    with np.load(file) as arrays:
        data = sf.Batch(jnp.asarray(arrays["inputs"]), jnp.asarray(arrays["labels"]))
    model = sf.Model.of(sf.models["f1"](10))
    params, state = model.init(jax.random.key(0), data.inputs[:1])
    objective = sf.Objective.from_model(model, params, state, data, chunk=chunk)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    sf.measure(objective, {metric: METRICS[metric]})
    held = (data.inputs.nbytes + data.labels.nbytes) / 2**20
    print(json.dumps({"before": before, "peak": resident("VmHWM"), "data": held}))


def measured(metric: str, file: Path, chunk: int) -> dict[str, float]:
    """What a process of its own reports."""
    arguments = ["--child", metric, "--file", str(file), "--chunk", str(chunk)]
    out = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def files(folder: str, data_dir: str | None) -> list[Path]:
    """The first 6,000 images and all of them, a file each."""
    import sharpflat as sf

    images, found = sf.datasets["mnist"](data_dir=data_dir).train, []
    for count in COUNTS:
        found.append(Path(folder) / f"{count}.npz")
        np.savez(found[-1], inputs=images.inputs[:count], labels=images.labels[:count])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", metavar="DIR", help="folder that holds mnist/")
    parser.add_argument("--chunk", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=list(METRICS), choices=list(METRICS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if options.child:
        return child(options.child, options.file, options.chunk)
    print(f"chunk {options.chunk}; peak less data, MiB; target: ratio ≤ {TARGET}\n")
    print("| metric | 6,000 | 60,000 | ratio | added, 6,000 | 60,000 |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        places = files(folder, options.data_dir)
        for metric in options.only:
            few, many = (measured(metric, file, options.chunk) for file in places)
            beyond = [one["peak"] - one["data"] for one in (few, many)]
            added = [one["peak"] - one["before"] for one in (few, many)]
            worst = max(worst, beyond[1] / beyond[0])
            print(
                f"| {metric} | {beyond[0]:.0f} | {beyond[1]:.0f} | {beyond[1] / beyond[0]:.2f} "
                f"| {added[0]:.0f} | {added[1]:.0f} |",
                flush=True,
            )
    print(f"\nTarget {'met' if worst <= TARGET else 'not met'}: at most {worst:.2f}.")


if __name__ == "__main__":
    main()
