"""Attention over branches: which of several transforms."""
