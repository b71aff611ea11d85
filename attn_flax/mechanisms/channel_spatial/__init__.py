"""Attention over channels and positions."""
