"""Write docs/coverage.md: how often value ± 1.96 standard errors holds the truth.

    python docs/make_coverage.py

The problems, whose truth is known in closed form, are those of tests/cases; tests/test_coverage.py
asks the same of them and fails outside 90 to 99 %.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from test_coverage import CASES, SEEDS, covered  # noqa: E402

HEAD = f"""# Do the error bars cover?

Each measure with a standard error, at 30 draws or more, on a problem of known truth, in closed
form, over {SEEDS} seeds: how often value ± 1.96 standard errors holds the truth. With the normal
law's 95 %, {SEEDS} seeds give 91 to 98 % in 99 of 100 cases. Made by
`python docs/make_coverage.py`.

With fewer draws the interval covers less often, by Student's t: 85 % with 4 draws, 89 % with 6,
91 % with 8, 92 % with 10.

| measure | problem | arguments | truth | mean value | mean standard error | covered |
|---|---|---|---|---|---|---|
"""


def head(case) -> str:
    """What a line says of a case before any seed."""
    arguments = ", ".join(f"{name}={given}" for name, given in case.arguments.items()) or "—"
    return f"| `{case.metric}` | {case.problem} | {arguments} | {case.truth:.6g} |"


def row(case) -> str:
    """One line of the table."""
    fraction, value, error = covered(case)
    return f"{head(case)} {value:.6g} | {error:.2g} | {100 * fraction:.1f} % |"


def main() -> None:
    """Measure, print and write."""
    rows = []
    for case in CASES:
        rows.append(row(case))
        print(rows[-1], flush=True)
    (HERE / "coverage.md").write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
