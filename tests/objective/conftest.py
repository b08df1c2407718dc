"""Data for the tests of objectives."""

import jax.numpy as jnp
import numpy as np
import pytest
from objective.problems import N


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(N, 5)), jnp.float32), jnp.asarray(rng.integers(0, 3, N))
