"""The README's code runs, and its table is that of the committed results."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sharpflat as sf
from sharpflat.registry import metrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(marker):
    (found,) = [text for text in BLOCKS if marker in text]
    return found


def test_measuring_own_weights(capsys):
    exec(compile(block("from_function"), "README", "exec"), {})
    sharpness, curvature = capsys.readouterr().out.splitlines()
    assert float(sharpness.split()[0]) > 0
    assert float(curvature.split()[0]) == pytest.approx(2, rel=0.5)  # 2 E[x²] of unit inputs


def test_adding_a_metric(tmp_path):
    source = block("@sf.metric")
    assert len([line for line in source.splitlines() if line.strip()]) <= 15
    (tmp_path / "my_metrics.py").write_text(source)
    from sharpflat.registry import load_plugin

    load_plugin(tmp_path / "my_metrics.py")
    try:
        exec(compile(block("from_function"), "README", "exec"), scope := {})
        estimate = sf.measure(scope["objective"], "average_rise", rho=0.1)
        # E f = tr(H)/2 · ρ²/p for a quadratic whose minimum is here.
        hessian = 2 * scope["inputs"].T @ scope["inputs"] / 200
        expected = 0.5 * float(hessian.trace()) * 0.1**2 / 5
        assert abs(estimate.value - expected) < 4 * estimate.standard_error
    finally:
        del metrics._entries["average_rise"]


def test_running_from_python(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(block("sf.run("), "README", "exec"), {})
    accuracy, sharpness = map(float, capsys.readouterr().out.split())
    assert 0 < accuracy < 1
    assert sharpness > 0


def experiment():
    path = ROOT / "experiments" / "keskar2017_generalization_gap.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_f1_table_is_generated_from_the_committed_results():
    script = experiment()
    assert (
        script.with_table(README, script.markdown(script.read_table(), script.read_measurements()))
        == README
    ), "README is out of date: python experiments/keskar2017_generalization_gap.py --readme"


@pytest.mark.parametrize(
    ("low", "high", "boundary", "verdict"),
    [(0.1, 1, 0, "reproduced"), (-1, -0.1, 0, "contradicted"), (-1, 1, 0, "not resolved"),
     (float("nan"), float("nan"), 0, "not resolved"), (1.5, 2, 1, "reproduced")],
)  # fmt: skip
def test_verdicts(low, high, boundary, verdict):
    assert experiment().judged(low, high, boundary) == verdict


def test_every_config_is_valid():
    configs = sorted((ROOT / "configs").rglob("*.yaml"))
    assert len(configs) >= 7
    for path in configs:
        config = sf.load_config(path)
        assert config.study == path.stem if path.parent.name == "configs" else True
        assert config.measures[0].metrics


def test_help_does_not_import_jax():
    code = "import sys, sharpflat.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
