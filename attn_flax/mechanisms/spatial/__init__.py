"""Attention over positions: where to look."""
