"""The Hessian's measures: sharpflat's time against PyHessian's and hessian-eigenthings'.

    python -m venv torch && torch/bin/pip install torch numpy pyhessian hessian-eigenthings==1.0.0a5
    python benchmarks/curvature.py --torch-python torch/bin/python --data-dir DIR

F1 with frozen batch-norm averages, cross entropy, the first 6,000 MNIST training images as one
batch, all parameters; the same weights on both sides (two epochs of Adam on these images, or
`--run ROOT/runs/ID`), two threads. MNIST lies in DIR/mnist/ or comes as sharpflat finds it. First
both sides are shown to compute the same loss, gradient norm and products, or it stops.

Targets, as their time over ours: 1.5 for one Hessian–vector product, 2 for λmax to a true error of
1e-3, 3 for the trace to a standard error of 2 %, all three against PyHessian; 1.5 for the spectral
density with equal probes and steps, against hessian-eigenthings (PyHessian's needs `torch.eig`,
which PyTorch no longer has).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import peers
from tables import header, ratio, row, spread

TARGETS = {"hvp": 1.5, "top": 2.0, "trace": 3.0, "density": 1.5}
PRODUCTS = 20  # that share one linearisation
ERROR = 1e-3  # of λmax, relative to a reference
REFERENCE = 1e-5  # residual that certifies the reference
STANDARD_ERROR = 0.02  # of the trace
WARM = 1000  # a seed that no timed call has


class Ours:
    """sharpflat's measures of one objective, timed without compilation."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.compiled: set[Any] = set()

    def __call__(self, metric: str, seed: int, **arguments: Any) -> tuple[Any, float]:
        """The estimate and its seconds; again where what it needed may just have been compiled."""
        import sharpflat as sf

        while True:
            began = time.perf_counter()
            estimate = sf.measure(self.objective, metric, seed=seed, **arguments)
            seconds = time.perf_counter() - began
            path = metric, products_of(estimate)
            if path in self.compiled:
                return estimate, seconds
            self.compiled.add(path)

    def products(self, count: int) -> float:
        """Seconds a product, the linearisation included."""
        import jax

        began = time.perf_counter()
        jax.block_until_ready(_program()(self.objective, count))
        return (time.perf_counter() - began) / count


@cache
def _program() -> Callable[[Any, int], Any]:
    import jax

    import sharpflat as sf

    @partial(jax.jit, static_argnums=1)
    def products(objective, count):
        product = objective.linearize_hvp(objective.params)

        def step(_, vector):
            image = product(vector)
            return sf.trees.scale(1 / sf.trees.norm(image), image)

        start = sf.trees.random_direction(jax.random.key(0), objective.params)
        return jax.lax.fori_loop(0, count, step, start)

    return products


def hvp(ours: Ours, theirs: peers.Peers, options: argparse.Namespace) -> None:
    print(f"\n## A Hessian–vector product, of {PRODUCTS} that share one linearisation\n")
    sides = {
        "sharpflat": partial(ours.products, PRODUCTS),
        "PyHessian": partial(_their_products, theirs, "PyHessian"),
        "hessian-eigenthings": partial(_their_products, theirs, "hessian-eigenthings"),
    }
    ours.products(PRODUCTS)  # compiles
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            times[name].append(1e3 * side())
    header("", "ms", "ratio to ours")
    for name, milliseconds in times.items():
        row(name, spread(milliseconds), ratio(milliseconds, times["sharpflat"]))
    verdict("hvp", times["PyHessian"], times["sharpflat"])


def _their_products(theirs: peers.Peers, library: str) -> float:
    return theirs("products", count=PRODUCTS, library=library)["seconds"]


def top(ours: Ours, theirs: peers.Peers, options: argparse.Namespace) -> None:
    print(f"\n## λmax to a true relative error of {ERROR:g}\n")
    metric, value = "hessian_top_eigenvalues", reference(ours.objective, options)
    estimates, powers, times, there = [], [], [], []
    for seed in range(options.repeats):
        estimate, seconds = ours(metric, seed)
        estimates.append((estimate, seconds))
        times.append(seconds)
        there.append(until_there(ours, seed, value, products_of(estimate)))
        powers.append(
            theirs("power", seed=seed, reference=value, error=ERROR, iterations=options.iterations)
        )
    errors = [abs(estimate.value / value - 1) for estimate, _ in estimates]
    lasted = [power["seconds"] for power in powers]
    header("", "s", "products", "largest true error", "ratio to ours")
    made = [products_of(estimate) for estimate, _ in estimates]
    row(
        "sharpflat, default", spread(times), spread(made), f"{max(errors):.1e}", ratio(times, times)
    )
    made, ours_there = [steps for steps, _, _ in there], [seconds for _, seconds, _ in there]
    farthest = max(error for *_, error in there)
    row(
        "sharpflat, until there", spread(ours_there), spread(made), f"{farthest:.1e}",
        ratio(ours_there, times),
    )  # fmt: skip
    made = [power["products"] for power in powers]
    worst = max(power["error"] for power in powers)
    row(
        "PyHessian, until there", spread(lasted), spread(made), f"{worst:.1e}", ratio(lasted, times)
    )
    if not all(power["reached"] for power in powers):
        print(f"\nPyHessian was not there after {options.iterations} iterations: a lower bound.")
    print("\nUntil there: by one who knows the reference; the default has to find out by itself.")
    verdict("top", lasted, ours_there, condition=max(errors) <= ERROR)
    verdict("top", lasted, times, condition=max(errors) <= ERROR, label=" by the default")
    defaults(ours, theirs, value, options)


def until_there(ours: Ours, seed: int, truth: float, most: int) -> tuple[int, float, float]:
    """Fewest steps from which on the error is at most `ERROR`, their seconds and the error."""
    steps, found = most + 1, None
    while steps > 1:
        estimate, seconds = ours("hessian_top_eigenvalues", seed, max_steps=steps - 1)
        if abs(estimate.value / truth - 1) > ERROR:
            break
        steps, found = steps - 1, (steps - 1, seconds, abs(estimate.value / truth - 1))
    if found is None:
        raise SystemExit("sharpflat's value is wrong and says that it has converged")
    return found


def reference(objective: Any, options: argparse.Namespace) -> float:
    """λmax in float64, certified by its residual."""
    import jax

    import sharpflat as sf

    with jax.enable_x64(True):
        estimate = sf.measure(
            peers.cast(objective, "float64"), "hessian_top_eigenvalues", seed=WARM,
            tolerance=REFERENCE, max_steps=options.reference_steps,
        )  # fmt: skip
    residual = estimate.details["residuals"][0]
    print(f"Reference, in float64: {estimate.value:.8g}, its relative residual {residual:.1e}.\n")
    if not estimate.converged:
        raise SystemExit("the reference has not converged: raise --reference-steps")
    return estimate.value


def defaults(ours: Ours, theirs: peers.Peers, truth: float, options: argparse.Namespace) -> None:
    print("\nWhat each returns by its own rule:\n")
    header("call", "value", "true relative error", "says converged", "products", "s")
    calls = {
        "PyHessian `eigenvalues()`": {"call": "pyhessian.eigenvalues"},
        "hessian-eigenthings `lanczos(k=1)`": {"call": "lanczos", "k": 1},
        "hessian-eigenthings `lanczos()`, largest": {"call": "lanczos"},
        "hessian-eigenthings `power_iteration_one()`": {"call": "power_iteration_one"},
    }
    for seed in range(min(options.repeats, options.default_seeds)):
        estimate, seconds = ours("hessian_top_eigenvalues", seed)
        answers = {"sharpflat": _answer(estimate, seconds)}
        answers |= {name: theirs("eigenvalue", seed=seed, **call) for name, call in calls.items()}
        for name, answer in answers.items():
            says = {None: "—", True: "yes", False: "no"}[answer["converged"]]
            error = answer["value"] / truth - 1
            row(
                f"{name}, seed {seed}", f"{answer['value']:.6g}", f"{error:+.1e}", says,
                answer["products"], f"{answer['seconds']:.1f}",
            )  # fmt: skip
        if answers["sharpflat"]["converged"] and abs(estimate.value / truth - 1) > ERROR:
            raise SystemExit("sharpflat's value is wrong and says that it has converged")


def _answer(estimate: Any, seconds: float) -> dict[str, Any]:
    return {
        "value": estimate.value, "converged": estimate.converged,
        "products": products_of(estimate), "seconds": seconds,
    }  # fmt: skip


def products_of(estimate: Any) -> int:
    """Products that it took; 0 where the measure does not say."""
    return int(estimate.details.get("products", 0))


def trace(ours: Ours, theirs: peers.Peers, options: argparse.Namespace) -> None:
    print(f"\n## The trace to a standard error of {STANDARD_ERROR:.0%}\n")
    if missing("hessian_trace"):
        return
    estimates, seconds, probes, answers = [], [], [], []
    for seed in range(options.repeats):
        estimate, taken = ours("hessian_trace", seed)
        estimates.append(estimate)
        seconds.append(taken)
        answer = theirs("probes", count=-(-options.probes // options.repeats), seed=seed)
        probes += answer["values"]
        answers.append(answer)
    mean, deviation = statistics.mean(probes), statistics.stdev(probes)
    needed = math.ceil((deviation / (STANDARD_ERROR * abs(mean))) ** 2)
    lasts = [answer["gradient"] + needed * answer["seconds"] for answer in answers]
    relative = [estimate.standard_error / abs(estimate.value) for estimate in estimates]
    reached = [s * max(1, e / STANDARD_ERROR) ** 2 for s, e in zip(seconds, relative, strict=True)]
    header("", "s to 2 %", "products", "trace, standard error", "ratio to ours")
    made = [products_of(estimate) for estimate in estimates]
    found = f"{estimates[0].value:.5g} ± {estimates[0].standard_error:.2g}"
    row("sharpflat, default", spread(reached), spread(made), found, "1")
    error = deviation / math.sqrt(len(probes))
    row("PyHessian", spread(lasts), needed, f"{mean:.5g} ± {error:.2g}", ratio(lasts, reached))
    print(f"\nPyHessian's probes: {needed} needed, from the standard deviation {deviation:.3g} of")
    a_probe = statistics.median(answer["seconds"] for answer in answers)
    print(f"{len(probes)} of them; {a_probe:.3g} s a probe.")
    if max(relative) > STANDARD_ERROR:
        print(f"Ours scaled by (standard error / 2 %)²: it was up to {max(relative):.1%}.")
    verdict("trace", lasts, reached)
    default_traces(theirs, estimates[0].value, options)


def default_traces(theirs: peers.Peers, ours: float, options: argparse.Namespace) -> None:
    print("\nPyHessian's `trace()` as its own rule stops it:\n")
    header("value", "apart from ours", "probes", "s")
    for seed in range(options.default_seeds):
        answer = theirs("default_trace", seed=seed)
        value, lasted = answer["value"], f"{answer['seconds']:.1f}"
        row(f"{value:.5g}", f"{value / ours - 1:+.1%}", answer["products"], lasted)


def density(ours: Ours, theirs: peers.Peers, options: argparse.Namespace) -> None:
    probes, steps = options.density
    print(f"\n## The spectral density, {probes} probes of {steps} Lanczos steps\n")
    if missing("hessian_spectral_density"):
        return
    seconds, lasted = [], []
    for seed in range(options.repeats):
        taken = ours("hessian_spectral_density", seed, probes=probes, steps=steps)[1]
        seconds.append(taken)
        lasted.append(theirs("density", runs=probes, steps=steps, seed=seed)["seconds"])
    header("", "s", "ratio to ours")
    row("sharpflat", spread(seconds), "1")
    row("hessian-eigenthings", spread(lasted), ratio(lasted, seconds))
    verdict("density", lasted, seconds)


def missing(metric: str) -> bool:
    import sharpflat as sf

    if metric not in sf.metrics:
        print(f"not measured: this sharpflat has no metric {metric!r}")
    return metric not in sf.metrics


def verdict(
    name: str,
    theirs: Sequence[float],
    ours: Sequence[float],
    condition: bool = True,
    label: str = "",
) -> None:
    found = statistics.median(theirs) / statistics.median(ours)
    met = "met" if condition and found >= TARGETS[name] else "not met"
    print(f"\nTarget (ratio ≥ {TARGETS[name]:g}) {met}{label}: {found:.2f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    peers.add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--probes", type=int, default=40, help="of PyHessian's trace, in all")
    parser.add_argument("--iterations", type=int, default=200, help="PyHessian's, at most")
    parser.add_argument("--reference-steps", type=int, default=80)
    parser.add_argument("--default-seeds", type=int, default=2, help="of the calls by own rules")
    parser.add_argument(
        "--density", type=int, nargs=2, default=(2, 30), metavar=("PROBES", "STEPS")
    )
    options = parser.parse_args()
    peers.two_threads()
    objective = peers.f1(options)
    theirs = peers.Peers(options.torch_python, objective)
    print(f"{peers.versions(theirs)}; {os.cpu_count()} cores; {options.examples} examples\n")
    theirs.check()
    print(f"\nMedians of {options.repeats} repeats (lowest–highest); ratio of the medians (range)")
    for name in options.only:
        {"hvp": hvp, "top": top, "trace": trace, "density": density}[name](
            Ours(objective), theirs, options
        )


if __name__ == "__main__":
    main()
