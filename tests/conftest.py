"""The strict session: eight virtual CPU devices, warnings are errors, jaxtyping annotations checked."""

import gc
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # by default XLA aborts after 40, on a loaded machine
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Keeps compiled programs in a folder of their own, also those of subprocesses, not in the user's."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        jax.config.update("jax_compilation_cache_dir", folder)
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
        for item in full:
            item.add_marker(pytest.mark.skip(reason="full tier: run with --full"))


def pytest_collection_finish(session):
    """Lets the garbage collector pass over what stays for the whole session: a sixth of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A folder of prepared sets, so that no test writes to the user's."""
    return tmp_path_factory.mktemp("tfds")
