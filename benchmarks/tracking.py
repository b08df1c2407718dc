"""What watching λmax and checkpoints cost a training.

    python benchmarks/tracking.py                       # MNIST is looked for, or downloaded

Tracking: trainings of F1 at B = 256 without it, with it every epoch, certified and not, in turn,
whole times, after a first round that is not counted. Checkpoints: the time of a save of a finished
training's state, against the 60 s from one to the next.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

import sharpflat as sf
from sharpflat.runs import Checkpoints

SECONDS_BETWEEN = 60
ADAM = {"name": "adam", "learning_rate": 1e-3}
F1 = {"dataset": {"name": "mnist"}, "model": {"name": "f1"}}
DIGITS = {"dataset": {"name": "digits"}, "model": {"name": "mlp", "width": 64, "depth": 2}}


def trained(study: dict[str, Any], folder: Path, **train: Any) -> tuple[sf.Run, float]:
    """A new training under `folder`, and the seconds it took."""
    content = {
        **study, "study": "benchmark", "seeds": 1, "together": False,
        "train": {"batch_size": 256, "optimizer": ADAM, **train},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    config = sf.load_config(folder / "study.yaml")
    tic = time.perf_counter()
    (run,) = sf.train(config, folder)
    return run, time.perf_counter() - tic


def tracking(rounds: int, epochs: int, examples: int) -> None:
    """Print seconds without and with λmax every epoch, of so many examples."""
    ways: dict[str, list[Any]] = {"without": []}
    for certify in (True, False):
        name = "certified" if certify else "from a warm start"
        ways[name] = [{"top_eigenvalue": {"examples": examples, "certify": certify}}]
    times: dict[str, list[float]] = {way: [] for way in ways}
    looks: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, track in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                given = {"epochs": epochs, "eval_every": epochs, "track": track}
                run, seconds = trained(F1, Path(folder), **given)
                if number:
                    times[way].append(seconds)
                    looks[way] += [row["seconds"] for row in run.tracked]
    print(
        f"F1 at B = 256, {epochs} epochs, {rounds} rounds, {examples} examples; target below 1.20"
    )
    print("| λmax every epoch | whole training, s | ratio of medians | a look, s |")
    print("|---|---|---|---|")
    without = statistics.median(times["without"])
    for way, seconds in times.items():
        whole, spread = statistics.median(seconds), f"{min(seconds):.1f}–{max(seconds):.1f}"
        look = f"{statistics.median(looks[way]):.2f}" if looks[way] else ""
        print(f"| {way} | {whole:.2f} ({spread}) | {whole / without:.3f} | {look} |", flush=True)


def checkpoints(saves: int) -> None:
    """Print the time of a save, and its part of the time from one to the next."""
    print(f"a checkpoint every {SECONDS_BETWEEN} s, {saves} saves; target below 1.05")
    print("| state | MB | a save, s | ratio |\n|---|---|---|---|")
    for name, study in (("F1", F1), ("digits", DIGITS)):
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            run, _ = trained(study, folder, epochs=1)
            state, seconds = run.snapshot(), []
            kept = Checkpoints(folder / "checkpoints", "benchmark")
            for step in range(saves + 1):
                tic = time.perf_counter()
                kept.save(step, state)
                seconds.append(time.perf_counter() - tic)
            kept.close()
            size = (run.folder / "snapshots" / f"{run.step_of(None)}.npz").stat().st_size
        each = statistics.median(seconds[1:])
        spread = f"{min(seconds[1:]):.3f}–{max(seconds[1:]):.3f}"
        ratio = 1 + each / SECONDS_BETWEEN
        print(f"| {name} | {size / 1e6:.1f} | {each:.3f} ({spread}) | {ratio:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument("--examples", type=int, nargs="+", default=[1000, 500])
    given = parser.parse_args()
    checkpoints(given.saves)
    for examples in given.examples:
        tracking(given.rounds, given.epochs, examples)


if __name__ == "__main__":
    main()
