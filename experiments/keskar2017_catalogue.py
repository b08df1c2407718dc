"""Which published measures tell the minima of small-batch and large-batch training apart?

    sharpflat run configs/keskar2017/f1_catalogue.yaml  # trains F1 where it is not trained yet
    python experiments/keskar2017_catalogue.py --collect results     # copy table and measurements
    sharpflat run configs/keskar2017/f1_certificates.yaml            # what asks for more since
    python experiments/keskar2017_catalogue.py --collect results --study keskar2017-f1-certificates
    python experiments/keskar2017_catalogue.py --markdown docs/catalogue_f1.md

The minima are those of Keskar et al. (2017), network F1 on MNIST: SB is batch 256, LB batch 6,000,
5 starts each, paired by seed. Every measure of the catalogue at its defaults.

Criterion, written before the catalogue was measured on them (φ and the test accuracies of these
minima were known, λmax and the trace at seed 0, a trial of LB at seed 0 on 1,000 images and, at one
SB minimum, all measures, to see how long they take): a measure tells the two apart if a two-sided
paired t test over the seeds (of the logarithms, where all values are positive) gives p ≤ 0.05 after
Holm's correction for the number of measures; its direction is that of the mean. Between 0.05
corrected and 0.05 uncorrected it is "suggested". A measure with a value missing for any seed is not
judged and counts as p = 1, and so does one whose differences have no spread at all (values from a
grid). Whether a measure is called a sharpness, and larger at LB or SB, plays no part.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

import sharpflat as sf
from sharpflat.runs import study_folder

RESULTS = Path(__file__).parent / "results" / "keskar2017_catalogue"
ANEW = RESULTS.with_name("keskar2017_certificates")
STUDIES = {"keskar2017-f1-catalogue": RESULTS, "keskar2017-f1-certificates": ANEW}
SMALL, LARGE = 256, 6000
LEVEL = 0.05

SMALLER_IS_SHARPER = ("radius_to_loss", "worst_case_radius", "worst_case_radius_magnitude")
NO_SHARPNESS = (
    "distance_from_initialization", "fisher_rao_norm", "gradient_covariance_trace",
    "gradient_diversity", "gradient_noise_scale", "gradient_norm", "hessian_bottom_eigenvalue",
    "input_gradient_norm", "noise_curvature_alignment", "normalized_margin", "parameter_norm",
    "path_norm", "spectral_norm_product",
)  # fmt: skip
"""How a verdict reads, for the table's last column: it plays no part in the verdict."""


class Comparison(NamedTuple):
    """One measure at both kinds of minima.

    Attributes:
        name: the measure.
        small: its values at SB, by seed; `large` likewise.
        certified: how many carry their certificate, as `5/5, 0/5`: SB, LB.
        p: of the paired t test, not corrected; NaN where it is not judged.
        change: LB / SB where all are positive, else LB − SB, with its 95 % interval.
        ratio: whether the change is a ratio.
    """

    name: str
    small: list[float]
    large: list[float]
    certified: str
    p: float
    change: Any
    ratio: bool


def read_table(folder: Path = RESULTS) -> list[dict[str, str]]:
    """The committed table, a row a finished run, by seed."""
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "finished"]
    return sorted(rows, key=lambda row: int(row["seed"]))


def measures(rows: list[dict[str, str]]) -> list[str]:
    """The columns that hold a measure."""
    return [name for name in rows[0] if f"{name}_converged" in rows[0]]


def compare(rows: list[dict[str, str]], name: str) -> Comparison:
    """A measure at SB and LB, paired by seed; not judged where a value is missing."""
    seeds = sorted({int(row["seed"]) for row in rows})
    values = {(int(row["train.batch_size"]), int(row["seed"])): row[name] for row in rows}
    small, large = (
        [float(values.get((size, seed)) or "nan") for seed in seeds] for size in (SMALL, LARGE)
    )
    certified = ", ".join(certificates(rows, name, size) for size in (SMALL, LARGE))
    if not np.isfinite(small + large).all():
        return Comparison(name, small, large, certified, math.nan, None, False)
    ratio = min(small + large) > 0
    interval = sf.statistics.log_ratio_interval if ratio else sf.statistics.paired_difference
    scale = np.log if ratio else np.asarray
    differences = scale(large) - scale(small)
    spread = not np.allclose(differences, differences[0], rtol=1e-9, atol=0)
    p = scipy.stats.ttest_1samp(differences, 0).pvalue if spread else 1.0
    change = interval(large, small)
    return Comparison(name, small, large, certified, float(p), change, ratio)


def certificates(rows: list[dict[str, str]], name: str, size: int) -> str:
    """How many of a batch size's runs carry the measure's certificate."""
    said = [row[f"{name}_converged"] for row in rows if int(row["train.batch_size"]) == size]
    return f"{said.count('true')}/{len(said)}"


def verdict(found: Comparison, corrected: float) -> str:
    """By the criterion at the head of this file."""
    if math.isnan(found.p):
        return "not judged"
    larger = "LB larger" if found.change.mean > (1 if found.ratio else 0) else "SB larger"
    if corrected <= LEVEL:
        return f"**{larger}**"
    return f"suggested: {larger}" if found.p <= LEVEL else "not told apart"


def sharper_at(name: str, said: str) -> str:
    """Which of the two a verdict calls the sharper, where the measure is one of sharpness."""
    name = name.partition("[")[0]
    larger = said.strip("*").partition(" larger")[0].removeprefix("suggested: ")
    if name in NO_SHARPNESS or larger not in ("SB", "LB"):
        return "—"
    if name in SMALLER_IS_SHARPER:
        larger = "LB" if larger == "SB" else "SB"
    return f"({larger})" if said.startswith("suggested") else larger


def judged(found: list[Comparison]) -> list[tuple[Comparison, float, str]]:
    """Each measure with its corrected p and its verdict, the surest first."""
    adjusted = sf.statistics.holm([1.0 if math.isnan(one.p) else one.p for one in found])
    rows = [(one, float(p)) for one, p in zip(found, adjusted, strict=True)]
    rows.sort(key=lambda row: (math.isnan(row[0].p), row[0].p))
    return [(one, p, verdict(one, p)) for one, p in rows]


def mean_sd(values: list[float], digits: int = 3) -> str:
    """`mean ± standard deviation` over seeds."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return "—"
    spread = np.std(known, ddof=1) if np.ptp(known) else 0.0
    return f"{np.mean(known):.{digits}g} ± {spread:.2g}"


def markdown(rows: list[dict[str, str]]) -> str:
    """The table of all measures, and what it says in numbers."""
    found = judged([compare(rows, name) for name in measures(rows)])
    lines = [
        "| measure | SB 256 | LB 6,000 | LB / SB, or LB − SB | p | Holm | certified: SB, LB "
        "| verdict | sharper at |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one, corrected, said in found:
        change = "—"
        if one.change is not None:
            sign = "×" if one.ratio else "Δ"
            low, high = one.change.low, one.change.high
            change = f"{sign} {one.change.mean:.3g} [{low:.3g}, {high:.3g}]"
        p = "—" if math.isnan(one.p) else f"{one.p:.2g}"
        lines.append(
            f"| `{one.name}` | {mean_sd(one.small)} | {mean_sd(one.large)} | {change} "
            f"| {p} | {corrected:.2g} | {one.certified} | {said} "
            f"| {sharper_at(one.name, said)} |"
        )
    return "\n".join([*lines, "", counted(found), "", surroundings(rows)])


def counted(found: list[tuple[Comparison, float, str]]) -> str:
    """How many measures say what, and how many of them are measures of sharpness."""
    kinds = ("**LB larger**", "**SB larger**", "suggested", "not told apart", "not judged")
    lb, sb, suggested, alike, unjudged = (
        sum(said.startswith(kind) for *_, said in found) for kind in kinds
    )
    calls = [sharper_at(one.name, said) for one, _, said in found]
    return (
        f"Of {len(found)} measures, larger at the large-batch minima: {lb}; at the small-batch "
        f"ones: {sb}; suggested only: {suggested}; not told apart: {alike}; not judged: "
        f"{unjudged}. Of those that tell the two apart and are measures of sharpness, "
        f"{calls.count('LB')} call the large-batch minima the sharper, {calls.count('SB')} the "
        "small-batch ones."
    )


def surroundings(rows: list[dict[str, str]]) -> str:
    """Loss and accuracies of both kinds of minima."""
    lines = ["| of the runs | SB 256 | LB 6,000 |", "|---|---|---|"]
    for name in ("train_loss", "train_accuracy", "test_accuracy"):
        values = [
            [float(row[name]) for row in rows if int(row["train.batch_size"]) == size]
            for size in (SMALL, LARGE)
        ]
        lines.append(f"| `{name}` | {mean_sd(values[0], 4)} | {mean_sd(values[1], 4)} |")
    return "\n".join(lines)


def is_of_this_study(row: dict[str, Any]) -> bool:
    """Whether a measurement was asked for by the config, and made by the code that is here."""
    entry = sf.metrics[row["metric"]]
    asked = {"examples": 6000, "chunk": 6000, "batch_norm": "running", "split": "train"}
    arguments = json.loads(json.dumps(entry.arguments({})))
    asked |= {"metric_digest": entry.digest, "arguments": arguments}
    return all(row[key] == value for key, value in asked.items())


def collect(root: Path, name: str) -> None:
    """Copy table, config and measurements of a study into its results."""
    study, results = study_folder(root, name), STUDIES[name]
    results.mkdir(parents=True, exist_ok=True)
    for file in ("table.csv", "config.yaml"):
        shutil.copy(study / file, results / file)
    names = set(measures(read_table(study)))
    lines = [
        json.dumps({"run": run.id, **run.swept, "train_seed": run.seed, **row})
        for run in sf.load_runs(root, name)
        for row in run.measurements
        if row["metric"] in names and is_of_this_study(row)
    ]
    (results / "measurements.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Collect, write the table, or print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", metavar="ROOT", type=Path, help="folder of all results")
    parser.add_argument("--study", choices=STUDIES, default=next(iter(STUDIES)))
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there")
    arguments = parser.parse_args()
    if arguments.collect:
        try:
            collect(arguments.collect, arguments.study)
        except sf.InputError as error:
            config = f"f1_{arguments.study.rpartition('-')[2]}.yaml"
            sys.exit(f"{error}; sharpflat run configs/keskar2017/{config} makes it")
    text = markdown(read_table())
    if arguments.markdown:
        head, _, after = (__doc__ or "").partition("Criterion,")
        command = head.split("\n\n")[1]
        title = "# The catalogue at small-batch and large-batch minima"
        parts = [title, HEAD, f"```\n{command}\n```", f"Criterion,{after.rstrip()}", text, NOTES]
        parts += [HEAD_ANEW, markdown(read_table(ANEW))]
        arguments.markdown.write_text("\n\n".join(parts) + "\n")
    print(text)


NOTES = (
    "LB / SB is a ratio of geometric means over starts (so it need not be that of the means "
    "shown); where a value is not positive the difference of means stands instead. The criterion "
    "does not ask for certificates: `keskar_sharpness` has none, its values are where ten solver "
    "steps ended. (The README's are of the same runs under policy `batch`, on 12,000 images in "
    "chunks of 6,000, where φ at LB is 493; here the averages are frozen.) "
    '"Sharper at" turns radii round, for which a smaller number is the sharper '
    "minimum, leaves out norms, margins and gradient noise, and is in brackets where it is only "
    "suggested; which measures are sorted so was written down after the numbers were known, and "
    "those of the Hessian's largest eigenvalues say nearly the same thing more than once. "
    "`worst_case_radius` is on a "
    "grid, and all five LB minima fall on one step of it. `preconditioned_sharpness` is ruled by "
    "the biases before batch norm, whose gradients in training were about zero: with frozen "
    "averages Adam's preconditioner there has nothing to divide by. (At seed 0 it is 2.3e5 at SB, "
    "1.7e5 at LB; of the kernels alone 1.1e3 and 9.9e2; under policy `batch` 850 and 450.) "
    "`local_learning_coefficient` has no number at LB: all its chains diverged there. Measured at "
    "commit 6bf8b3c, and certified by the rules of then. They ask for more now: of an eigenvalue "
    "that none further out was missed (then its residual alone; that of "
    "`hessian_bottom_eigenvalue` was wide), of `worst_case_radius` an adversary that has settled, "
    "of `local_learning_coefficient` chains that have filled the flat directions; a measurement "
    "made now may lack a certificate that stands here. `preconditioned_sharpness` has a factor "
    "1 / (1 − β₁ᵗ) since, which is 1 at these many updates. The files "
    "behind the table, each number with its "
    "error, certificate, details, commit and device, are in "
    "`experiments/results/keskar2017_catalogue/`. What it says of the measures: "
    "[metrics.md](metrics.md)."
)

HEAD_ANEW = (
    "## The same starts trained again, by the certificates of now\n\n"
    "The ten runs trained again at commit 3dc2309, and five of the measures of which the "
    "certificate asks for more since (`configs/keskar2017/f1_certificates.yaml`; five for the time "
    "they take, chosen when one SB minimum had been measured; Holm's correction is for these five "
    "alone). Both tables are of the same seeds, config and kind of processor, but not "
    "of the same bits, see the README on what these depend on. `local_learning_coefficient` is "
    "certified nowhere now, not at SB either, and what the first table says of it should not be "
    "used; of λmin one LB minimum lacks its certificate, which ended at the 200th Lanczos step; of "
    "`worst_case_radius_magnitude` two SB minima do. The LB minima come back: λmax of each start "
    "within 2 % of the first table's. The SB minima do not: they stop by patience, here "
    "at half the loss, and their λmax is 0.07 to 0.26 where it was 0.20 to 0.59. That λmax is "
    'larger at SB stands by five measures\' correction and would be "suggested" only by that of '
    "all 39; how much larger (4 times above, 2.3 times here) changes with where SB stopped. "
    "Both radii and λmin say what they said."
)

HEAD = (
    "F1 on MNIST after Keskar et al. (2017): 5 starts, batch 256 (SB) and 6,000 (LB), every "
    "measure at its defaults on the first 6,000 training images, with frozen batch-norm averages "
    "that were re-estimated over the training set (policy `running`). Mean ± standard deviation "
    "over starts, the change with its 95 % interval paired by seed. Certificates are by the rules "
    "of the commit that measured them, see the end. Made by"
)


if __name__ == "__main__":
    main()
