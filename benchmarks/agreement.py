"""sharpflat's measures of curvature beside PyHessian's and hessian-eigenthings', same weights.

    python -m venv torch && torch/bin/pip install torch numpy pyhessian hessian-eigenthings==1.0.0a5
    python benchmarks/agreement.py --torch-python torch/bin/python --write docs/agreement.md

Two networks: F1 with frozen batch-norm averages on the first 6,000 MNIST training images (weights
as in `curvature.py`), and a small perceptron without batch norm on 1,000 digits, whose whole
matrices PyTorch also computes in float64, and whose traces are means over `--seeds` seeds on each
side: a bias would show that one seed's error hides. F1's Gauss–Newton trace is also computed from
every gradient there is, without probes. Allowed: 1e-8 for loss, gradient norm and products in
float64; 0.2 % for λmax; two standard errors of the difference for traces, beyond which one honest
comparison in twenty lies. It ends with an error where something else, or a trace by more than four
standard errors, is apart.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers

EIGENVALUE = 2e-3
TRACE = 2.0  # standard errors of the difference
EXACT = 1e-4  # of numbers in float32 that neither side estimates
NEVER = 4.0  # so many are no chance
HEADER = ("quantity", "sharpflat", "peer", "its value", "apart", "allowed", "agree")


class Figure(NamedTuple):
    """A number with the standard error of the method; 0 where it has none."""

    value: float
    error: float = 0.0

    def __str__(self) -> str:
        return f"{self.value:.6g}" + (f" ± {self.error:.2g}" if self.error else "")


class Row(NamedTuple):
    """One quantity on both sides."""

    quantity: str
    ours: Figure | None
    peer: str
    theirs: Figure | None
    apart: float
    allowed: float
    unit: str = ""

    @property
    def agrees(self) -> bool:
        return self.apart <= self.allowed

    @property
    def by_chance(self) -> bool:
        """Whether the difference may be the estimators' own."""
        return bool(self.unit) and self.apart <= NEVER

    def __str__(self) -> str:
        values = ["" if figure is None else str(figure) for figure in (self.ours, self.theirs)]
        apart, allowed = f"{self.apart:.2g}{self.unit}", f"{self.allowed:g}{self.unit}"
        agree = "yes" if self.agrees else "NO"
        cells = self.quantity, values[0], self.peer, values[1], apart, allowed, agree
        return f"| {' | '.join(cells)} |"


def eigenvalue_row(quantity: str, ours: Figure, peer: str, theirs: Figure) -> Row:
    apart = abs(ours.value / theirs.value - 1)
    return Row(quantity, Figure(ours.value), peer, theirs, apart, EIGENVALUE)


def trace_row(quantity: str, ours: Figure, peer: str, theirs: Figure) -> Row:
    apart = abs(ours.value - theirs.value) / math.hypot(ours.error, theirs.error)
    return Row(quantity, ours, peer, theirs, apart, TRACE, " s.e.")


def same_functions(theirs: peers.Peers, small: bool) -> Iterator[Row]:
    """Loss, gradient norm and products, in float64."""
    found = theirs.compare("float64", fisher=small)
    allowed, apart = peers.SAME["float64"], found.apart()
    for name, pair in (("loss", found.loss), ("gradient norm", found.gradient)):
        yield Row(name, Figure(pair[0]), "PyTorch", Figure(pair[1]), apart[name], allowed)
    for name, distance in found.products.items():
        own = name in ("PyHessian", "hessian-eigenthings")
        quantity = "Hessian–vector product" if own else f"{name}–vector product"
        peer = name if own else "hessian-eigenthings"
        yield Row(quantity, None, peer, None, distance, allowed)


def measured(objective: Any, metric: str, **arguments: Any) -> Figure:
    import sharpflat as sf

    estimate = sf.measure(objective, metric, **arguments)
    if not estimate.converged:
        raise SystemExit(f"{metric}: has not converged")
    return Figure(estimate.value, estimate.standard_error)


def eigenvalues(theirs: peers.Peers, options: argparse.Namespace) -> Iterator[Row]:
    """λmax of the Hessian and of its Gauss–Newton part."""
    long = {"call": "lanczos", "seed": 0, "k": 1, "which": "LA", "reorthogonalize": True}
    long["max_iter"] = options.steps
    power = {"call": "pyhessian.eigenvalues", "seed": 0, "tol": 1e-7}
    ours = measured(theirs.objective, "hessian_top_eigenvalues")
    value = theirs("eigenvalue", **power, maxIter=options.iterations)["value"]
    yield eigenvalue_row("λmax of the Hessian", ours, "PyHessian", Figure(value))
    for quantity, metric, operator in (
        ("λmax of the Hessian", "hessian_top_eigenvalues", "hessian"),
        ("λmax of Gauss–Newton", "ggn_top_eigenvalues", "ggn"),
    ):
        ours = measured(theirs.objective, metric)
        value = theirs("eigenvalue", **long, operator=operator)["value"]
        yield eigenvalue_row(quantity, ours, "hessian-eigenthings", Figure(value))


def over(seeds: int, estimate: Callable[[int], Figure]) -> Figure:
    """The mean over seeds and its standard error; of one seed, the estimator's own."""
    found = [estimate(seed) for seed in range(seeds)]
    if seeds == 1:
        return found[0]
    values = [figure.value for figure in found]
    return Figure(statistics.mean(values), statistics.stdev(values) / math.sqrt(seeds))


def trace_of(theirs: peers.Peers, metric: str, seeds: int, **arguments: Any) -> Figure:
    """Ours."""
    return over(seeds, lambda seed: measured(theirs.objective, metric, seed=seed, **arguments))


def traces(theirs: peers.Peers, small: bool, options: argparse.Namespace) -> Iterator[Row]:
    """Traces, by estimators of their own kind on each side."""
    seeds = options.seeds if small else 1

    def hutchinson(seed: int) -> Figure:
        values = theirs("probes", count=options.probes, seed=seed)["values"]
        return Figure(statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)))

    ours = trace_of(theirs, "hessian_trace", seeds)
    yield trace_row("trace of the Hessian", ours, "PyHessian", over(seeds, hutchinson))
    kinds = [
        ("trace of the Hessian", "hessian", "hessian_trace", {}),
        ("trace of Gauss–Newton", "ggn", "ggn_trace", {}),
        ("trace of Gauss–Newton", "ggn", "fisher_trace", {}),
        ("trace of the empirical Fisher", "fisher", "fisher_trace", {"kind": "empirical"}),
    ]
    for quantity, operator, metric, arguments in kinds if small else kinds[:2]:

        def hutch(seed: int, operator: str = operator) -> Figure:
            found = theirs("trace", seed=seed, operator=operator, num_matvecs=options.probes)
            return Figure(found["value"], found["standard_error"])

        ours = trace_of(theirs, metric, seeds, **arguments)
        label = f"{quantity} (`{metric}`)" if metric == "fisher_trace" else quantity
        yield trace_row(label, ours, "hessian-eigenthings", over(seeds, hutch))


def squared_norm(gradient: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))


def every_score(objective: Any) -> float:
    """tr G = (1/n) Σ_i Σ_y p(y|x_i) ‖∇ log p(y|x_i)‖², each gradient by itself: no probes."""
    import jax
    import jax.numpy as jnp

    import sharpflat as sf

    at, total = objective.params, 0.0
    odds = np.asarray(jax.nn.softmax(objective.outputs(at)), np.float64)
    for label in range(odds.shape[1]):
        data = sf.Batch(objective.data.inputs, jnp.full_like(objective.data.labels, label))
        ours = sf.Objective.from_model(objective.model, at, objective.model_state, data, chunk=100)
        norms = np.asarray(ours.map_gradients(squared_norm, at), np.float64)
        total += float(np.mean(odds[:, label] * norms))
    return total


def every_gradient(theirs: peers.Peers, options: argparse.Namespace) -> Iterator[Row]:
    """Against the gradient of every example and label, where the matrix is too large."""
    ours, exact = trace_of(theirs, "ggn_trace", options.seeds_f1), every_score(theirs.objective)
    yield trace_row("trace of Gauss–Newton", ours, "every gradient", Figure(exact))


def whole_matrices(theirs: peers.Peers, options: argparse.Namespace) -> Iterator[Row]:
    """Against every entry of the matrix, in float64."""
    kinds = {"hessian": ("the Hessian", "hessian"), "ggn": ("Gauss–Newton", "ggn")}
    for operator, (name, prefix) in kinds.items():
        exact = theirs("dense", operator=operator)
        ours = measured(theirs.objective, f"{prefix}_top_eigenvalues")
        peer = "the whole matrix"
        yield eigenvalue_row(f"λmax of {name}", ours, peer, Figure(exact["top"]))
        ours = trace_of(theirs, f"{prefix}_trace", options.seeds)
        yield trace_row(f"trace of {name}", ours, peer, Figure(exact["trace"]))


def perceptron() -> Any:
    """A perceptron 64-32-32-10 with ReLU, trained on 1,000 digits."""
    import jax
    import jax.numpy as jnp

    import sharpflat as sf

    data = sf.Batch(*jax.tree.map(jnp.asarray, sf.datasets["digits"]().train))
    return peers.trained(data, sf.models["mlp"](10, width=32, depth=2), batch=50, count=20)


def compare(
    objective: Any, small: bool, options: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[list[Row], str]:
    """The rows of one network, told as they come, and the versions."""
    theirs = peers.Peers(options.torch_python, objective)
    rows = []

    def add(found: Iterator[Row]) -> None:
        for row in found:
            rows.append(row)
            tell(str(row))

    tell("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    add(same_functions(theirs, small))
    add(eigenvalues(theirs, options))
    add(traces(theirs, small, options))
    add((whole_matrices if small else every_gradient)(theirs, options))
    return rows, peers.versions(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    peers.add_arguments(parser)
    parser.add_argument("--write", metavar="FILE", type=Path, help="the tables as Markdown")
    parser.add_argument("--probes", type=int, default=90, help="products of a peer's trace")
    parser.add_argument("--seeds", type=int, default=20, help="of the small network's traces")
    parser.add_argument("--seeds-f1", type=int, default=6, help="of ours against every gradient")
    parser.add_argument("--iterations", type=int, default=300, help="PyHessian's, at most")
    parser.add_argument("--steps", type=int, default=50, help="hessian-eigenthings' Lanczos steps")
    options = parser.parse_args()
    peers.two_threads()
    lines: list[str] = []

    def tell(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    weights = "weights of a finished run" if options.run else "two epochs of Adam"
    f1 = f"F1 on {options.examples} MNIST images, {weights}, frozen averages"
    networks = {f1: (peers.f1, False), "Perceptron 64-32-32-10 on 1,000 digits": (perceptron, True)}
    rows: list[Row] = []
    for title, (make, small) in networks.items():
        tell(f"\n## {title}\n")
        found, versions = compare(make(options) if not small else make(), small, options, tell)
        rows += found
    apart = [row for row in rows if not row.agrees]
    estimated = sum(bool(row.unit) for row in rows)
    tell(
        f"\n{len(rows) - len(apart)} of {len(rows)} comparisons agree; {estimated} of them are of "
        f"traces, where chance alone puts one in twenty outside."
    )
    if options.write:
        options.write.write_text(document(lines, versions, options))
    wrong = [row for row in apart if not row.by_chance]
    if wrong:
        raise SystemExit("\n".join(["apart by more than allowed:", *map(str, wrong)]))


def document(lines: list[str], versions: str, options: argparse.Namespace) -> str:
    run = " --run ROOT/runs/ID" if options.run else ""
    command = f"python benchmarks/agreement.py --torch-python PATH{run} --write {options.write}"
    return f"""# Agreement with PyHessian and hessian-eigenthings

The same weights and data on both sides, all parameters, cross entropy. Loss, gradient and products
(with one random unit vector, relative distances) are compared in float64, which decides that both
sides compute the same functions; eigenvalues and traces as a user gets them, in float32. Ours are
the defaults. PyHessian's power iteration runs to a change of 1e-7, its trace takes
{options.probes} probes whatever its own rule says; hessian-eigenthings makes {options.steps}
Lanczos steps, and Hutch++ with {options.probes} products. Traces of the perceptron are means over
{options.seeds} seeds on each side, with the standard error of that mean; those of F1 are of one
seed, with the estimator's own. The last of F1 is of {options.seeds_f1} seeds of ours, against
(1/n) Σ_i Σ_y p(y|x_i) ‖∇ log p(y|x_i)‖² from the gradient of every example under every label,
which is the trace: where a seed and a peer are apart it tells which of them is. Traces may lie
two standard errors of the difference apart: one honest comparison in twenty lies further.

`{command}`

{versions}
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    main()
