"""What all tests share: strict JAX, and no writing outside temporary folders."""

import os
import signal

import jax
import pytest

from sharpflat.runs.setup import CACHE_VARIABLE, keep_compiled_programs

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 1)  # else the commands make it one a core
# Shells start what runs in the background with this signal ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def x64():
    """Double precision while the test lasts."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="session")
def one_cache_a_worker(tmp_path_factory):
    """Nothing is compiled twice, neither by modules nor by the processes that they start."""
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("compiled"))
    keep_compiled_programs()


@pytest.fixture(autouse=True, scope="module")
def free_compiled_programs():
    """Forget a module's programs: each holds memory maps, and Linux allows a process 65,530."""
    yield
    jax.clear_caches()
