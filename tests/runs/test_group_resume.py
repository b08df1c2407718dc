"""Groups that were stopped: they go on as they were recorded, or say why not."""

import json

import jax
import pytest
from runs.grouped import RATES, config
from runs.interrupted import interrupted
from runs.kills import history, same
from runs.studies import UPDATES, contents

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.runs import checkpoints, files, groups, member


def test_a_resumed_group_is_bit_for_bit_the_unbroken_one(tmp_path, monkeypatch):
    study = config(tmp_path, "train.stop={train_loss: 0.9}", "train.epochs=8")
    unbroken = sf.train(study, tmp_path / "unbroken")
    assert len({len(run.history) for run in unbroken}) > 1, "some ended while others trained"
    steps = [
        step
        for saves in (2, 4, 5)
        for step in interrupted(study, tmp_path / "broken", monkeypatch, saves)
    ]
    assert steps == sorted(set(steps))
    assert len(list((tmp_path / "broken").glob("groups/*/checkpoints"))) == 1, "one a group"
    assert not list((tmp_path / "broken").glob("runs/*/checkpoints"))
    for one, other in zip(sf.train(study, tmp_path / "broken"), unbroken, strict=True):
        assert same(one, other)
        assert history(one) == history(other)
        assert one.status == other.status


def test_who_is_finished_rides_along_and_nothing_of_it_changes(tmp_path):
    """What a group gives does not depend on what was there before."""
    study = config(tmp_path, sweep=None, seeds=3)
    unbroken = sf.train(study, tmp_path / "unbroken")
    first = sf.train(
        config(tmp_path, "seeds=[1]", sweep=None, together=False), tmp_path / "partly"
    )[0]
    files = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    for one, other in zip(sf.train(study, tmp_path / "partly"), unbroken, strict=True):
        assert one.id == first.id or same(one, other)
    assert files == {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}


def test_a_stopped_group_goes_on_as_it_was_recorded(tmp_path, monkeypatch):
    """Members and layout are on disk before the first checkpoint, and hold on other devices."""
    study, root = config(tmp_path), tmp_path / "broken"
    unbroken = sf.train(study, tmp_path / "unbroken")
    interrupted(study, root, monkeypatch, 2)
    (file,) = root.glob("groups/*/group.json")
    written = json.loads(file.read_text())
    assert written["members"] == [run.id for run in unbroken]
    assert written["numbers"] == {"learning_rate": [0.01, 0.01, 0.02, 0.02, 0.1, 0.1]}
    cells = configs.cells(study)
    assert [len(group.members) for group in groups.groups(cells, True, None, 3)] == [2, 2, 2]
    (group,) = groups.groups(cells, True, None, 3, root)
    assert group.id == file.parent.name
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    for one, other in zip(sf.train(study, root), unbroken, strict=True):
        assert same(one, other)
        assert "resumed" in one.provenance


def test_those_that_had_not_begun_are_grouped_as_ever(tmp_path, monkeypatch):
    """On two devices, two groups of each batch size; the first of all is stopped."""
    study = config(tmp_path, "seeds=2", sweep={**RATES, "train.batch_size": [8, 40]})
    cells, root = configs.cells(study), tmp_path / "broken"
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    interrupted(study, root, monkeypatch, 1)
    (kept,) = root.glob("groups/*/checkpoints")
    fresh = groups.groups(cells, True, None, 2)
    assert [len(group.members) for group in fresh] == [3, 3, 3, 3]
    assert groups.groups(cells, True, None, 2, root) == fresh
    one = groups.groups(cells, True, None, 1, root)
    assert sorted(len(group.members) for group in one) == [3, 3, 6], "its own, and the others"
    assert kept.parent.name in [group.id for group in one]


@pytest.mark.parametrize("then", [None, False])
@pytest.mark.parametrize("first", [True, False])
def test_what_was_stopped_goes_on_whatever_is_asked(tmp_path, monkeypatch, first, then):
    """As a group, or alone, as it was begun."""
    root, sweep = tmp_path / "broken", {"train.optimizer.learning_rate": [0.01, 0.02]}
    begun, asked = (
        config(tmp_path, "seeds=1", "train.epochs=9", sweep=sweep, together=how)
        for how in (first, then if first else True)
    )
    unbroken = sf.train(begun, tmp_path / "unbroken")
    interrupted(begun, root, monkeypatch, 4)
    (left,) = root.glob("*/*/checkpoints")
    one, other = sf.train(asked, root)
    assert "resumed" in one.provenance
    assert same(one, unbroken[0])
    assert history(one) == history(unbroken[0])
    assert ("together" in one.provenance) is first
    assert ("resumed" in other.provenance) is first, "alone, it had not begun"
    assert not left.exists()


@pytest.mark.parametrize("how", [True, None])
def test_part_of_a_stopped_group_is_refused_and_nothing_of_it_is_lost(tmp_path, monkeypatch, how):
    """Begun anew it would take the others' checkpoint from them."""
    root, sweep = tmp_path / "results", {"sweep": None, "together": True}
    study = config(tmp_path, "seeds=3", **sweep)
    unbroken = sf.train(study, tmp_path / "unbroken")
    interrupted(study, root, monkeypatch, 2)
    before, (folder,) = contents(root), root.glob("groups/*")
    part = config(tmp_path, "seeds=[1]", **{**sweep, "together": how})
    said = (
        f"groups/{folder.name}: was stopped while it trained {unbroken[1].id} together with runs "
        f"that are not asked for: {unbroken[0].id}, {unbroken[2].id}; ask for all of them"
    )
    with pytest.raises(sf.InputError, match=said):
        sf.train(part, root)
    assert contents(root) == before
    for one, other in zip(sf.train(study, root), unbroken, strict=True):
        assert same(one, other)
        assert "resumed" in one.provenance
    assert sf.train(part, root)[0].finished, "that of a group which has ended is there"


def test_part_of_a_group_that_trains_now_waits_for_it(tmp_path, monkeypatch):
    root = tmp_path / "results"
    interrupted(config(tmp_path, "seeds=3", sweep=None), root, monkeypatch, 2)
    part = config(tmp_path, "seeds=[1]", sweep=None)
    (cell,) = configs.cells(part)
    with (
        files.claimed(root / "runs" / cell.id),
        pytest.raises(sf.InputError, match=f"run {cell.id}: another process works on it"),
    ):
        sf.train(part, root)


def test_what_another_training_has_overtaken_is_not_gone_on_with(tmp_path, monkeypatch):
    """A group of three, moved away; then two of them, which begin anew; then all three again."""
    root = tmp_path / "mixed"
    three, two = (
        config(tmp_path, f"seeds={seeds}", "train.epochs=9", sweep=None, together=True)
        for seeds in ([0, 1, 2], [0, 1])
    )
    unbroken = sf.train(two, tmp_path / "unbroken")
    interrupted(three, root, monkeypatch, 6)
    (old,) = root.glob("groups/*")
    away = old.rename(tmp_path / old.name)
    interrupted(two, root, monkeypatch, 4)
    away.rename(old)
    found = groups.groups(configs.cells(three), True, None, 1, root)
    assert [len(group.members) for group in found] == [2, 1], "the newer of the two"
    why, said = member.Member._why_anew, []
    monkeypatch.setattr(member.Member, "_why_anew", lambda self: said.append(why(self)))
    runs = sf.train(three, root)
    assert said == [f"was stopped in group {old.name}, of which some were begun anew"]
    for one, other in zip(runs, unbroken, strict=False):
        assert "resumed" in one.provenance
        assert same(one, other)
    assert runs[2].finished
    assert list(old.glob("checkpoints/[0-9]*")), "nothing is lost"


def test_checkpoints_of_another_attempt_are_set_aside(tmp_path, monkeypatch):
    """As where a run's record was put there from elsewhere; of a group, too."""
    for how, folder in ((False, "runs"), (True, "groups")):
        study, root = config(tmp_path, sweep=None, seeds=2, together=how), tmp_path / folder
        unbroken = sf.train(study, tmp_path / f"unbroken {folder}")
        interrupted(study, root, monkeypatch, 2)
        (kept,) = root.glob(f"{folder}/*/checkpoints")
        for file in root.glob("runs/*/provenance.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), "attempt": "another"}))
        for one, other in zip(sf.train(study, root), unbroken, strict=True):
            assert "resumed" not in one.provenance
            assert same(one, other)
        assert list((kept.parent / "set_aside").iterdir()), "nothing is lost"


def test_what_to_move_where_a_member_lacks_epochs_is_its_group(tmp_path, monkeypatch):
    study, root = config(tmp_path, sweep=None, seeds=2), tmp_path / "broken"
    unbroken = sf.train(study, tmp_path / "unbroken")
    done = interrupted(study, root, monkeypatch, 4)[-1] // UPDATES
    (folder,) = root.glob("groups/*")
    (sf.load_runs(root)[1].folder / "history.jsonl").write_text("")
    assert done
    said = f"has 0 of the {done} epochs before the checkpoint; .*or move {folder} "
    with pytest.raises(sf.InputError, match=said):
        sf.train(study, root)
    folder.rename(tmp_path / "away")
    for one, other in zip(sf.train(study, root), unbroken, strict=True):
        assert same(one, other)


def test_a_stopped_group_whose_data_would_be_streamed_is_refused(tmp_path, monkeypatch):
    study, root = config(tmp_path), tmp_path / "broken"
    interrupted(study, root, monkeypatch, 2)
    (folder,) = root.glob("groups/*")
    streamed = config(tmp_path, "dataset_on_device=false", together=None)
    said = f"dataset_on_device: groups/{folder.name} was stopped with its data on the device"
    with pytest.raises(sf.InputError, match=said):
        sf.train(streamed, root)
    assert all(run.finished for run in sf.train(study, root))


def test_groups_may_share_one_that_has_ended(tmp_path, monkeypatch):
    """It rides along in both, at the same time, and nobody waits for it."""
    root = tmp_path / "results"
    stop = "train.stop={train_loss: 0.9}"
    some = [config(tmp_path, stop, f"seeds={seeds}", "train.epochs=40", sweep=None)
            for seeds in ([0, 1], [0, 2], [0, 1, 2])]  # fmt: skip
    (ended,) = sf.train(config(tmp_path, stop, "seeds=[0]", "train.epochs=40", sweep=None), root)
    assert ended.finished
    for study in some[:2]:
        interrupted(study, root, monkeypatch, 2)
    found = groups.groups(configs.cells(some[2]), True, None, 1, root)
    assert sorted(len(group.members) for group in found) == [2, 2]
    with files.claimed(ended.folder):
        runs = sf.train(some[2], root)
    assert all(run.finished for run in runs)
    assert ["resumed" in run.provenance for run in runs] == [False, True, True]


def test_checkpoints_of_a_group_that_has_ended_go(tmp_path, monkeypatch):
    study = config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
        patch.setattr(checkpoints.Checkpoints, "delete", checkpoints.Checkpoints.close)
        sf.train(study, tmp_path / "results")
    (folder,) = (tmp_path / "results").glob("groups/*/checkpoints")
    streamed = config(tmp_path, "dataset_on_device=false", together=None)
    assert all(run.finished for run in sf.train(streamed, tmp_path / "results")), "and block none"
    sf.train(study, tmp_path / "results")
    assert not folder.exists()
