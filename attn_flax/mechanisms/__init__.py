"""The attention mechanisms, one file each: its equation as a pure function, then its Module."""
