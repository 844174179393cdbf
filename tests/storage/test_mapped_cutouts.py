"""Mapped cutouts are those that are read, also after their memory was given back; damage is found first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cutout_artefacts import write
from stampmaker import make_batch

from ripple.errors import IntegrityError
from ripple.storage.artefact import open_artefact
from ripple.storage.shards import RELEASE_ROWS, cutouts_of, mapped_cutouts


def _resident(path: Path) -> int:
    """KiB of a mapped file that are in the memory of this process."""
    lines, found = Path("/proc/self/smaps").read_text().splitlines(), 0
    for k, line in enumerate(lines):
        if line.endswith(str(path.resolve())):
            found += next(int(rest.split()[1]) for rest in lines[k:] if rest.startswith("Rss:"))
    return found


def test_rows_that_were_released_are_read_again_and_take_no_memory(tmp_path: Path) -> None:
    rows = 2 * RELEASE_ROWS + 5
    artefact = open_artefact(write(tmp_path / "cutouts", make_batch(rows, "gr", 32, 4), 4, rows))
    read, (mapped, release) = cutouts_of(artefact, 0), mapped_cutouts(artefact, 0)
    planes = [(getattr(mapped, name), getattr(read, name)) for name in ("image", "variance", "mask")]
    for mine, theirs in planes:
        np.testing.assert_array_equal(mine, theirs)
    before = _resident(artefact.shard_path(0))
    release(rows)
    # Pages at both ends of a plane hold other things, too.
    kib = sum(mine.nbytes for mine, _ in planes) / 1024
    assert before - _resident(artefact.shard_path(0)) > 0.98 * kib
    for mine, theirs in planes:
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(mapped.psf_index, read.psf_index)


def test_a_changed_byte_is_found_before_anything_is_used(tmp_path: Path) -> None:
    artefact = open_artefact(write(tmp_path / "cutouts", make_batch(3, "gr", 32, 4), 4))
    path = artefact.shard_path(0)
    mapped_cutouts(artefact, 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="shard-00000"):
        mapped_cutouts(artefact, 0)
