"""Files that are whole or not there."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replaces the file by one with this text; a process that dies meanwhile leaves the file as it was."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)
