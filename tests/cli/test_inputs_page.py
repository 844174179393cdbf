"""docs/reference/inputs.md says what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("inputs_page", ROOT / "scripts" / "inputs_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "reference" / "inputs.md").read_text()
    assert written == module.page(), "run python scripts/inputs_page.py"
