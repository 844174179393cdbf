"""Tutorials: percent scripts in docs/tutorial to notebooks (.ipynb) and, with --run, to pages with their outputs.

python scripts/tutorials.py          # docs/tutorial/*.ipynb, without outputs
python scripts/tutorials.py --run    # runs all of them in a temporary directory: *.md and figures/*.png
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorial"
#: Lines of an output that a page shows.
LINES = 24


@dataclass(frozen=True)
class Cell:
    """One cell: Markdown or code, with the tags of the notebook."""

    code: bool
    text: str
    tags: tuple[str, ...] = ()


@dataclass
class Output:
    """What a cell printed and showed: text, and PNG files with what they show."""

    text: str = ""
    pictures: list[tuple[bytes, str]] = field(default_factory=list)


def cells(script: str) -> list[Cell]:
    """The cells of a percent script; what stands before the first one is left out."""
    found = []
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)
    for kind, body in zip(parts[1::2], parts[2::2], strict=True):
        code = "[markdown]" not in kind
        lines = body.strip("\n").split("\n")
        # Markdown is commented out, so that the script runs as it is.
        text = "\n".join(lines if code else [re.sub(r"^# ?", "", line) for line in lines])
        tags = re.search(r"tags=(\[.*\])", kind)
        found.append(Cell(code, text, tuple(json.loads(tags[1])) if tags else ()))
    return found


def notebook(script: str) -> str:
    """The script as a Jupyter notebook without outputs; equal scripts give equal bytes."""

    def record(k: int, cell: Cell) -> dict[str, Any]:
        lines = cell.text.splitlines(keepends=True)
        if not cell.code:
            return {"cell_type": "markdown", "id": f"cell-{k}", "metadata": {}, "source": lines}
        return {
            "cell_type": "code", "execution_count": None, "id": f"cell-{k}",
            "metadata": {"tags": list(cell.tags)} if cell.tags else {}, "outputs": [], "source": lines,
        }  # fmt: skip

    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    body = {
        "cells": [record(k, cell) for k, cell in enumerate(cells(script))],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def run(script: str, name: str, space: dict[str, Any]) -> Iterator[tuple[Cell, Output]]:
    """Run the cells one after another in `space`, as a notebook does: the last expression is shown."""
    for k, cell in enumerate(cells(script)):
        output = Output()
        if cell.code:
            tree = ast.parse(cell.text, f"{name}, cell {k}")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, f"{name}, cell {k}", "exec"), space)
                value = None
                if last is not None:
                    assert isinstance(last, ast.Expr)
                    value = eval(compile(ast.Expression(last.value), f"{name}, cell {k}", "eval"), space)
            output.text = printed.getvalue()
            _show(value, output)
        yield cell, output


def _show(value: Any, output: Output) -> None:
    """Add what a notebook would show of the last expression."""
    if value is None:
        return
    if hasattr(value, "_repr_png_"):
        output.pictures.append((value._repr_png_(), "Figure"))
        return
    if hasattr(value, "savefig"):  # a figure of matplotlib
        drawn = io.BytesIO()
        value.savefig(drawn, format="png", dpi=120)
        output.pictures.append((drawn.getvalue(), "Figure"))
        return
    if hasattr(value, "colnames"):  # an astropy table
        output.text += "\n".join(value.pformat(max_lines=18, max_width=110)) + "\n"
        return
    output.text += repr(value) + "\n"
    shown = value._repr_html_() if hasattr(value, "_repr_html_") else ""
    found = re.search(r'base64,([A-Za-z0-9+/=]+)" alt="([^"]*)"', shown)
    if found:
        output.pictures.append((base64.b64decode(found[1]), found[2]))


def page(path: Path) -> str:
    """Run a script; its page in Markdown, with figures beside it."""
    text, number = [], 0
    for cell, output in run(path.read_text(), path.name, {"__name__": "__main__"}):
        if not cell.code:
            text.append(cell.text)
            continue
        text.append(f"```python\n{cell.text}\n```")
        if output.text:
            lines = [line.rstrip() for line in output.text.splitlines()]
            kept = lines[:LINES] + (["..."] if len(lines) > LINES else [])
            text.append("```text\n" + "\n".join(kept) + "\n```")
        for data, alt in output.pictures:
            number += 1
            figure = FOLDER / "figures" / f"{path.stem}-{number}.png"
            figure.parent.mkdir(exist_ok=True)
            figure.write_bytes(data)
            text.append(f"![{alt}](figures/{figure.name})")
    links = f"[the script]({path.name}), [the notebook]({path.stem}.ipynb)"
    made = f"*Written by `python scripts/tutorials.py --run` from {links}.*"
    return "\n\n".join([*text, made]) + "\n"


def main() -> None:
    scripts = sorted(FOLDER.glob("*.py"))
    for old in FOLDER.glob("figures/*.png") if "--run" in sys.argv else ():
        old.unlink()
    for path in scripts:
        path.with_suffix(".ipynb").write_text(notebook(path.read_text()))
    if "--run" not in sys.argv:
        return
    # One directory for all: they share the simulated survey.
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for path in scripts:
            path.with_suffix(".md").write_text(page(path))


if __name__ == "__main__":
    main()
