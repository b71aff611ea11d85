"""Collected by tests/test_refusals.py alone, in a process without run-time type checks."""

import os

collect_ignore_glob = [] if os.environ.get("REFUSALS") else ["*"]
