"""Runs trained together: grouped by config and device, each with its own record and end."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs.kills import history, leaves, same
from runs.studies import contents, write

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.runs import checkpoints, files, groups, layout, member, memory
from sharpflat.runs import study as runs_study

RATES = {"train.optimizer.learning_rate": [0.01, 0.02, 0.1]}
SGD = {"batch_size": 8, "epochs": 4, "optimizer": {"name": "gradient_descent"}}


def config(folder, *overrides, together=True, **changes):
    changes = {"sweep": RATES, "train": SGD, **changes}
    return sf.load_config(write(folder, together=together, **changes), overrides)


def grouped(study):
    return groups.groups(configs.cells(study), study.together)


def test_seeds_and_numbers_go_together_and_shapes_apart(tmp_path):
    sweep = {**RATES, "train.batch_size": [8, 40]}
    found = grouped(config(tmp_path, sweep=sweep))
    assert [len(group.members) for group in found] == [6, 6]
    for group, size in zip(found, (8, 40), strict=True):
        assert {member.train["batch_size"] for member in group.members} == {size}
        assert group.free == ("learning_rate",)
        numbers = group.together().numbers
        assert numbers["learning_rate"] == [
            m.train["optimizer"]["learning_rate"] for m in group.members
        ]
    assert [
        len(group.members) for group in grouped(config(tmp_path, sweep=sweep, together=False))
    ] == [1] * 12
    names = {"train.optimizer": [{"name": "momentum"}, {"name": "adam"}]}
    assert [len(group.members) for group in grouped(config(tmp_path, sweep=names))] == [2, 2]


def test_a_cpu_trains_one_by_one_unless_it_is_told(tmp_path):
    assert jax.default_backend() == "cpu"
    assert {len(group.members) for group in grouped(config(tmp_path, together=None))} == {1}


def test_groups_are_split_to_fit_the_memory(tmp_path, monkeypatch):
    study = config(tmp_path, seeds=7, sweep=None)
    size = memory.update_bytes(configs.cells(study)[0])
    monkeypatch.setattr(groups, "device_memory", lambda: 3.5 * size / groups.SHARE_OF_MEMORY)
    found = grouped(study)
    assert [len(group.members) for group in found] == [3, 2, 2]
    assert [m.seed for group in found for m in group.members] == list(range(7))


def test_what_an_update_holds_grows_with_its_batch(tmp_path):
    """Else groups and devices would be chosen as if memory were no matter."""
    train = {"batch_size": 10, "epochs": 1, "optimizer": {"name": "adam"}}
    wide = {"name": "mlp", "width": 64, "depth": 2}
    digits = {"name": "digits"}
    study = config(tmp_path, "seeds=1", train=train, sweep={"train.batch_size": [10, 100, 1000]},
                   model=wide, dataset=digits)  # fmt: skip
    cells = configs.cells(study)
    parameters = 4 * (64 * 64 + 64 * 64 + 64 * 10)
    few, more, all_of_it = (memory.update_bytes(cell) for cell in cells)
    assert 3 * parameters < few < more < all_of_it
    assert memory.evaluation_bytes(cells[0]) > few, "of a thousand at once"
    assert memory.evaluation_bytes(cells[0]) > 4 * 1000 * (64 + 64)
    activations = 4 * 1000 * (64 + 64 + 64 + 10)
    assert activations < all_of_it < 20 * activations
    touched = memory.update_bytes(cells[2], 1e12)
    assert touched > all_of_it, "quick, and too much"
    assert memory.update_bytes(cells[2], touched) == touched


PICKY = '''
import jax
import optax
import sharpflat as sf


@sf.optimizer
def picky(*, learning_rate: sf.Positive = 0.1) -> optax.GradientTransformation:
    """Looks at its number."""
    return optax.sgd(learning_rate if learning_rate < 1 else 1.0)


@sf.optimizer
def picky_later(*, learning_rate: sf.Positive = 0.1) -> optax.GradientTransformation:
    """Looks at it when it updates."""

    def update(grads, state, params=None):
        rate = learning_rate if learning_rate < 1 else 1.0
        return jax.tree.map(lambda g: -rate * g, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
'''


@pytest.mark.parametrize("name", ["picky", "picky_later"])
def test_an_optimizer_that_looks_at_its_numbers_is_grouped_by_them(tmp_path, name):
    (tmp_path / "picky.py").write_text(PICKY)
    train = {**SGD, "optimizer": {"name": name}}
    found = grouped(config(tmp_path, plugins=["picky.py"], train=train))
    assert [len(group.members) for group in found] == [2, 2, 2]


def test_each_has_the_record_that_it_has_alone(tmp_path):
    together = sf.run(config(tmp_path), tmp_path / "together")
    alone = sf.run(config(tmp_path, together=False), tmp_path / "alone")
    assert [run.id for run in together] == [run.id for run in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.finished
        assert one.status == other.status
        assert [row["epoch"] for row in one.history] == [1, 2, 3, 4]
        for row, expected in zip(history(one), history(other), strict=True):
            assert row == pytest.approx(expected, abs=1e-5)
        for a, b in zip(leaves(one), leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        for a, b in zip(
            *map(jax.tree.leaves, (one.initial_params, other.initial_params)), strict=True
        ):
            assert np.array_equal(a, b)
    (file,) = (tmp_path / "together").glob("groups/*/group.json")
    written = json.loads(file.read_text())
    assert written["members"] == [run.id for run in together]
    assert all(run.provenance["together"] == written for run in together)
    assert not (file.parent / "checkpoints").exists()


def test_one_that_diverges_or_stops_early_ends_alone(tmp_path):
    sweep = {"train.optimizer.learning_rate": [0.01, 1e30, 0.3]}
    study = config(
        tmp_path, "seeds=1", "train.epochs=30", "train.stop={train_loss: 0.7}", sweep=sweep
    )
    slow, broken, quick = sf.train(study, tmp_path / "together")
    assert broken.status["status"] == "diverged"
    assert quick.status["reason"].startswith("train loss reached")
    assert slow.status["reason"] == "all 30 epochs done"
    assert len(broken.history) < len(quick.history) < len(slow.history) == 30
    apart = sf.train(
        config(tmp_path, "seeds=1", "train.epochs=30", "train.stop={train_loss: 0.7}", sweep=sweep,
               together=False),
        tmp_path / "alone",
    )  # fmt: skip
    assert [len(run.history) for run in apart] == [
        len(run.history) for run in (slow, broken, quick)
    ]


def stop_after(saves, study, root, monkeypatch):
    save, steps = checkpoints.Checkpoints.save, []

    def save_and_stop(self, step, *kept):
        save(self, step, *kept)
        steps.append(step)
        if len(steps) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
        patch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            sf.train(study, root)
    return steps


def test_a_resumed_group_is_bit_for_bit_the_unbroken_one(tmp_path, monkeypatch):
    study = config(tmp_path, "train.stop={train_loss: 0.9}", "train.epochs=8")
    unbroken = sf.train(study, tmp_path / "unbroken")
    assert len({len(run.history) for run in unbroken}) > 1, "some ended while others trained"
    steps = [
        step
        for saves in (2, 4, 5)
        for step in stop_after(saves, study, tmp_path / "broken", monkeypatch)
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
    stop_after(2, study, root, monkeypatch)
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


@pytest.mark.parametrize(
    ("optimizer", "name", "values"),
    [("adamw", "weight_decay", [0.0, 3.0]), ("momentum", "decay", [0.0, 0.9]),
     ("sam", "rho", [0.01, 1.0])],
)  # fmt: skip
def test_each_number_of_an_optimizer_may_differ(tmp_path, optimizer, name, values):
    train = {**SGD, "optimizer": {"name": optimizer, "learning_rate": 0.1}}
    if optimizer == "adamw":
        train["optimizer"]["epsilon"] = 1e-2  # so that rounding is not made to steps
    sweep = {f"train.optimizer.{name}": values}
    study = config(tmp_path, "seeds=1", train=train, sweep=sweep)
    (group,) = grouped(study)
    assert group.free == (name,)
    alone = config(tmp_path, "seeds=1", train=train, sweep=sweep, together=False)
    pair = sf.train(study, tmp_path / "together")
    for one, other in zip(pair, sf.train(alone, tmp_path / "alone"), strict=True):
        for a, b in zip(leaves(one), leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.allclose(leaves(pair[0])[1], leaves(pair[1])[1], atol=1e-3)


def test_a_group_waits_for_no_member_that_another_process_trains(tmp_path):
    study = config(tmp_path)
    member = configs.cells(study)[3].id
    folder = files.make_folder(tmp_path / "results/runs" / member)
    with files.claimed(folder), pytest.raises(sf.InputError, match=f"run {member}: another proc"):
        sf.train(study, tmp_path / "results")
    assert all(run.finished for run in sf.train(study, tmp_path / "results"))


def test_an_accelerator_trains_together_and_shares_its_devices(tmp_path, monkeypatch):
    study = config(tmp_path, together=None)
    cells = configs.cells(study)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [len(group.members) for group in groups.groups(cells, None)] == [6]
    assert [len(group.members) for group in groups.groups(cells, None, None, 2)] == [3, 3]

    several = [SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 7})] * 2
    monkeypatch.setattr(jax, "devices", lambda: several)
    monkeypatch.setattr(jax, "local_devices", lambda: several)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    monkeypatch.setattr(layout, "data_mesh", tuple)
    assert groups.places(groups.groups(cells, False), None) == several
    assert layout.device_memory() == 7
    assert layout.shared_mesh() == tuple(several)
    assert layout.shared_mesh(False) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert layout.shared_mesh() is None
    assert layout.shared_mesh(True) == tuple(several)


def test_those_that_had_not_begun_are_grouped_as_ever(tmp_path, monkeypatch):
    """On two devices, two groups of each batch size; the first of all is stopped."""
    study = config(tmp_path, "seeds=2", sweep={**RATES, "train.batch_size": [8, 40]})
    cells, root = configs.cells(study), tmp_path / "broken"
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    stop_after(1, study, root, monkeypatch)
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
    stop_after(4, begun, root, monkeypatch)
    (left,) = root.glob("*/*/checkpoints")
    one, other = sf.train(asked, root)
    assert "resumed" in one.provenance
    assert same(one, unbroken[0])
    assert history(one) == history(unbroken[0])
    assert ("together" in one.provenance) is first
    assert ("resumed" in other.provenance) is first, "alone, it had not begun"
    assert not left.exists()


def kept(root):
    """All that is on disk, but for who held it last."""
    return {path: about for path, about in contents(root).items() if path.name != ".lock"}


@pytest.mark.parametrize("how", [True, None])
def test_part_of_a_stopped_group_is_refused_and_nothing_of_it_is_lost(tmp_path, monkeypatch, how):
    """Begun anew it would take the others' checkpoint from them."""
    root, sweep = tmp_path / "results", {"sweep": None, "together": True}
    study = config(tmp_path, "seeds=3", **sweep)
    unbroken = sf.train(study, tmp_path / "unbroken")
    stop_after(2, study, root, monkeypatch)
    before, (folder,) = kept(root), root.glob("groups/*")
    part = config(tmp_path, "seeds=[1]", **{**sweep, "together": how})
    said = (
        f"groups/{folder.name}: was stopped while it trained {unbroken[1].id} together with runs "
        f"that are not asked for: {unbroken[0].id}, {unbroken[2].id}; ask for all of them"
    )
    with pytest.raises(sf.InputError, match=said):
        sf.train(part, root)
    assert kept(root) == before
    for one, other in zip(sf.train(study, root), unbroken, strict=True):
        assert same(one, other)
        assert "resumed" in one.provenance
    assert sf.train(part, root)[0].finished, "that of a group which has ended is there"


def test_part_of_a_group_that_trains_now_waits_for_it(tmp_path, monkeypatch):
    root = tmp_path / "results"
    stop_after(2, config(tmp_path, "seeds=3", sweep=None), root, monkeypatch)
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
    stop_after(6, three, root, monkeypatch)
    (old,) = root.glob("groups/*")
    away = old.rename(tmp_path / old.name)
    stop_after(4, two, root, monkeypatch)
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
        stop_after(2, study, root, monkeypatch)
        (kept,) = root.glob(f"{folder}/*/checkpoints")
        for file in root.glob("runs/*/provenance.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), "attempt": "another"}))
        for one, other in zip(sf.train(study, root), unbroken, strict=True):
            assert "resumed" not in one.provenance
            assert same(one, other)
        assert list((kept.parent / "set_aside").iterdir()), "nothing is lost"


def test_a_stopped_group_whose_data_would_be_streamed_is_refused(tmp_path, monkeypatch):
    study, root = config(tmp_path), tmp_path / "broken"
    stop_after(2, study, root, monkeypatch)
    (folder,) = root.glob("groups/*")
    streamed = config(tmp_path, "dataset_on_device=false", together=None)
    said = f"dataset_on_device: groups/{folder.name} was stopped with its data on the device"
    with pytest.raises(sf.InputError, match=said):
        sf.train(streamed, root)
    assert all(run.finished for run in sf.train(study, root))


def test_labels_that_are_resampled_otherwise_are_another_program(tmp_path):
    """Who is trained together shares what is drawn anew at each update, but for the seed."""
    sizes = {}
    for resample in (True, False):
        train = {**SGD, "label_noise": {"fraction": 0.2, "resample": resample}}
        sweep = {"train.label_noise.draw": [0, 1]}
        found = grouped(config(tmp_path, train=train, sweep=sweep))
        sizes[resample] = [len(group.members) for group in found]
    assert sizes == {True: [2, 2], False: [4]}


@pytest.mark.parametrize(("update", "evaluation"), [(10.0, 1.0), (1.0, 28.0)])
def test_a_device_needs_the_memory_of_a_group_and_of_an_evaluation(
    tmp_path, monkeypatch, update, evaluation
):
    """Two groups of three: of two devices both, or one where only one group fits."""
    cells = configs.cells(config(tmp_path))
    found = groups.groups(cells, True, None, 2)
    assert [len(group.members) for group in found] == [3, 3]
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(platform="cpu")] * 2)
    monkeypatch.setattr(groups, "update_bytes", lambda *_: update)
    monkeypatch.setattr(groups, "evaluation_bytes", lambda *_: evaluation)
    for room, devices in ((32.0, 2), (30.0, 1)):
        whole = room / groups.SHARE_OF_MEMORY
        monkeypatch.setattr(groups, "device_memory", lambda whole=whole: whole)
        assert len(groups.places(found, True)) == devices


def test_groups_may_share_one_that_has_ended(tmp_path, monkeypatch):
    """It rides along in both, at the same time, and nobody waits for it."""
    root = tmp_path / "results"
    stop = "train.stop={train_loss: 0.9}"
    some = [config(tmp_path, stop, f"seeds={seeds}", "train.epochs=40", sweep=None)
            for seeds in ([0, 1], [0, 2], [0, 1, 2])]  # fmt: skip
    (ended,) = sf.train(config(tmp_path, stop, "seeds=[0]", "train.epochs=40", sweep=None), root)
    assert ended.finished
    for study in some[:2]:
        stop_after(2, study, root, monkeypatch)
    found = groups.groups(configs.cells(some[2]), True, None, 1, root)
    assert sorted(len(group.members) for group in found) == [2, 2]
    with files.claimed(ended.folder):
        runs = sf.train(some[2], root)
    assert all(run.finished for run in runs)
    assert ["resumed" in run.provenance for run in runs] == [False, True, True]


def test_devices_that_share_each_update_get_one_group(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    study, mesh = config(tmp_path), object()
    for found, sizes in ((None, [2, 2, 2]), (mesh, [6])):
        monkeypatch.setattr(runs_study, "shared_mesh", lambda _, found=found: found)
        trainings = runs_study._trainings(study, configs.cells(study), tmp_path)
        assert [len(group.members) for group, _ in trainings.values()] == sizes


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


def test_memory_that_cannot_be_planned_stops_no_study(monkeypatch):
    """As of a program that XLA lowers, but does not compile."""

    class Lowered:
        def cost_analysis(self):
            return None

    assert memory._bytes(lambda _: Lowered(), "", 0.0) == 1.0
