"""What loads when: the command line answers at once, and libraries come in only where they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ripple.cli import VERBS

HEAVY = ("torch", "lsst", "numba", "matplotlib", "galsim", "sklearn", "timm")


def loaded(code: str, *names: str) -> set[str]:
    """Which of `names` are loaded once `code` has run in a fresh process."""
    tail = f"import sys; print(*[n for n in {names!r} if n in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_import_ripple_loads_nothing_but_itself() -> None:
    assert loaded("import ripple", *HEAVY, "numpy", "scipy", "pyarrow", "h5py", "pydantic", "click") == set()


def test_help_loads_no_science() -> None:
    code = "from ripple.cli import run; run(['--help'])"
    assert loaded(code, *HEAVY, "numpy", "scipy", "pyarrow", "h5py", "astropy", "pydantic") == set()


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_loads_nothing_heavy(verb: str) -> None:
    code = f"from ripple.cli import run; run([{verb!r}, '--help'])"
    assert loaded(code, *HEAVY, "scipy.fft", "scipy.ndimage", "scipy.linalg", "pyarrow", "astropy") == set()


def test_the_public_names_that_write_need_no_torch() -> None:
    code = "import ripple; ripple.write_tensors, ripple.write_cutouts, ripple.open_artefact, ripple.verify"
    assert loaded(code, "torch", "lsst", "numba", "matplotlib") == set()
