"""Studies that are killed at random moments, and what they are then.

    PYTHONPATH=tests python tests/runs/kills.py --kills 50              # one by one
    PYTHONPATH=tests python tests/runs/kills.py --kills 50 --together   # as groups

Each kill is by SIGKILL, in a fresh folder, and followed by a start that goes on to the end. It is
counted as identical if all runs' parameters, batch-norm averages, optimizer states and histories
(seconds apart) and the study's table are those of the unbroken study, bit for bit.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from runs.studies import NORM, write

import sharpflat as sf
from sharpflat.runs.snapshots import to_host

EPOCHS = 160
SCRIPT = """
import time
from sharpflat import cli
from sharpflat.runs import checkpoints, member
checkpoints.SECONDS_BETWEEN = {seconds_between}
row = member._row
def slow(epoch):
    time.sleep({pause})
    return row(epoch)
member._row = slow
cli.main()
"""

LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))
"""


def history(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.history]


def leaves(run):
    return to_host((run.params, run.model_state, run.opt_state))


def same(first, second):
    pairs = zip(leaves(first), leaves(second), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


class Killed:
    """A small study, slow enough to be killed, in processes of its own."""

    def __init__(self, folder, together, epochs=EPOCHS, pause=0.01):
        self.epochs, self.pause, self.processes = epochs, pause, []
        (folder / "norm.py").write_text(NORM)
        self.folder = folder
        self.path = write(
            folder, seeds=4 if together else 2, sweep={"train.batch_size": [8, 40]},
            plugins=["norm.py"],
            train={"batch_size": 8, "epochs": epochs, "optimizer": {"name": "adam"}},
            model={"name": "mlp", "width": 8, "depth": 1, "batch_norm": True},
            measure={"chunk": 40, "metrics": ["weight_norm"]}, together=together,
        )  # fmt: skip
        # Compiled programs are kept from here on, so that the other starts are quick.
        self.finish("unbroken")
        files = (folder / "unbroken").glob("groups/*/group.json")
        self.groups = [len(json.loads(file.read_text())["members"]) for file in files]
        assert self.groups == ([2] * 4 if together else []), "two seeds a device and batch size"

    @property
    def errors(self):
        return (self.folder / "errors.txt").read_text()

    def begin(self, root, *overrides, seconds_between=0.2, largest_file=None):
        """Starts the study; with `largest_file` no file may grow beyond so many bytes."""
        environment = {
            "SHARPFLAT_COMPILATION_CACHE": str(self.folder / "cache"), **os.environ,
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2",
        }  # fmt: skip
        script = SCRIPT.format(seconds_between=seconds_between, pause=self.pause)
        if largest_file is not None:
            script = LIMIT.format(bytes=largest_file) + script
        with (self.folder / "errors.txt").open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", script, "run", self.path, *overrides,
                 "--root", self.folder / root],
                env=environment, stdout=subprocess.DEVNULL, stderr=stderr, cwd=self.folder,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def close(self):
        """No process is left behind, whatever a test has raised."""
        for process in self.processes:
            process.kill()
            process.wait()

    def begin_and_progress(self, root, kept=False, **kwargs):
        """A process that has brought something to the disk; with `kept` a checkpoint, too."""
        before, process = self._progress(root), self.begin(root, **kwargs)
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            found = any((self.folder / root).glob("*/*/checkpoints/[0-9]*"))
            if self._progress(root) != before and (found or not kept):
                return process
            time.sleep(0.01)
        raise AssertionError(f"the study made no progress: {self.errors}")

    def kill(self, root, after, kept=False):
        """SIGKILL so many seconds after the first progress; whether it was still at work."""
        process = self.begin_and_progress(root, kept)
        time.sleep(after)
        at_work = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        return at_work

    def finish(self, root, *overrides):
        process = self.begin(root, *overrides)
        try:
            assert process.wait(timeout=300) == 0, self.errors
        finally:
            process.kill()

    def difference(self, root):
        """What is not as in the unbroken study; None where all is."""
        tables = [self.folder / name / "studies/tiny/table.csv" for name in ("unbroken", root)]
        pairs = [sf.load_runs(self.folder / name, "tiny") for name in ("unbroken", root)]
        for unbroken, broken in zip(*pairs, strict=True):
            if len(history(broken)) != self.epochs or history(broken) != history(unbroken):
                return f"history of {broken}"
            if not same(broken, unbroken):
                return f"parameters of {broken}"
        return None if tables[0].read_bytes() == tables[1].read_bytes() else "the table"

    def resumed(self, root):
        """How many runs went on from a checkpoint."""
        return sum("resumed" in run.provenance for run in sf.load_runs(self.folder / root, "tiny"))

    def _progress(self, root):
        """Another after each step that reaches the disk."""
        root = self.folder / root
        # Not those with a dot: temporary files, which may be gone before they are read.
        lines = [path.read_bytes().count(b"\n") for path in root.glob("runs/*/[!.]*.jsonl")]
        return len(lines), sum(lines), len(list(root.glob("*/*/checkpoints/*")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments, identical, late, resumed = random.Random(arguments.seed), 0, 0, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Killed(Path(folder), arguments.together)) as study,
    ):
        for number in range(arguments.kills):
            late += not study.kill("broken", moments.uniform(0.0, 6.0))
            study.finish("broken")
            difference = study.difference("broken")
            identical, resumed = identical + (difference is None), resumed + study.resumed("broken")
            print(f"kill {number + 1}: {difference or 'identical'}", flush=True)
            shutil.rmtree(Path(folder) / "broken")
    how = "together" if arguments.together else "one by one"
    print(
        f"{identical} of {arguments.kills} identical, {late} killed after their end, "
        f"{resumed} runs went on from a checkpoint, {how}"
    )
    sys.exit(identical != arguments.kills)


if __name__ == "__main__":
    main()
