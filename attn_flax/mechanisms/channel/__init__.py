"""Attention over channels: what to look at."""
