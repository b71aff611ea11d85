"""Attention over positions and time."""
