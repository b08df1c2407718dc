"""Bad input: one line, exit status 2, and nothing on the disk is changed."""

import gzip
import struct

import numpy as np
import pytest
import yaml
from runs.studies import TINY, contents, sharpflat, write

from sharpflat.runs import build


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Results with one finished study."""
    folder = tmp_path_factory.mktemp("done")
    path = write(folder, seeds=1, sweep=None)
    assert sharpflat("run", path, "--root", folder / "results").code == 0
    return folder / "results"


@pytest.fixture
def complain(done, tmp_path, monkeypatch):
    """The complaint about a config, which must leave the results as they were."""
    monkeypatch.delenv("SHARPFLAT_DATA", raising=False)
    monkeypatch.setattr("sharpflat.runs.study.train_group", lambda *args: pytest.fail("trained"))
    build._resident.cache_clear()

    def complain(*arguments, command="run", **changes):
        # The same study: its files would be the first to be overwritten.
        path = write(tmp_path, **{"seeds": 1, "sweep": None, **changes})
        before = contents(done)
        message = sharpflat(command, path, *arguments, "--root", done).complaint
        assert contents(done) == before
        return message

    return complain


CASES = [
    ("train.batchsize=8", "train.batchsize", "'batch_size'"),
    ("train.epochs='3'", "train.epochs", "integer"),
    ("train.optimizer.learning_rate=-1", "train.optimizer.learning_rate", "greater than 0"),
    ("train.optimizer.learning_rate=.nan", "train.optimizer.learning_rate", "finite"),
    ("train.optimizer.learning_rate=.inf", "train.optimizer.learning_rate", "finite"),
    ("measure.metrics=[keskar_sharpnes]", "measure.metrics", "'keskar_sharpness'"),
    ("model.name=mpl", "model.name", "'mlp'"),
    ("dataset.name=synthetik", "dataset.name", "'synthetic'"),
    ("train.optimizer.name=adm", "train.optimizer.name", "'adam'"),
    ("figures=[lines]", "figures", "'line'"),
    ("dataset=mnist", "dataset", "write {name: mnist}"),
    ("study=a/b", "study", "a folder's name"),
    ("measure.batch_norm=runing", "measure.batch_norm", "should be a list"),
    ("train.track=[{top_eigenvalue: {evry: 2}}]", "train.track.top_eigenvalue.evry", "'every'"),
    ("train.track=[{path_norm: {exampels: 2}}]", "train.track.path_norm.exampels", "'examples'"),
    ("optimizer.name=adam", "optimizer", "'train.optimizer'"),
    ("train.batch_size=41", "train.batch_size", "40 training examples"),
    ("sweep={train.batch_size: [8, 41]}", "train.batch_size", "40 training examples"),
    ("measure.examples=41", "measure.examples", "40 examples"),
    ("measure={split: test, examples: 21}", "measure.examples", "20 examples"),
    ("measure=[{}, {examples: 41}]", "measure.examples", "40 examples"),
    ("landscape=[{line: {key: model.width}}]", "landscape.line.key", "'model.width' is not swept"),
    ("train.epochs", "override 'train.epochs'", "key=value"),
    ("train.epochs=[3", "override train.epochs, line 1, column 3", "broken YAML"),
    ("seeds=[99999999999]", "seeds.0", "less than"),
]


@pytest.mark.parametrize(("override", "key", "hint"), CASES, ids=[case[0] for case in CASES])
def test_keys_and_names(complain, override, key, hint):
    message = complain(override)
    assert message.startswith(f"{key}: ")
    assert hint in message


@pytest.mark.parametrize("command", ["run", "train", "measure"])
def test_every_command_that_reads_a_config_checks_it(complain, command):
    assert complain("train.batch_size=41", command=command).startswith("train.batch_size: 41")
    assert complain("figures=[lines]", command=command).startswith("figures: unknown figure")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.optimizer.learning_rate=0", "train.optimizer.learning_rate: input should be great"),
        ("train.warmup=3", "train.warmup: its 15 updates are not fewer than the 15 of all"),
        ("train.schedule={name: cosin}", "train.schedule.name: unknown schedule 'cosin'; did you"),
        ("train.schedule={name: step, at: [2]}", "train.schedule.at.0: input should be less than"),
        ("train.learning_rate_rule={rule: lin, reference: 8}", "train.learning_rate_rule.rule: in"),
        ("train.accumulate=3", "train.accumulate: 3 does not divide the batch size 8"),
        ("train.ghost_batch_norm=3", "train.ghost_batch_norm: 3 does not divide the batch size 8"),
        ("train.swa={start: 4}", "train.swa.start: 4 is above the 3 epochs"),
        ("train.ema={decay: 1.0}", "train.ema.decay: input should be less than 1"),
        (
            "train={batch_size: 8, epochs: 3, optimizer: {name: adam}, ema: {decay: 0.9}, "
            "swa: {start: 1}}",
            "train.swa: cannot be together with train.ema",
        ),
        ("train.clip=0", "train.clip: input should be greater than 0"),
        ("train.augment={}", "train.augment: changes nothing; set flip, rotate or shift"),
    ],
)
def test_training_that_cannot_be_is_refused(complain, override, said):
    assert complain("sweep={}", override).startswith(said)


def test_parts_of_parts_and_a_penalty_of_parts_are_refused(complain):
    parts = ("sweep={}", "train.accumulate=2")
    said = "train.ghost_batch_norm: 8 does not divide the 4 examples of a part"
    assert complain(*parts, "train.ghost_batch_norm=8") == said
    assert complain(*parts, "train.gradient_penalty=0.1").startswith("train.gradient_penalty: is")


def test_a_dry_run_is_of_one_process(tmp_path):
    said = sharpflat("run", write(tmp_path), "--dry-run", "--distributed").complaint
    assert said == "--dry-run: each process would time for itself; leave --distributed out"


def test_dry_runs_check_too(complain):
    assert complain("train.batch_size=41", "--dry-run").startswith("train.batch_size: 41")


WITH_NORM = {"name": "mlp", "width": 8, "depth": 1, "batch_norm": True}


def test_a_chunk_that_does_not_divide(complain):
    measure = {"batch_norm": ["running", "batch"], "metrics": ["hessian_top_eigenvalues"]}
    message = complain(model=WITH_NORM, measure={**measure, "chunk": 30})
    assert message.startswith("measure.chunk: 30 does not divide the 40 train examples")
    message = complain(model=WITH_NORM, measure={**measure, "chunk": 8, "examples": 39})
    assert message.startswith("measure.chunk: 8 does not divide the 39 ")
    line = {"batch_norm": "batch", "chunk": 30}
    sweep = {"train.batch_size": [8, 40]}
    message = complain(model=WITH_NORM, sweep=sweep, landscape=[{"line": line}])
    assert message.startswith("landscape.line.chunk: 30 does not divide the 40 train examples")


@pytest.mark.parametrize(
    ("model", "measure"),
    [
        (TINY["model"], {"batch_norm": ["batch"], "chunk": 30}),
        (WITH_NORM, {"batch_norm": ["running", "recalibrated"], "chunk": 30}),
        (WITH_NORM, {"batch_norm": ["batch"], "chunk": 20}),
        (WITH_NORM, {"batch_norm": ["batch"], "chunk": 1000}),
    ],
)
def test_chunks_that_are_allowed(tmp_path, model, measure):
    measure = {**measure, "metrics": ["hessian_top_eigenvalues"]}
    path = write(tmp_path, model=model, measure=measure)
    assert sharpflat("run", path, "--root", tmp_path, "--dry-run").code == 0


def test_a_line_between_different_networks(complain):
    sweep = [{"train.batch_size": 8}, {"train.batch_size": 40, "model.width": 4}]
    message = complain(sweep=sweep, landscape=[{"line": {}}])
    assert message.startswith("landscape.line.key: ")
    assert "'model'" in message


def test_a_line_between_one_of_several_runs(complain, tmp_path):
    sweep = {"train.batch_size": [8, 40], "model.width": [4, 8]}
    assert complain(sweep=sweep, landscape=[{"line": {}}]).startswith("landscape.line.where: ")
    unknown = {"model.widht": 4}
    message = complain(sweep=sweep, landscape=[{"line": {"where": unknown}}])
    assert message.startswith("landscape.line.where: ")
    assert "'model.width'" in message
    path = write(tmp_path, sweep=sweep, landscape=[{"line": {"where": {"model.width": 4}}}])
    assert sharpflat("run", path, "--root", tmp_path / "new", "--dry-run").code == 0


def test_a_line_along_what_has_no_order(complain):
    sweep = {"train.optimizer": [{"name": "adam"}, {"name": "gradient_descent"}]}
    message = complain(sweep=sweep, landscape=[{"line": {"key": "train.optimizer"}}])
    assert "have no order" in message


def test_a_metric_that_needs_what_a_study_lacks(complain, tmp_path):
    text = "import sharpflat as sf\n@sf.metric\ndef needy(objective, key, *, teacher):\n    pass\n"
    (tmp_path / "needy.py").write_text(text)
    message = complain(plugins=["needy.py"], measure={"metrics": ["needy"]})
    assert message.startswith("measure.metrics.needy: needs 'teacher'")


def test_broken_and_missing_configs(done, tmp_path):
    before = contents(done)
    path = tmp_path / "study.yaml"
    path.write_text("study: tiny\ntrain: {epochs: 3\nseeds: 2\n")
    message = sharpflat("run", path, "--root", done).complaint
    assert message.startswith(f"config {path}, line 3")
    path.unlink()
    assert str(path) in sharpflat("run", path, "--root", done).complaint
    assert contents(done) == before


def test_a_config_that_is_not_there_is_told_with_the_closest(tmp_path):
    write(tmp_path)
    said = sharpflat("run", tmp_path / "studdy.yaml").complaint
    assert said.endswith("studdy.yaml: no such file or directory; did you mean 'study'?")
    assert sharpflat("run", tmp_path / ("long" * 99)).complaint.endswith("file name too long")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no such file"),
        ("raise ValueError('one line\\n  and another')", "ValueError: one line and another"),
        ("def f(:", "SyntaxError"),
    ],
)
@pytest.mark.parametrize("given", ["in the config", "on the command line"])
def test_plugins(complain, tmp_path, text, reason, given):
    path = tmp_path / "plugin.py"
    if text is not None:
        path.write_text(text)
    if given == "in the config":
        message = complain(plugins=["plugin.py"])
    else:
        message = complain("--plugin", path)
    assert message.startswith(f"plugin {path}: {reason}")


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A data folder with a file of the right name and size, but not the published content."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    content = idx(np.zeros((60_000, 28, 28), np.uint8))
    monkeypatch.setenv("SHARPFLAT_DATA", str(tmp_path / "data"))
    return folder / "train-images-idx3-ubyte", content


@pytest.mark.parametrize(
    ("damage", "suffix", "words"),
    [
        (lambda content: content, "", "expected 47040016 bytes with MD5 6bbc9ace"),
        (lambda content: content[:-100], "", "got 47039916 bytes"),
        (lambda content: gzip.compress(content, 1)[:-5000], ".gz", "damaged gzip"),
        (lambda content: b"", "", "got 0 bytes"),
    ],
    ids=["altered", "truncated", "truncated gzip", "empty"],
)
def test_damaged_data_files(complain, mnist, monkeypatch, damage, suffix, words):
    file, content = mnist
    file = file.with_name(file.name + suffix)
    file.write_bytes(damage(content))
    monkeypatch.setenv("SHARPFLAT_DATA", str(file.parents[1]))
    message = complain(dataset={"name": "mnist"})
    assert str(file) in message
    assert words in message


def test_missing_data_files(complain, mnist, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network in tests")

    monkeypatch.setattr("pooch.retrieve", refuse)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setenv("SHARPFLAT_DATA", str(tmp_path / "data"))
    message = complain(dataset={"name": "mnist"})
    assert "no file 'train-images-idx3-ubyte'" in message
    assert str(tmp_path / "data" / "mnist") in message
    (tmp_path / "data" / "arrays").mkdir()
    np.savez(tmp_path / "data" / "arrays" / "cifar.npz", x=1)
    message = complain(dataset={"name": "arrays", "path": "cifer.npz"})
    assert "'cifer.npz'" in message
    assert "did you mean 'cifar.npz'?" in message


def npz(path, shift=0.0):
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.normal(size=(n, 4)).astype(np.float32) + shift
        for name, n in (("x_train", 40), ("x_test", 20))
    }
    labels = {f"y_{split}": np.arange(n) % 3 for split, n in (("train", 40), ("test", 20))}
    np.savez(path, **arrays, **labels)


def test_data_that_changed_after_training(tmp_path):
    """Nothing is resumed or measured on other data than what a run was trained on."""
    npz(tmp_path / "data.npz")
    dataset = {"name": "arrays", "path": str(tmp_path / "data.npz")}
    path = write(tmp_path, dataset=dataset, seeds=1, sweep=None)
    assert sharpflat("run", path, "--root", tmp_path / "results").code == 0
    npz(tmp_path / "data.npz", shift=0.1)
    build._resident.cache_clear()  # as in a new process
    before = contents(tmp_path / "results")
    message = sharpflat("run", path, "--root", tmp_path / "results").complaint
    assert "'arrays' has changed since it was trained" in message
    assert contents(tmp_path / "results") == before


def test_output_folders_that_cannot_be_written(complain, tmp_path):
    file = tmp_path / "file"
    file.write_text("a regular file")
    path = write(tmp_path)
    for root in (file, file / "below"):
        message = sharpflat("run", path, "--root", root).complaint
        assert str(file) in message
        assert "not a directory" in message or "file exists" in message
    assert file.read_text() == "a regular file"


def test_a_runs_folder_that_cannot_be_written(complain, tmp_path):
    """The study's own folder could be written, and is not, for its runs' cannot."""
    root = tmp_path / "results"
    root.mkdir()
    (root / "runs").write_text("a regular file")
    before = contents(root)
    message = sharpflat("run", write(tmp_path), "--root", root).complaint
    assert str(root / "runs") in message
    assert contents(root) == before


@pytest.mark.parametrize("command", ["show", "plot"])
def test_unknown_studies(done, tmp_path, command):
    before = contents(done)
    message = sharpflat(command, "tinny", "--root", done).complaint
    assert message == "study: unknown 'tinny'; did you mean 'tiny'?"
    assert contents(done) == before
    message = sharpflat(command, "tiny", "--root", tmp_path / "none").complaint
    assert str(tmp_path / "none") in message
    assert not (tmp_path / "none").exists()


def test_show_without_any_study(tmp_path):
    assert str(tmp_path) in sharpflat("show", "--root", tmp_path).complaint


def test_plots(done):
    before = contents(done)
    undrawn = sharpflat("plot", "tiny", "--figure", "tracked", "--root", done)
    assert undrawn.code == 1
    assert "figure tracked: study 'tiny' lacks what it draws" in undrawn.err
    both = ("--figure", "line", "--figure", "tracked", "width=page")
    assert (
        "needs --figure, and one alone"
        in sharpflat("plot", "tiny", *both, "--root", done).complaint
    )
    for arguments, words in (
        (("--figure", "lin"), "did you mean 'line'?"),
        (("--figure", "line", "widht=page"), "did you mean 'width'?"),
        (("--figure", "line", "width=screen"), "figures.line.width"),
        (("width=page",), "needs --figure"),
    ):
        assert words in sharpflat("plot", "tiny", *arguments, "--root", done).complaint
    assert contents(done) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("metric",), "did you mean 'metrics'?"),
        (("metrics", "keskar"), "did you mean 'keskar_sharpness'?"),
        (("models", "mpl"), "did you mean 'mlp'?"),
        (("config", "trian"), "list config: unknown key 'trian'; did you mean 'train'?"),
        (("config", "train.stop.patienc"), "unknown key 'patienc'; did you mean 'patience'?"),
        (("metrics", "--plugin", "/nothing.py"), "plugin /nothing.py: no such file"),
    ],
)
def test_lists(arguments, words):
    assert words in sharpflat("list", *arguments).complaint


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_root_that_is_a_file(tmp_path, more):
    path = write(tmp_path, seeds=1, sweep=None)
    said = sharpflat("run", path, "--root", path, *more).complaint
    assert said == f"output folder {path}/runs: cannot be written: not a directory"
    said = sharpflat("run", path, "--root", tmp_path / ("a" * 300), *more).complaint
    assert said.endswith("cannot be written: file name too long")


def test_the_cases_start_from_what_is_valid(tmp_path):
    path = write(tmp_path, seeds=1, sweep=None)
    assert sharpflat("run", path, "--root", tmp_path / "results", "--dry-run").code == 0
    assert yaml.safe_load(path.read_text())["study"] == "tiny"
