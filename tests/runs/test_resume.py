"""Interrupted: what is resumed ends, bit for bit, where an unbroken run ends."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from runs.interrupted import interrupted
from runs.kills import history, same
from runs.studies import BATCH_NORM, UPDATES, sharpflat, write

import sharpflat as sf
from sharpflat import digests
from sharpflat.runs import member, provenance

PLAIN = {"name": "mlp", "width": 8, "depth": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("model", [PLAIN, BATCH_NORM], ids=["adam", "batch norm"])
def test_resuming_is_bit_for_bit_the_unbroken_run(tmp_path, monkeypatch, model, error):
    config = sf.load_config(write(tmp_path, model=model, sweep=None, seeds=1), ["train.epochs=7"])
    (unbroken,) = sf.run(config, tmp_path / "unbroken")

    broken = tmp_path / "broken"
    stops = [interrupted(config, broken, monkeypatch, saves, error) for saves in (2, 3, 4)]
    (resumed,) = sf.run(config, broken)

    steps = [step for stop in stops for step in stop]
    assert steps == sorted(set(steps)), "each start went on after the last checkpoint"
    assert any(step % UPDATES for step in steps), "some of them within an epoch"
    record = resumed.provenance["resumed"]
    assert [again["step"] for again in record] == [stop[-1] for stop in stops]
    assert resumed.finished
    assert same(resumed, unbroken)
    assert history(resumed) == history(unbroken)
    assert not (resumed.folder / "checkpoints").exists()
    assert jax.tree.all(
        jax.tree.map(np.array_equal, resumed.initial_params, unbroken.initial_params)
    )


def test_a_run_that_goes_on_with_other_code_says_so(tmp_path, monkeypatch):
    """Ids do not depend on the code that trains; a reader of the record sees both digests."""
    path = write(tmp_path, sweep=None, seeds=1)
    root, said = tmp_path / "results", "goes on after epoch {}, update {}{}"
    other = "; not what it began with: the code that trains, the packages' versions, the device"
    for change in ({}, {"kind": "another"}, {"cpu_cores": 99}):
        (before,) = interrupted(sf.load_config(path, ["train.epochs=6"]), root, monkeypatch, 1)
        with monkeypatch.context() as patch:
            if change:
                patch.setattr(member, "training_digest", lambda: "another")
                for name, changed in (("versions", {"jax": "another"}), ("device", change)):
                    now = getattr(member, name)() | changed
                    patch.setattr(member, name, lambda now=now: now)
            outcome = sharpflat("run", path, "train.epochs=6", "--root", root)
        assert outcome.code == 0
        assert said.format(before // UPDATES, before, other * bool(change)) in outcome.err
        assert ("not what it began" in outcome.err) is bool(change)
        (run,) = sf.load_runs(root)
        digests = [
            record["training_digest"] for record in (run.provenance, *run.provenance["resumed"])
        ]
        assert len(set(digests)) == 1 + bool(change)
        assert change.items() <= run.provenance["resumed"][-1]["device"].items()
        shutil.rmtree(root)


@pytest.mark.parametrize("file", ["training/update_rules.py", "training/update.py",
                                  "networks/perceptrons.py", "runs/evaluation.py", "runs/build.py",
                                  "runs/member.py"])  # fmt: skip
def test_the_digest_of_what_trains_sees_it(monkeypatch, file):
    package, read = Path(sf.__file__).parent, Path.read_text

    def edited(self, *arguments, **keywords):
        content = read(self, *arguments, **keywords)
        return content + "CHANGED = 1" if self == package / file else content

    before = provenance.training_digest.__wrapped__()
    monkeypatch.setattr(Path, "read_text", edited)
    digests._parsed.cache_clear()
    assert provenance.training_digest.__wrapped__() != before
    digests._parsed.cache_clear()


def test_patience_is_counted_across_an_interruption(tmp_path, monkeypatch):
    """The stopping rule remembers the epochs before the checkpoint."""
    stop = {"patience": 4, "improvement": 0.9}
    overrides = ["train.epochs=50", f"train.stop={json.dumps(stop)}"]
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), overrides)
    (unbroken,) = sf.run(config, tmp_path / "unbroken")
    assert len(unbroken.history) == 5, "four epochs without a new best after the first"

    interrupted(config, tmp_path / "broken", monkeypatch)
    (resumed,) = sf.run(config, tmp_path / "broken")
    assert history(resumed) == history(unbroken)
    assert resumed.status == unbroken.status


def test_history_lines_beyond_the_checkpoint_are_dropped(tmp_path, monkeypatch):
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), ["train.epochs=6"])
    (unbroken,) = sf.run(config, tmp_path / "unbroken")
    steps = interrupted(config, tmp_path / "broken", monkeypatch, saves=5)
    (file,) = (tmp_path / "broken").glob("runs/*/history.jsonl")
    done = steps[-1] // UPDATES
    assert [row["epoch"] for row in sf.Run(file.parent).history] == list(range(1, done + 1))
    with file.open("a") as rows:
        rows.write(
            f'{{"epoch": {done + 1}, "step": 20, "train_loss": 9.0}}\n{{"epoch": {done + 2}, "trai'
        )
    (resumed,) = sf.run(config, tmp_path / "broken")
    assert history(resumed) == history(unbroken)


def test_a_run_killed_before_its_first_checkpoint_says_that_it_begins_anew(tmp_path, monkeypatch):
    path = write(tmp_path, sweep=None, seeds=1)
    # Five updates are an epoch; a segment is one of them at least, an epoch at most.
    config = sf.load_config(path, ["train.epochs=7"])
    interrupted(config, tmp_path / "results", monkeypatch, saves=5)
    (folder,) = (tmp_path / "results").glob("runs/*/checkpoints")
    shutil.rmtree(folder)
    outcome = sharpflat("run", path, "train.epochs=7", "--root", tmp_path / "results")
    assert outcome.code == 0
    assert "has no checkpoint to go on from; begins anew" in outcome.err


def test_an_interrupted_study_is_shown_as_far_as_it_came(tmp_path, monkeypatch):
    from sharpflat.runs import study

    train_group, trained = study.train_group, []

    def stop_at_the_third(*arguments):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(train_group(*arguments))

    monkeypatch.setattr(study, "train_group", stop_at_the_third)
    path = write(tmp_path, together=False)
    outcome = sharpflat("run", path, "--root", tmp_path)
    assert outcome.code not in (0, 2)
    assert "Traceback" not in outcome.err
    assert len(sf.load_runs(tmp_path, "tiny")) == 2
    assert sharpflat("show", "tiny", "--root", tmp_path).code == 0
    monkeypatch.undo()
    assert sharpflat("run", path, "--root", tmp_path).code == 0
    assert len(sf.load_runs(tmp_path, "tiny")) == 4


def test_history_that_is_shorter_than_its_checkpoint_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, sweep=None, seeds=1)
    config = sf.load_config(path, ["train.epochs=6"])
    interrupted(config, tmp_path / "results", monkeypatch, saves=5)
    (file,) = (tmp_path / "results").glob("runs/*/history.jsonl")
    file.write_text("")
    with pytest.raises(sf.InputError, match=r"history.jsonl: has 0 of the \d epochs"):
        sf.run(config, tmp_path / "results")
