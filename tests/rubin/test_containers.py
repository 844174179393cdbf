"""One CellCoadd in every container of `lsst.images`: the same coadd, and damage is one clear error."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cellfiles import make_cell_coadd, write_cell_coadd
from repos import make_repo

import ripple
from ripple.errors import Reason, UnreadableError, WriteError
from ripple.rubin.coadd import Coadd, PsfCells
from ripple.rubin.formats import containers
from ripple.rubin.open import open_coadd, open_coadd_sparse, open_dataset
from ripple.rubin.repository import open_repository
from ripple.rubin.skymap import read_projection
from ripple.sky.skymap import KNOWN

THROUGH_LSST = ["json", "sdf", "h5"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Suffix -> the same coadd in that container."""
    from lsst.images.cells import CellCoadd
    from lsst.images.serialization import read_archive, write_archive

    root = tmp_path_factory.mktemp("containers")
    plain = root / "coadd.fits"
    write_cell_coadd(plain, noise=1)
    coadd = read_archive(plain, CellCoadd)
    found = {"fits": plain, "fits.gz": root / "coadd.fits.gz"}
    found["fits.gz"].write_bytes(gzip.compress(plain.read_bytes()))
    for suffix in THROUGH_LSST:
        found[suffix] = root / f"coadd.{suffix}"
        write_archive(coadd, found[suffix])
    return found


def same(a: Coadd, b: Coadd) -> None:
    """Bit for bit the same coadd."""
    for plane in ("image", "variance", "mask"):
        np.testing.assert_array_equal(
            getattr(a, plane)().view(np.uint32), getattr(b, plane)().view(np.uint32)
        )
    assert isinstance(a.psf, PsfCells)
    assert isinstance(b.psf, PsfCells)
    np.testing.assert_array_equal(a.psf.kernels.view(np.uint32), b.psf.kernels.view(np.uint32))
    for field in ("box", "projection", "band", "mask_planes", "missing"):
        assert getattr(a, field) == getattr(b, field)


@pytest.mark.parametrize("suffix", ["fits.gz", *THROUGH_LSST])
def test_every_container_holds_the_same_coadd(written: dict[str, Path], suffix: str) -> None:
    path = written[suffix]
    ours = ripple.open_coadd(path)
    same(ripple.open_coadd(written["fits"]), ours)
    assert ours.missing
    assert ours.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert ours.bytes_read() == path.stat().st_size
    assert any("read through lsst.images" in note for note in ours.notes) == (suffix in THROUGH_LSST)


def test_content_counts_and_not_the_name(written: dict[str, Path]) -> None:
    # `lsst-images-admin reformat` writes plain FITS when it is asked for .fits.gz.
    data = written["fits"].read_bytes()
    same(open_coadd(data, name="x.json"), open_coadd(gzip.compress(data), name="x.fits"))


def test_ranges_of_another_container_are_the_whole_file(written: dict[str, Path]) -> None:
    data = written["sdf"].read_bytes()
    few = open_coadd_sparse(lambda at, n: data[at : at + n], name="x.sdf", size=len(data))
    same(few, ripple.open_coadd(written["fits"]))
    assert few.digest == hashlib.sha256(data).hexdigest()


def test_a_dataset_with_such_a_formatter_is_read_from_its_butler(tmp_path: Path) -> None:
    from lsst.daf.butler import Butler, Config, DatasetType

    skymap = KNOWN[1]
    make_repo(tmp_path / "repo", skymap, [(5063, 33)], digest=skymap.sha1())
    formatter = {"formatter": "lsst.images.formatters.GenericFormatter", "parameters": {"format": "json"}}
    config = Config(str(tmp_path / "repo" / "butler.yaml"))
    config["datastore", "formatters", "CellCoadd"] = formatter
    config.dumpToUri(str(tmp_path / "repo" / "butler.yaml"))
    with Butler.from_config(str(tmp_path / "repo"), writeable=True, run="run") as butler:
        kind = DatasetType(
            "deep_coadd", ("skymap", "tract", "patch", "band"), "CellCoadd", universe=butler.dimensions
        )
        butler.registry.registerDatasetType(kind)
        butler.registry.insertDimensionData(
            "instrument",
            {"name": "C", "detector_max": 1, "visit_max": 1, "exposure_max": 1, "class_name": "x"},
        )
        butler.registry.insertDimensionData(
            "physical_filter", {"instrument": "C", "name": "r_C", "band": "r"}
        )
        butler.put(make_cell_coadd(), kind, skymap=skymap.name, tract=5063, patch=33, band="r")
    write_cell_coadd(tmp_path / "plain.fits")
    plain = ripple.open_coadd(tmp_path / "plain.fits")
    with open_repository(str(tmp_path / "repo"), ["run"]) as repository:
        (dataset,) = repository.datasets("deep_coadd", skymap.name, [5063], ["r"], None)
        assert dataset.uri.endswith(".json")
        assert read_projection(repository, dataset) == plain.projection
    for sparse in (False, True):
        same(open_dataset(dataset, sparse, repo=str(tmp_path / "repo")), plain)


def test_units_are_checked_as_in_fits(tmp_path: Path) -> None:
    from lsst.images.serialization import write_archive

    write_archive(make_cell_coadd(unit="uJy"), tmp_path / "unit.sdf")
    with pytest.raises(UnreadableError, match=r"unit\.sdf.*unit uJy") as caught:
        ripple.open_coadd(tmp_path / "unit.sdf")
    assert caught.value.reason is Reason.WRONG_UNIT


def test_other_objects_are_named(tmp_path: Path) -> None:
    from lsst.images.serialization import write_archive

    write_archive(make_cell_coadd().image, tmp_path / "image.json")
    with pytest.raises(UnreadableError, match=r"image\.json: data model image-.*not a cell_coadd"):
        ripple.open_coadd(tmp_path / "image.json")


@pytest.mark.parametrize("suffix", ["fits.gz", "json", "sdf"])
def test_a_file_that_is_cut_short_is_one_clear_error(written: dict[str, Path], suffix: str) -> None:
    data = written[suffix].read_bytes()
    with pytest.raises(UnreadableError, match=r"coadd: truncated or damaged, (gzip|lsst\.images) can"):
        open_coadd(data[: len(data) // 2], name="coadd")


def with_broken_projection(tree: Any) -> Any:
    """A JSON tree whose AST texts are cut in the middle."""
    if isinstance(tree, dict):
        return {key: with_broken_projection(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_broken_projection(value) for value in tree]
    return tree[: len(tree) // 2] if isinstance(tree, str) and "Begin " in tree else tree


def test_a_broken_projection_does_not_end_this_process(written: dict[str, Path]) -> None:
    tree = json.loads(written["json"].read_text())
    broken = with_broken_projection(tree)
    assert broken != tree
    with pytest.raises(UnreadableError, match=r"lsst\.images cannot read it"):
        open_coadd(json.dumps(broken).encode(), name="coadd.json")


def test_a_crash_of_lsst_images_is_an_unreadable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from crashes import segfault

    monkeypatch.setattr(containers, "_rewrite", segfault)
    with pytest.raises(UnreadableError, match=r"coadd\.sdf: .*worker was killed by SIGSEGV"):
        open_coadd(b"\x89HDF\r\n\x1a\n", name="coadd.sdf")


def test_gzip_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_MOST_BYTES", 1000)
    with pytest.raises(UnreadableError, match="more than 1000 bytes"):
        open_coadd(gzip.compress(bytes(2000)), name="bomb")
    with pytest.raises(UnreadableError, match="gzip inside gzip"):
        open_coadd(gzip.compress(gzip.compress(b"x")), name="matryoshka")


def test_a_full_disk_is_not_the_fault_of_the_file(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import lsst.images.fits

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lsst.images.fits, "write", full)
    with pytest.raises(WriteError, match="no room"):
        containers._rewrite((written["json"].read_bytes(), str(tmp_path / "coadd.fits"), "coadd.json"))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["fits.gz", "json", "sdf"])
def test_flipped_bytes_are_read_or_refused(written: dict[str, Path], suffix: str) -> None:
    rng, data = random.Random(suffix), written[suffix].read_bytes()
    for _ in range(40):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[rng.randrange(20, len(data))] ^= 1 << rng.randrange(8)
        with suppress(UnreadableError):
            coadd = open_coadd(bytes(damaged), name="coadd")
            coadd.image(), coadd.variance(), coadd.mask(), coadd.psf
