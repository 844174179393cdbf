"""The reference pages say what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ripple.cli import VERBS

ROOT = Path(__file__).resolve().parents[2]


def _pages() -> ModuleType:
    path = ROOT / "scripts" / "reference_pages.py"
    spec = importlib.util.spec_from_file_location("reference_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = _pages()


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    written = (ROOT / "docs" / "reference" / name).read_text()
    assert written == pages.PAGES[name](), "run python scripts/reference_pages.py"


def test_nothing_is_without_a_word() -> None:
    """Every verb, option, flag and reason has its line, and the line says something."""
    assert [v for v in VERBS if f"### ripple {v}\n" not in pages.command_line()] == []
    rows = [line for make in pages.PAGES.values() for line in make().splitlines() if line.startswith("| ")]
    assert len(rows) > 300
    assert [row for row in rows if row.split("|")[-2].strip() in ("", "None")] == []
