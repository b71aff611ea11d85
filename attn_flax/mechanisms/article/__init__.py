"""The mechanism and the gate of the article that this library started from."""
