"""Start-up: time of `sharpflat --help`, and what the second start of a study compiles again.

    python benchmarks/startup.py

Help is timed in fresh processes, beside `python -c pass`; target: under 0.5 s, and JAX is not
imported. Then the quickstart, with one seed and few epochs, runs twice in fresh processes, with one
new compilation cache and two new result folders. Target: the second start finds every program in
the cache where the backend reloads its own entries; each one it does not find is named, with why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
TARGET = 0.5

IMPORTED = """
import contextlib, io, sys
sys.argv = ["sharpflat", "--help"]
from sharpflat.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main()
print("jax" in sys.modules)
"""

# Runs `sharpflat ARGUMENTS...` and writes what the compilation cache was asked for to a file: JAX's
# events, and each program missed with its key, the line of ours that wanted it, and what was said
# when it could not be kept. JAX's own event `cache_misses` counts only what it then writes.
STUDY = """
import collections, json, logging, sys, traceback, warnings
import jax
report, sys.argv = sys.argv[1], ["sharpflat", *sys.argv[2:]]
events, missed = collections.Counter(), []
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.split("/")[-1]]))
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: events.update([name.split("/")[-1]]))

def place():
    frames = [frame for frame in traceback.extract_stack() if "/sharpflat/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/sharpflat/')[2]}:{frames[-1].lineno}"

class Listener(logging.Handler):
    def emit(self, record):
        if "CACHE MISS for" in str(record.msg):
            name, key = map(str, record.args)
            missed.append({"name": name, "key": key, "place": place(), "said": []})
        elif "Not writing persistent" in str(record.msg) and missed:
            missed[-1]["said"].append(record.getMessage())

for name in ("compiler", "compilation_cache"):
    logger = logging.getLogger(f"jax._src.{name}")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(Listener())

def showwarning(message, *rest, show=warnings.showwarning, **more):
    if "persistent compilation cache" in str(message) and missed:
        missed[-1]["said"].append(str(message))
    show(message, *rest, **more)

warnings.showwarning = showwarning
warnings.simplefilter("always")
from sharpflat.cli import main
status = 0
try:
    main()
except SystemExit as end:
    status = end.code or 0
with open(report, "w") as file:
    json.dump({"events": events, "missed": missed}, file)
sys.exit(status)
"""


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def time_help(repeats: int) -> None:
    """Time of the console script beside that of a bare interpreter, interleaved."""
    script = Path(sys.executable).with_name("sharpflat")
    if not script.exists():
        raise SystemExit(f"{script}: no such console script; pip install -e . in this environment")
    commands = {
        "`sharpflat --help`": (str(script), "--help"),
        "`python -c pass`": (sys.executable, "-c", "pass"),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(repeats + 1):
        for name, command in commands.items():
            taken = seconds(*command)
            if repeat:  # the first one writes bytecode
                times[name].append(taken)
    print(f"median (lowest–highest) of {repeats}; target: help under {TARGET} s, without JAX\n")
    print("| command | s |\n|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {statistics.median(taken):.3f} ({min(taken):.3f}–{max(taken):.3f}) |")
    imported = subprocess.run(
        [sys.executable, "-c", IMPORTED], check=True, capture_output=True, text=True
    )
    print(f"\nHelp imports JAX: {'yes' if imported.stdout.strip() == 'True' else 'no'}\n")


def run_study(folder: Path, name: str, arguments: list[str]) -> dict:
    """One start of the study, in a process of its own; what the cache was asked for, and when."""
    report = folder / f"{name}.json"
    command = [sys.executable, "-c", STUDY, str(report), "run", str(QUICKSTART), *arguments]
    environment = {**os.environ, "SHARPFLAT_COMPILATION_CACHE": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--root", str(folder / name)], env=environment, capture_output=True, text=True
    )
    taken = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"the study failed:\n{done.stdout}{done.stderr}")
    return {"seconds": taken, **json.loads(report.read_text())}


def reason(program: dict, first: dict, cached: set[str]) -> str:
    """Why the second start did not find a program."""
    before = {missed["key"]: missed for missed in first["missed"]}.get(program["key"])
    if before is None:
        return "its key is new, for the program differs from the first start's"
    if not any(name.startswith(program["key"]) for name in cached):
        said = "; ".join(before["said"]) or "JAX does not say why"
        return f"the first start did not keep it ({said})"
    return f"it is in the cache, but was not reloaded ({'; '.join(program['said'])})"


def count_misses(arguments: list[str]) -> None:
    """Two starts, and what the second one compiled again."""
    print(f"`{' '.join(['sharpflat run configs/quickstart.yaml', *arguments])}`\n")
    print("| start | s | programs | cache hits | cache misses | without the cache |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = run_study(folder, "first", arguments)
        cached = {path.name for path in folder.glob("cache/*/*")}
        second = run_study(folder, "second", arguments)
    for label, start in (("first", first), ("second", second)):
        events, missed = start["events"], len(start["missed"])
        programs, hits = (events.get(e, 0) for e in ("backend_compile_duration", "cache_hits"))
        cells = [label, f"{start['seconds']:.1f}", programs, hits, missed, programs - hits - missed]
        print("|", " | ".join(map(str, cells)), "|")
    if second["missed"]:
        print("\nMissed by the second start:")
    for program in second["missed"]:
        why = reason(program, first, cached)
        print(f"- `{program['name']}`, asked for by `{program['place']}`: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="of the timing of --help")
    parser.add_argument(
        "overrides", nargs="*", default=["seeds=1", "train.epochs=20"], metavar="key=value",
        help="what makes the quickstart short (default: seeds=1 train.epochs=20)",
    )  # fmt: skip
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores\n")
    time_help(options.repeats)
    count_misses(options.overrides)


if __name__ == "__main__":
    main()
