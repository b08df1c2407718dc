"""Studies with a part that fails."""

import csv

from runs.studies import NORM, sharpflat, write


def rows(root):
    with (root / "studies" / "tiny" / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run(folder, *arguments, **changes):
    (folder / "norm.py").write_text(NORM)
    study = {
        "plugins": ["norm.py"], "seeds": 1, "measure": {"metrics": ["weight_norm"]}, **changes,
    }  # fmt: skip
    return sharpflat("run", write(folder, **study), *arguments, "--root", folder)
