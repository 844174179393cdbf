"""Blocks of shell and Python in the documents: fenced ones, and indented ones that begin with a command."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

#: How an indented block of shell begins.
_COMMAND = re.compile(r"(ripple|torchrun|pip|uv|python|conda|dask|\./scripts/\w+|scripts/\w+|export|eval) ")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block: where it is, `sh` or `python`, and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a block of shell, without comments, each on one line."""
        whole = re.sub(r"\\\n\s*", " ", self.text)
        lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in whole.splitlines())
        return [line for line in lines if line]


def made(commands: list[str]) -> set[str]:
    """Names of what commands write: they must not be there before."""
    out = set()
    for command in commands:
        words = shlex.split(command)
        out |= {words[k + 1] for k, word in enumerate(words[:-1]) if word in ("-o", "--output")}
        out |= {words[2]} if words[:2] == ["ripple", "simulate"] else set()
    return out


def blocks() -> list[Block]:
    """All blocks of the documents, in order."""
    found = []
    for page in PAGES:
        text, name = page.read_text(), str(page.relative_to(ROOT))
        for match in _FENCE.finditer(text):
            language = {"bash": "sh", "shell": "sh", "console": "sh"}.get(match[1], match[1])
            if language in ("sh", "python"):
                found.append(Block(name, text[: match.start()].count("\n") + 1, language, match[2]))
        bare = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
        for match in _INDENTED.finditer(bare):
            lines = re.sub(r"^    ", "", match[0], flags=re.MULTILINE)
            if _COMMAND.match(lines):
                found.append(Block(name, bare[: match.start()].count("\n") + 1, "sh", lines))
    return found
