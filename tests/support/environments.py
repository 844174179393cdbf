"""Virtual environments for packages that are not RIPPLe's, to see what others make of its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


def environment(directory: Path, packages: list[str], *, pinned: tuple[str, ...] = ()) -> Path:
    """The Python of a new environment; the test is skipped where the packages cannot be had.

    Parameters
    ----------
    directory
        Where to make it.
    packages
        Requirements.
    pinned
        Names whose versions are those of `constraints.txt`: large ones, which a cache then has.
    """
    python = directory / "bin" / "python"
    names = tuple(f"{name}==" for name in pinned)
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if names and line.startswith(names)]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "constraints.txt").write_text("\n".join(lines) + "\n")
    where = ["-c", str(directory / "constraints.txt"), *packages]
    uv = Path(sys.executable).parent / "uv"
    install = (
        [str(uv), "pip", "install", "--quiet", "--python", str(python), *where]
        if uv.exists()
        else [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *where]
    )
    for command in ([sys.executable, "-m", "venv", str(directory)], install):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{', '.join(packages)}: not installed within ten minutes")
        if done.returncode:
            pytest.skip(f"{', '.join(packages)} cannot be installed here: {done.stderr.strip()[-300:]}")
    return python


def run(python: Path, program: str, *arguments: Path, cwd: Path) -> str:
    """What a program prints; its warnings are errors of the test when it says so itself."""
    done = subprocess.run(
        [str(python), "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
