"""Attention over time: when to look."""
