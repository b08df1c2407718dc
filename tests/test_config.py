"""Configs: strict, overridden, swept, and the ids of what they ask for."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from runs.studies import LINEAR, NORM, content, write

import sharpflat as sf
from sharpflat import config as configs
from sharpflat import registry
from sharpflat.runs.setup import fill_registries

CONFIGS = Path(__file__).parents[1] / "configs"
fill_registries()  # a room that is first imported during a test would register for that test only


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """What a test's plugins register is gone after it."""
    for kind in ("metrics", "models", "datasets", "optimizers", "schedules", "figures"):
        entries = getattr(registry, kind)
        monkeypatch.setattr(entries, "_entries", dict(entries._entries))


def load(tmp_path, *overrides, **changes):
    return sf.load_config(write(tmp_path, **changes), overrides)


def cells(tmp_path, *overrides, **changes):
    return configs.cells(load(tmp_path, *overrides, **changes))


def sizes(runs):
    return [run.train["batch_size"] for run in runs]


def refusal(tmp_path, *overrides, **changes):
    with pytest.raises(sf.InputError) as caught:
        load(tmp_path, *overrides, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


UNKNOWN = [
    ("modle={name: mlp}", "modle", "model"),
    ("train.batchsize=8", "train.batchsize", "batch_size"),
    ("train.stop.patiense=3", "train.stop.patiense", "patience"),
    ("measure.chunks=3", "measure.chunks", "chunk"),
    ("measure=[{}, {chunks: 3}]", "measure.1.chunks", "chunk"),
    ("landscape=[{lines: {}}]", "landscape.0.lines", "line"),
    ("landscape=[{line: {point: 3}}]", "landscape.0.line.point", "points"),
    ("dataset.feature=3", "dataset.feature", "features"),
    ("model.widht=3", "model.widht", "width"),
    ("train.optimizer.learning_rat=1", "train.optimizer.learning_rat", "learning_rate"),
    (
        "measure.metrics=[{keskar_sharpness: {epsilom: 1}}]",
        "measure.metrics.keskar_sharpness.epsilom",
        "epsilon",
    ),
    ("figures=[{line: {widht: page}}]", "figures.line.widht", "width"),
    ("sweep={train.batchsize: [8]}", "train.batchsize", "batch_size"),
    ("sweep=[{model.widht: 8}]", "model.widht", "width"),
    ("sweep={trian.batch_size: [8]}", "sweep.trian.batch_size", "train"),
    ("dataset={name: digit}", "dataset.name", "digits"),
    ("model.name=mpl", "model.name", "mlp"),
    ("sweep={model.name: [mlp, mpl]}", "model.name", "mlp"),
    ("train.optimizer.name=adm", "train.optimizer.name", "adam"),
    ("measure.metrics=[keskar_sharpnes]", "measure.metrics", "keskar_sharpness"),
    ("measure=[{metrics: [keskar_sharpnes]}]", "measure.0.metrics", "keskar_sharpness"),
    ("figures=[training_curve]", "figures", "training_curves"),
    ("train.loss=cross_entrop", "train.loss", "cross_entropy"),
    ("measure.batch_norm=[runing]", "measure.batch_norm.0", "running"),
    ("landscape=[{line: {batch_norm: recal}}]", "landscape.0.line.batch_norm", "recalibrated"),
]


@pytest.mark.parametrize(("override", "key", "hint"), UNKNOWN, ids=[case[0] for case in UNKNOWN])
def test_unknown_keys_and_names_are_told_with_the_closest(tmp_path, override, key, hint):
    message = refusal(tmp_path, override)
    assert message.startswith(f"{key}: ")
    assert f"'{hint}'" in message


WRONG = [
    ("train.stop=5", "train.stop"),
    ("train.batch_size=true", "train.batch_size"),
    ("train.batch_size=8.0", "train.batch_size"),
    ("train.batch_size='8'", "train.batch_size"),
    ("train.batch_size=null", "train.batch_size"),
    ("train.epochs=1e2", "train.epochs"),
    ("train.drop_last=1", "train.drop_last"),
    ("train.drop_last='yes'", "train.drop_last"),
    ("train.optimizer=adam", "train.optimizer"),
    ("train.optimizer={learning_rate: 0.1}", "train.optimizer.name"),
    ("train.optimizer.learning_rate='1e-3'", "train.optimizer.learning_rate"),
    ("train.optimizer.learning_rate=true", "train.optimizer.learning_rate"),
    ("dataset=digits", "dataset"),
    ("model={name: [mlp]}", "model.name"),
    ("model={name: 3}", "model.name"),
    ("model={}", "model.name"),
    ("model.width=8.5", "model.width"),
    ("model.width=[8, true]", "model.width.1"),
    ("model.depth=true", "model.depth"),
    ("model.batch_norm=1", "model.batch_norm"),
    ("seeds=true", "seeds"),
    ("seeds=1.0", "seeds"),
    ("seeds=[0, true]", "seeds.1"),
    ("study=5", "study"),
    ("plugins=file.py", "plugins"),
    ("sweep=8", "sweep"),
    ("sweep={train.batch_size: 8}", "sweep.train.batch_size"),
    ("sweep={model: [mlp]}", "model"),
    ("sweep={train.batch_size: [8, '8']}", "train.batch_size"),
    ("measure=5", "measure"),
    ("measure.metrics=[3]", "measure.metrics.0"),
    ("measure.metrics=[{}]", "measure.metrics"),
    ("measure.metrics=[{keskar_sharpness: 5}]", "measure.metrics.keskar_sharpness"),
    ("measure.metrics=[{keskar_sharpness: false}]", "measure.metrics.keskar_sharpness"),
    ("measure.batch_norm=batch", "measure.batch_norm"),
    ("landscape={line: {}}", "landscape"),
    ("figures=line", "figures"),
    # Out of range.
    ("train.batch_size=0", "train.batch_size"),
    ("train.epochs=0", "train.epochs"),
    ("train.eval_every=0", "train.eval_every"),
    ("train.stop.train_loss=0", "train.stop.train_loss"),
    ("train.stop.improvement=-0.1", "train.stop.improvement"),
    ("train.optimizer.learning_rate=0", "train.optimizer.learning_rate"),
    ("train.optimizer.b1=1.5", "train.optimizer.b1"),
    ("dataset.label_noise=1.5", "dataset.label_noise"),
    ("dataset.classes=1", "dataset.classes"),
    ("model.width=0", "model.width"),
    ("seeds=0", "seeds"),
    ("seeds=[]", "seeds"),
    ("seeds=[3, -1]", "seeds.1"),
    ("seeds=[4294967296]", "seeds.0"),
    ("measure.chunk=0", "measure.chunk"),
    ("measure.examples=0", "measure.examples"),
    ("measure.batch_norm=[]", "measure.batch_norm"),
    ("measure.seed=-1", "measure.seed"),
    ("landscape=[{line: {points: 1}}]", "landscape.0.line.points"),
    ("landscape=[{line: {alpha: [0.0]}}]", "landscape.0.line.alpha"),
    ("sweep={train.batch_size: []}", "sweep.train.batch_size"),
    ("sweep={train.batch_size: [8, 0]}", "train.batch_size"),
    ("study=''", "study"),
    ("study=../elsewhere", "study"),
]


@pytest.mark.parametrize(("override", "key"), WRONG, ids=[case[0] for case in WRONG])
def test_wrong_types_and_numbers_out_of_range_are_refused_by_key(tmp_path, override, key):
    assert refusal(tmp_path, override).startswith(f"{key}: ")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("dataset.label_noise", "dataset.label_noise={}"),
        ("dataset.data_dir", "dataset={{name: mnist, data_dir: {}}}"),  # None is allowed there
        ("train.optimizer.learning_rate", "train.optimizer.learning_rate={}"),
        ("train.stop.train_loss", "train.stop.train_loss={}"),
        ("train.stop.improvement", "train.stop.improvement={}"),
        ("train.optimizer.learning_rate", "sweep={{train.optimizer.learning_rate: [0.1, {}]}}"),
        (
            "measure.metrics.keskar_sharpness.epsilon",
            "measure.metrics=[{{keskar_sharpness: {{epsilon: {}}}}}]",
        ),
        ("landscape.0.line.alpha.1", "landscape=[{{line: {{alpha: [0.0, {}]}}}}]"),
    ],
)
def test_numbers_must_be_finite(tmp_path, key, override, number):
    message = refusal(tmp_path, override.format(number))
    assert message.startswith(f"{key}: ")
    assert number.strip("-.") in message


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 1e-3), ("2E-3", 2e-3), ("1.5e+1", 15.0), (".5", 0.5), ("1", 1.0)]
)
def test_numbers_as_people_write_them(tmp_path, text, number):
    path = write(tmp_path)
    path.write_text(path.read_text().replace("learning_rate: 0.01", f"learning_rate: {text}"))
    assert text in path.read_text()
    for run in configs.cells(sf.load_config(path)):
        assert run.train["optimizer"]["learning_rate"] == number
        assert isinstance(run.train["optimizer"]["learning_rate"], float)
    override = cells(tmp_path, f"train.optimizer.learning_rate={text}")[0]
    assert override.train["optimizer"]["learning_rate"] == number


@pytest.mark.parametrize("key", ["study", "dataset", "model", "train"])
def test_what_is_required(tmp_path, key):
    assert refusal(tmp_path, **{key: None}) == f"{key}: is required"


def test_required_below(tmp_path):
    assert refusal(tmp_path, train={"epochs": 1}, sweep=None).startswith("train.")
    assert refusal(tmp_path, dataset={"name": "arrays"}) == "dataset.path: is required"


def test_seeds(tmp_path):
    assert load(tmp_path, "seeds=3").seed_list == [0, 1, 2]
    assert [run.seed for run in cells(tmp_path, "seeds=[7, 2]", "sweep={}")] == [7, 2]
    assert [run.seed for run in cells(tmp_path, "seeds=[2, 2]", "sweep={}")] == [2]


def test_a_sweep_of_keys_gives_every_combination(tmp_path):
    sweep = {"train.batch_size": [8, 40], "model.width": [4, 6, 8]}
    runs = cells(tmp_path, sweep=sweep, seeds=2)
    assert len({run.id for run in runs}) == len(runs) == 12
    met = {(r.train["batch_size"], r.model["width"], r.seed) for r in runs}
    assert met == {(b, w, s) for b in (8, 40) for w in (4, 6, 8) for s in (0, 1)}
    assert runs[0].swept == {"train.batch_size": 8, "model.width": 4}


def test_a_sweep_of_settings_takes_each_as_it_stands(tmp_path):
    sweep = [{"train.batch_size": 8, "train.epochs": 2}, {"train.batch_size": 40}]
    runs = cells(tmp_path, sweep=sweep, seeds=1)
    assert [(r.train["batch_size"], r.train["epochs"]) for r in runs] == [(8, 2), (40, 3)]
    assert runs[1].swept == {"train.batch_size": 40, "train.epochs": 3}


def test_whole_entries_can_be_swept(tmp_path):
    sweep = {"model": [{"name": "mlp", "width": 4}, {"name": "f1"}]}
    assert [run.model["name"] for run in cells(tmp_path, sweep=sweep, seeds=1)] == ["mlp", "f1"]


def test_equal_settings_count_once(tmp_path):
    assert sizes(cells(tmp_path, sweep={"train.batch_size": [8, 8, 40]}, seeds=1)) == [8, 40]


def test_an_override_replaces_a_swept_axis(tmp_path):
    runs = cells(tmp_path, "train.batch_size=16")
    assert sizes(runs) == [16, 16]
    assert runs[0].swept == {"train.batch_size": 16}
    other = {"train.batch_size": [8, 40], "model.width": [4, 8]}
    runs = cells(tmp_path, "train.batch_size=16", sweep=other, seeds=1)
    assert [(r.train["batch_size"], r.model["width"]) for r in runs] == [(16, 4), (16, 8)]


def test_an_override_is_dropped_from_each_setting(tmp_path):
    sweep = [
        {"train.batch_size": 8, "train.epochs": 2},
        {"train.batch_size": 40, "train.epochs": 5},
        {"train.batch_size": 20, "train.epochs": 5},
    ]
    config = load(tmp_path, "train.batch_size=16", sweep=sweep, seeds=1)
    assert config.sweep == [{"train.epochs": 2}, {"train.epochs": 5}]
    assert [run.train["epochs"] for run in configs.cells(config)] == [2, 5]
    assert set(sizes(configs.cells(config))) == {16}


def test_overrides_are_read_as_yaml(tmp_path):
    config = load(tmp_path, "seeds=[3, 4]", "train.stop={patience: 2}", "train.drop_last=true")
    assert config.seeds == [3, 4]
    assert config.train.stop.patience == 2
    assert config.train.drop_last is True
    assert load(tmp_path, "train.stop.patience=2").train.stop.patience == 2


def test_an_override_replaces_a_whole_entry(tmp_path):
    run = cells(tmp_path, "dataset={name: digits}")[0]
    assert run.dataset == {"name": "digits", "train_examples": 1000, "split_seed": 0}


@pytest.mark.parametrize(
    ("override", "swept"),
    [
        ("train={batch_size: 16, epochs: 2, optimizer: {name: adam}}", {"train.batch_size": [8]}),
        ("model.width=16", {"model": [{"name": "mlp"}, {"name": "f1"}]}),
    ],
)
def test_an_override_that_the_sweep_would_undo_is_refused(tmp_path, override, swept):
    key = override.partition("=")[0]
    for sweep in (swept, [{name: values[0] for name, values in swept.items()}]):
        message = refusal(tmp_path, override, sweep=sweep)
        assert message.startswith(f"override {key}: '{next(iter(swept))}' is swept")


def test_later_overrides_win(tmp_path):
    assert load(tmp_path, "seeds=1", "seeds=4").seeds == 4


@pytest.mark.parametrize("override", ["train.epochs", "=3", "", "train.epochs: 3"])
def test_an_override_needs_key_and_value(tmp_path, override):
    assert "expected key=value" in refusal(tmp_path, override)


def test_overrides_below_what_is_no_mapping(tmp_path):
    assert refusal(tmp_path, "seeds.first=3").startswith("seeds.first: ")
    assert refusal(tmp_path, "train.epochs=[1,").startswith("override train.epochs")


BROKEN = [
    ("study: tiny\ntrain: {batch_size: 8\nseeds: 2\n", "line 3"),
    ("study: tiny\n\ttrain: 3\n", "line 2"),
    ("study: tiny\nseeds: 2\nseeds: 3\n", "line 3"),
    ("study: tiny\ntrain:\n  epochs: 1\n  batch_size: 8\n  epochs: 2\n", "line 5"),
    ("study: *unknown\n", "line 1"),
    ("study: !!python/object/apply:os.getcwd []\n", "line 1"),
    ("study: tiny\nseeds: 2024-13-45\n", "month"),
    ("study: tiny\x00\n", "not allowed"),
]


@pytest.mark.parametrize(("text", "place"), BROKEN)
def test_broken_yaml_is_told_with_its_line(tmp_path, text, place):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(sf.InputError) as caught:
        sf.load_config(path)
    message = str(caught.value)
    assert str(path) in message
    assert place in message
    assert "\n" not in message


def test_a_key_given_twice_is_named(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text() + "seeds: 3\n")
    with pytest.raises(sf.InputError, match="key 'seeds' is given twice"):
        sf.load_config(path)


@pytest.mark.parametrize("text", ["", "5", "- a\n- b", "# nothing"])
def test_a_config_is_a_mapping(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(sf.InputError, match="expected a mapping of keys"):
        sf.load_config(path)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(sf.InputError, match=str(path)):
            sf.load_config(path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(sf.InputError, match="bytes.yaml"):
        sf.load_config(tmp_path / "bytes.yaml")


def test_the_contract(tmp_path):
    config = sf.load_config(CONFIGS / "quickstart.yaml", ["train.batch_size=64"])
    runs = configs.cells(config)
    assert set(sizes(runs)) == {64}
    assert len(runs) == 10  # two numbers of epochs, five seeds


def ids(tmp_path, *overrides, **changes):
    return [run.id for run in cells(tmp_path, *overrides, **changes)]


def test_ids_do_not_depend_on_what_is_left_out(tmp_path):
    spelled = (
        "dataset.label_noise=0", "dataset.hidden=32", "model.batch_norm=false", "train.stop={}",
        "train.loss=cross_entropy", "train.drop_last=false", "train.optimizer.b1=9e-1",
        "train.stop.improvement=0", "train.eval_every=null", "seeds=[0, 1]",
    )  # fmt: skip
    assert ids(tmp_path, *spelled) == ids(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "study=other", "figures=[line]", "measure.metrics=[hessian_top_eigenvalues]",
        "measure.chunk=10", "landscape=[{line: {}}]", "figures=null",
    ],
)  # fmt: skip
def test_ids_do_not_depend_on_what_is_measured(tmp_path, override):
    assert ids(tmp_path, override) == ids(tmp_path)


def test_ids_do_not_depend_on_where_data_lie(tmp_path):
    found = [
        ids(tmp_path, f"dataset={{name: mnist{where}}}")
        for where in ("", ", data_dir: /a", ", data_dir: /b")
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "override",
    [
        "dataset.label_noise=0.1", "dataset.data_seed=1", "model.width=9", "model.batch_norm=true",
        "train.epochs=4", "train.optimizer.learning_rate=0.02", "train.optimizer.name=adamw",
        "train.loss=squared_error", "train.drop_last=true", "train.stop.patience=3",
        "train.eval_every=2", "seeds=[2, 3]", "sweep={train.batch_size: [7, 39]}",
    ],
)  # fmt: skip
def test_ids_depend_on_everything_that_shapes_the_record(tmp_path, override):
    assert not set(ids(tmp_path, override)) & set(ids(tmp_path))


def test_ids_differ_between_seeds_and_settings(tmp_path):
    assert len(set(ids(tmp_path))) == 4


def plugin(tmp_path, text, name="mine.py"):
    (tmp_path / name).write_text(text)
    return name


def test_a_plugin_that_only_adds_a_metric_changes_no_id(tmp_path):
    names = [plugin(tmp_path, NORM)]
    assert ids(tmp_path, plugins=names) == ids(tmp_path)
    plugin(tmp_path, NORM.replace("norm**power", "2 * norm**power"))
    assert ids(tmp_path, plugins=names) == ids(tmp_path)


def test_ids_follow_the_code_of_the_plugin_that_registers_the_model(tmp_path):
    study = {"plugins": [plugin(tmp_path, LINEAR)], "model": {"name": "linear"}}
    first = ids(tmp_path, **study)
    assert ids(tmp_path, **study) == first

    plugin(tmp_path, LINEAR.replace('"""A linear network."""', '"""Other words."""  # And more.'))
    assert ids(tmp_path, **study) == first, "words are not code"

    plugin(tmp_path, LINEAR.replace("size**0.5", "size**0.4"))
    assert not set(ids(tmp_path, **study)) & set(first)

    # The same plugin beside another model is not part of that model's runs.
    assert ids(tmp_path, plugins=study["plugins"]) == ids(tmp_path)


@pytest.mark.parametrize("kind", ["dataset", "optimizer"])
def test_ids_follow_plugins_of_data_and_optimizers(tmp_path, kind):
    texts = {
        "dataset": """
            import sharpflat as sf
            @sf.dataset
            def mine(*, size: sf.Count = 3):
                return None
        """,
        "optimizer": """
            import optax, sharpflat as sf
            @sf.optimizer
            def mine(*, learning_rate: sf.Positive = 0.1):
                return optax.sgd(learning_rate)
        """,
    }
    text = textwrap.dedent(texts[kind])
    key = {"dataset": "dataset", "optimizer": "train.optimizer"}[kind]
    names = [plugin(tmp_path, text)]
    first = ids(tmp_path, f"{key}={{name: mine}}", plugins=names)
    plugin(tmp_path, text + "\nSOMETHING = 1\n")
    assert not set(ids(tmp_path, f"{key}={{name: mine}}", plugins=names)) & set(first)


def test_plugins_lie_beside_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    plugin(tmp_path, NORM)
    config = load(tmp_path, "measure.metrics=[weight_norm]", plugins=["mine.py"])
    assert config.plugins == [str(tmp_path / "mine.py")]


def test_plugins_given_beside_the_config(tmp_path, monkeypatch):
    plugin(tmp_path, NORM)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, measure={"metrics": [{"weight_norm": {"power": 2}}]})
    config = sf.load_config(path, plugins=["mine.py"])
    assert config.plugins == [str(tmp_path / "mine.py")]
    with pytest.raises(sf.InputError, match=r"weight_norm\.power: .* greater than 0"):
        sf.load_config(path, ["measure.metrics=[{weight_norm: {power: 0}}]"], ["mine.py"])


def test_every_config_that_we_ship_loads():
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert files
    for file in files:
        assert configs.cells(sf.load_config(file))


def test_a_config_loads_figures_in_a_process_that_has_not_drawn(tmp_path):
    path = write(tmp_path, figures=["line"])
    code = f"import sharpflat as sf; print(sf.load_config({str(path)!r}).figures)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['line']\n", done.stderr


def test_a_resolved_config_is_plain_yaml(tmp_path):
    run = cells(tmp_path, "model.width=[8, 4]")[0]
    assert yaml.safe_load(yaml.safe_dump(run.resolved())) == run.resolved()
    assert run.resolved()["train"]["optimizer"]["b2"] == 0.999
    assert content()["model"]["width"] == 8
