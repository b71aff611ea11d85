"""Compiled programs, kept between processes."""

import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, for small programs too, unless JAX_COMPILATION_CACHE_DIR names it.

    It lies in XDG_CACHE_HOME, by default ~/.cache, under attn_flax.
    """
    if not jax.config.jax_compilation_cache_dir:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "attn_flax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
