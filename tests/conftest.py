"""The strict session: eight virtual CPU devices, warnings are errors, jaxtyping annotations checked."""

import gc
import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600 "  # by default 40, too few on a loaded machine
    "--xla_cpu_parallel_codegen_split_count=2 "  # each part of a program costs, and there are few cores
    "--xla_backend_optimization_level=1 "  # most programs run once, and are compiled for longer than they run
    + os.environ.get("XLA_FLAGS", "")  # the last of two flags counts
)
# With one thread for each device, XLA of jax 0.10 can wait for ever in a collective.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from jax._src.interpreters import partial_eval

if jax.__version_info__ < (0, 11):
    # For a message that nobody reads, it searches the whole program whenever nnx asks a traced value for its sharding.
    partial_eval.DynamicJaxprTracer._origin_msg = lambda tracer: ""


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(pytestconfig):
    """Keeps every compiled program in pytest's cache, for the other workers, the subprocesses and the next session."""
    settings = {
        "jax_compilation_cache_dir": str(pytestconfig.cache.mkdir("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the tests marked full")
    parser.addoption("--only-full", action="store_true", help="run what the quick tier leaves out")


def pytest_collection_modifyitems(config, items):
    quick, full = [], []
    for item in items:
        (full if item.get_closest_marker("full") else quick).append(item)
    if config.getoption("--only-full"):
        config.hook.pytest_deselected(items=quick)
        items[:] = full
    elif not config.getoption("--full"):
        config.hook.pytest_deselected(items=full)
        items[:] = quick


def pytest_collection_finish(session):
    """Lets the garbage collector pass over what stays for the whole session: a sixth of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng():
    """Numbers that do not depend on which tests came before."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A folder of prepared sets, so that no test writes to the user's."""
    return tmp_path_factory.mktemp("tfds")
