"""Keys, types and numbers: what is wrong is refused by key."""

import pytest
from config.given import cells, refusal
from runs.studies import write

import sharpflat as sf
from sharpflat import config as configs

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
