"""Keskar et al. (2017), F1 on MNIST: do large batches reach sharper minima that test worse?

    sharpflat run configs/keskar2017/f1.yaml
    python experiments/keskar2017_generalization_gap.py --collect results   # copy what is shown
    python experiments/keskar2017_generalization_gap.py --readme            # the README's table

Criteria, committed before any sharpness was measured; the first six trainings were over by then,
and their test accuracies known. SB is batch 256, LB batch 6,000, paired by seed (5 starts):

- gap: the 95 % t interval of test accuracy SB − LB lies above 0;
- sharper: for each ε and each space, the 95 % t interval of the ratio φ(LB) / φ(SB) (paired, on
  the log scale; the difference where a φ is 0) lies above 1 (above 0);
- fitted: both regimes' mean train accuracy is at least 99 %.

An interval on the other side is "contradicted", one that holds the boundary "not resolved". Every φ
is the best point found, a lower bound: how many carry the local certificate is shown beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import sharpflat as sf
from sharpflat.runs import study_folder

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "keskar2017_f1"
README = HERE.parent / "README.md"
STUDY = "keskar2017-f1"
SMALL, LARGE = 256, 6000
MARKS = ("<!-- keskar2017_f1 begins -->", "<!-- keskar2017_f1 ends -->")

# Keskar et al. (2017), Tables 2 to 4, row F1: mean ± standard deviation over 5 runs, SB then LB.
PAPER = {
    "train_accuracy": ("99.66 ± 0.05", "99.92 ± 0.01"),
    "test_accuracy": ("98.03 ± 0.07", "97.81 ± 0.07"),
    "full 0.001": ("1.23 ± 0.83", "205.14 ± 69.52"),
    "full 0.0005": ("0.61 ± 0.27", "42.90 ± 17.14"),
    "subspace 0.001": ("0.11 ± 0.00", "9.22 ± 0.56"),
    "subspace 0.0005": ("0.05 ± 0.00", "9.17 ± 0.14"),
}
NOTE = (
    "Mean ± standard deviation over starts; (k/n): k of n carry the local certificate, the others "
    "are where 10 L-BFGS-B iterations ended. φ is the best of three starts (x, the vertex along "
    "the gradient's sign, a random vertex), on the first 12,000 training images in chunks of "
    "6,000, each normalised by its own batch statistics (policy `batch`). Verdicts by the criteria "
    "in the script:"
)
LABELS = {
    "train_accuracy": "train accuracy, %",
    "test_accuracy": "test accuracy, %",
    "full 0.001": "φ, full space, ε = 1e-3",
    "full 0.0005": "φ, full space, ε = 5e-4",
    "subspace 0.001": "φ, 100-dimensional subspaces, ε = 1e-3",
    "subspace 0.0005": "φ, 100-dimensional subspaces, ε = 5e-4",
}


def column(quantity: str, examples: int = 12000) -> str:
    """The table's column of a quantity."""
    if quantity.endswith("accuracy"):
        return quantity
    space, epsilon = quantity.split()
    subspace = "null" if space == "full" else "100"
    return f"keskar_sharpness[epsilon={epsilon},subspace={subspace},examples={examples}]"


def read_table(folder: Path = RESULTS) -> list[dict[str, str]]:
    """The committed table, a row a run."""
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "finished"]


def by_seed(rows: list[dict[str, str]], name: str, batch_size: int) -> dict[int, float]:
    """A column's values for one batch size, by seed; what is missing is left out."""
    factor = 100 if name.endswith("accuracy") else 1
    return {
        int(row["seed"]): factor * float(row[name])
        for row in rows
        if int(row["train.batch_size"]) == batch_size and row[name] != ""
    }


def certified(rows: list[dict[str, str]], name: str, batch_size: int) -> str:
    """How many of a sharpness column's values carry their certificate, as `2/5`."""
    cells = [r for r in rows if int(r["train.batch_size"]) == batch_size and r.get(name, "") != ""]
    return f"{sum(r[f'{name}_converged'] == 'true' for r in cells)}/{len(cells)}"


def from_one_start(lines: list[dict[str, Any]], quantity: str, batch_size: int) -> list[float]:
    """φ from the paper's one start, x itself, for each seed on 12,000 images (mean over draws)."""
    space, epsilon = quantity.split()
    subspace = None if space == "full" else 100
    return [
        sum(line["details"]["phi_zero"]) / len(line["details"]["phi_zero"])
        for line in lines
        if line["train.batch_size"] == batch_size
        and line["examples"] == 12000
        and line["arguments"]["epsilon"] == float(epsilon)
        and line["arguments"]["subspace"] == subspace
    ]


def read_measurements(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The committed measurements, one a line."""
    return [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]


def pairs(rows: list[dict[str, str]], name: str) -> tuple[list[float], list[float]]:
    """SB's and LB's values for the seeds that both have."""
    small, large = by_seed(rows, name, SMALL), by_seed(rows, name, LARGE)
    seeds = sorted(small.keys() & large.keys())
    return [small[seed] for seed in seeds], [large[seed] for seed in seeds]


def judged(low: float, high: float, boundary: float) -> str:
    """The verdict of an interval against a boundary it should lie above."""
    if math.isnan(low) or math.isnan(high):
        return "not resolved"
    if low > boundary:
        return "reproduced"
    return "contradicted" if high < boundary else "not resolved"


def verdicts(rows: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    """(claim, verdict, evidence) by the criteria at the head of this file."""
    small, large = pairs(rows, "test_accuracy")
    gap = sf.statistics.paired_difference(small, large)
    evidence = f"SB − LB = {gap.mean:.2f} points [{gap.low:.2f}, {gap.high:.2f}], n = {len(small)}"
    found = [("LB tests worse than SB", judged(gap.low, gap.high, 0), evidence)]
    for quantity in [name for name in PAPER if not name.endswith("accuracy")]:
        small, large = pairs(rows, column(quantity))
        found.append((f"LB is sharper: {LABELS[quantity]}", *sharper(small, large)))
    fits = [sum(values) / len(values) for values in pairs(rows, "train_accuracy")]
    fitted = "reproduced" if min(fits) >= 99 else "contradicted"
    means = f"SB {fits[0]:.2f} %, LB {fits[1]:.2f} %"
    return [*found, ("both regimes fit the training set (≥ 99 %)", fitted, means)]


def sharper(small: list[float], large: list[float]) -> tuple[str, str]:
    """Verdict and evidence for φ(LB) against φ(SB)."""
    if len(small) < 2:
        return "not resolved", f"n = {len(small)}"
    if min(small + large) > 0:
        ratio = sf.statistics.log_ratio_interval(large, small)
        shown = f"LB / SB = {ratio.mean:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"
        return judged(ratio.low, ratio.high, 1), f"{shown}, n = {len(small)}"
    change = sf.statistics.paired_difference(large, small)
    shown = f"LB − SB = {change.mean:.3g} [{change.low:.3g}, {change.high:.3g}]"
    return judged(change.low, change.high, 0), f"{shown}, n = {len(small)}"


def mean_sd(values: list[float]) -> str:
    """`mean ± standard deviation`, to two decimals."""
    if not values:
        return "—"
    interval = sf.statistics.mean_interval(values)
    return f"{interval.mean:.2f} ± {interval.sd:.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def markdown(rows: list[dict[str, str]], lines: list[dict[str, Any]]) -> str:
    """The README's table and verdicts."""
    counts = [len(by_seed(rows, "test_accuracy", size)) for size in (SMALL, LARGE)]
    table = [
        f"| F1 on MNIST | SB 256, paper | SB 256, here (n = {counts[0]}) "
        f"| LB 6,000, paper | LB 6,000, here (n = {counts[1]}) |",
        "|---|---|---|---|---|",
    ]
    for quantity, (paper_small, paper_large) in PAPER.items():
        small, large = (here(rows, quantity, size) for size in (SMALL, LARGE))
        table.append(f"| {LABELS[quantity]} | {paper_small} | {small} | {paper_large} | {large} |")
    for quantity in [name for name in PAPER if not name.endswith("accuracy")]:
        small, large = (mean_sd(from_one_start(lines, quantity, size)) for size in (SMALL, LARGE))
        table.append(f"| the same from one start, x: {LABELS[quantity]} | | {small} | | {large} |")
    for quantity in ("full 0.001", "full 0.0005"):
        small, large = (here(rows, quantity, size, 60000) for size in (SMALL, LARGE))
        table.append(f"| {LABELS[quantity]}, all 60,000 images, seed 0 | | {small} | | {large} |")
    table += ["", NOTE, ""]
    table += [f"- {claim}: **{verdict}** ({shown})" for claim, verdict, shown in verdicts(rows)]
    return "\n".join(table)


def here(rows: list[dict[str, str]], quantity: str, size: int, examples: int = 12000) -> str:
    """A cell of ours: mean ± sd, with the certificates of a sharpness."""
    name = column(quantity, examples)
    shown = mean_sd(list(by_seed(rows, name, size).values()))
    return shown if quantity.endswith("accuracy") else f"{shown} ({certified(rows, name, size)})"


def with_table(readme: str, table: str) -> str:
    """The README with the table between its marks."""
    before, rest = readme.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}"


def collect(root: Path) -> None:
    """Copy table, figures, config, provenance and measurements of the study into the results."""
    study = study_folder(root, STUDY)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in ("table.csv", "config.yaml"):
        shutil.copy(study / name, RESULTS / name)
    for name in ("figures", "landscapes"):
        shutil.copytree(study / name, RESULTS / name, dirs_exist_ok=True)
    runs = sf.load_runs(root, STUDY)
    provenance = {run.id: {**run.swept, "seed": run.seed, **run.provenance} for run in runs}
    for record in provenance.values():  # where the results lay is of no use to a reader
        record["command"] = re.sub(r" --root \S+", "", record["command"])
    (RESULTS / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    lines = [json.dumps({"run": run.id, **row}) for run in runs for row in measurements(run)]
    (RESULTS / "measurements.jsonl").write_text("\n".join(lines) + "\n")


def measurements(run: sf.Run) -> list[dict[str, Any]]:
    """A run's measurements, with its setting."""
    return [{**run.swept, "train_seed": run.seed, **row} for row in run.measurements]


def main() -> None:
    """Collect, update the README, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", metavar="ROOT", type=Path, help="folder of all results")
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    arguments = parser.parse_args()
    if arguments.collect:
        try:
            collect(arguments.collect)
        except sf.InputError as error:
            sys.exit(f"{error}; sharpflat run configs/keskar2017/f1.yaml makes it")
    table = markdown(read_table(), read_measurements())
    if arguments.readme:
        README.write_text(with_table(README.read_text(), table))
    print(table)


if __name__ == "__main__":
    main()
