"""Pages as `write_directory` writes them, of made-up options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from ripple.config import Config
from ripple.storage.directory import write_directory


class PageConfig(Config):
    """Options of the made-up page."""

    verb: ClassVar[str] = "report"

    top: int = 3


def write_page(output: Path, build: Callable[[Path], None], *, top: int = 3) -> bool:
    """A page of made-up scores; False when it is there already."""
    return write_directory(output, "page", PageConfig(top=top), {"scores": "0" * 64}, build)
