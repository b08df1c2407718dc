"""Threads of our own, with the settings of the thread that makes them: JAX's are a thread's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax

CONTEXTS: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "jax_enable_x64": jax.enable_x64,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_debug_nans": jax.debug_nans,
    "jax_default_device": jax.default_device,
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_threefry_partitionable": jax.threefry_partitionable,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_debug_infs": jax.debug_infs,
}


def settings() -> Callable[[], AbstractContextManager[None]]:
    """What is set in this thread, as a context for another: it holds until the context ends."""
    here = {name: getattr(jax.config, name) for name in CONTEXTS}

    @contextlib.contextmanager
    def there() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, value in here.items():
                stack.enter_context(CONTEXTS[name](value))
            yield

    return there
