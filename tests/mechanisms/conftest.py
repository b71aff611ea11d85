"""Mechanisms against their papers: all of them in the full tier, some in the quick one."""

import pytest

QUICK = {
    "test_article",
    "test_cbam",
    "test_eca",
    "test_frameworks",
    "test_gate",
    "test_layers",
    "test_non_local",
    "test_se",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "mechanisms" in item.path.parts and "tests" in item.path.parts and item.path.stem not in QUICK:
            item.add_marker(pytest.mark.full)
