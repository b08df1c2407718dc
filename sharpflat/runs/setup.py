"""Before any work: registries filled, compiled programs kept between starts."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
from pathlib import Path

import jax
import jaxlib
import platformdirs

from sharpflat.registry import load_installed_plugins
from sharpflat.runs.provenance import processor
from sharpflat.validation import InputError

CACHE_VARIABLE = "SHARPFLAT_COMPILATION_CACHE"


def fill_registries() -> None:
    """Import every room that registers something, and installed plugins.

    Figures too, by name as plugins are: a config may ask for them, though no run uses `plots`.
    """
    for room in ("data", "networks", "training", "sharpness", "plots"):
        importlib.import_module(f"sharpflat.{room}")
    load_installed_plugins()


def check_devices() -> None:
    """Refuse a platform that there is not.

    Raises:
        InputError: names it.
    """
    try:
        jax.devices()
    except Exception as error:
        asked = os.environ.get("JAX_PLATFORMS", "any platform")
        why = f": {error}" if str(error) else ""
        raise InputError(f"JAX_PLATFORMS: JAX finds no device for {asked!r} here{why}") from None


def use_all_cores() -> None:
    """Make every core of the CPU a device, so that runs can be trained one on each.

    Nothing changes where the number was chosen before (`JAX_NUM_CPU_DEVICES`), or JAX has begun.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if getattr(jax.config, "jax_num_cpu_devices", 0) > 0 or chosen:
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", _cores())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_compiled_programs() -> Path | None:
    """Let XLA's programs outlive the process; the folder, or None if it is turned off.

    `SHARPFLAT_COMPILATION_CACHE` names another folder, or `off`. A cache that the user gave JAX
    is left alone. The folder is one of this jaxlib and processor: programs do not travel.
    """
    setting = os.environ.get(CACHE_VARIABLE, "")
    if setting == "off" or getattr(jax.config, "jax_compilation_cache_dir", None):
        return None
    machine = hashlib.sha256(processor().encode()).hexdigest()[:8]
    base = Path(setting) if setting else Path(platformdirs.user_cache_dir("sharpflat")) / "xla"
    folder = base / f"jaxlib-{jaxlib.__version__}-{machine}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder
