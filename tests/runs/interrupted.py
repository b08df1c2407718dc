"""Studies that are interrupted after so many checkpoints."""

import pytest

import sharpflat as sf
from sharpflat.runs import checkpoints


def interrupted(config, root, monkeypatch, saves=3, error=KeyboardInterrupt):
    """Stopped right after so many checkpoints, one a segment; the updates before each of them."""
    save, steps = checkpoints.Checkpoints.save, []

    def save_and_stop(self, step, *kept):
        save(self, step, *kept)
        steps.append(step)
        if len(steps) == saves:
            raise error("stop")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
        patch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                sf.run(config, root)
        else:
            (run,) = sf.run(config, root)
            assert run.status["status"] == "failed"
    return steps


# Of a read that fails Orbax leaves others behind, whose loop is closed when they end.
orbax_leaves_reads = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)
