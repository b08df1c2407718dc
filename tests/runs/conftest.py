"""One tiny study, run once for all tests that only read it."""

import pytest
from plugins import own_registries  # noqa: F401
from runs.studies import sharpflat, write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The results folder of a finished study."""
    folder = tmp_path_factory.mktemp("tiny")
    metrics = [
        {"keskar_sharpness": {"epsilon": 1e-3}},
        {"keskar_sharpness": {"epsilon": 5e-4}},
        "hessian_top_eigenvalues",
    ]
    landscape = [{"line": {"points": 3, "chunk": 40}}]
    measure = {"chunk": 40, "metrics": metrics}
    path = write(folder, measure=measure, landscape=landscape, figures=None)
    outcome = sharpflat("run", path, "--root", folder / "results")
    assert outcome.code == 0, outcome
    return folder / "results"
