"""Runs trained together: grouped by config and device, each with its own record and end."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs.grouped import RATES, SGD, config
from runs.kills import history, leaves

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.runs import files, groups, layout, memory
from sharpflat.runs import study as runs_study


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


def test_devices_that_share_each_update_get_one_group(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    study, mesh = config(tmp_path), object()
    for found, sizes in ((None, [2, 2, 2]), (mesh, [6])):
        monkeypatch.setattr(runs_study, "shared_mesh", lambda _, found=found: found)
        trainings = runs_study._trainings(study, configs.cells(study), tmp_path)
        assert [len(group.members) for group, _ in trainings.values()] == sizes


def test_memory_that_cannot_be_planned_stops_no_study(monkeypatch):
    """As of a program that XLA lowers, but does not compile."""

    class Lowered:
        def cost_analysis(self):
            return None

    assert memory._bytes(lambda _: Lowered(), "", 0.0) == 1.0
