"""Pictures of the user as sources for `inject`: lensed like a profile, and refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from cutout_artefacts import write

from ripple.cli import run
from ripple.errors import CatalogueError
from ripple.imaging.batch import MASK_PLANES, CutoutBatch
from ripple.imaging.simulation.lensed import Picture, light, picture_light
from ripple.imaging.simulation.lensing import Deflector
from ripple.imaging.simulation.observing import moffat
from ripple.imaging.simulation.profiles import Lensed, Sersic, sersic_b
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.inject import inject_batch
from ripple.stages.inject.lenses import read_lenses
from ripple.stages.inject.sources import Sources, read_sources

SIZE = 96


def disk(size: int, re: float, q: float = 0.7) -> np.ndarray:
    """An exponential disk along x, `re` in its pixels."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.asarray(np.exp(-sersic_b(1.0) * (np.hypot(x, y / q) / re - 1.0)), np.float32)


def written(path: Path, cube: Any, rows: list[dict[str, float]], **more: Any) -> Path:
    """A file of pictures; `bands`: the header card, `psf`: an image."""
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.asarray(cube)), fits.table_to_hdu(Table(rows))]
    if "bands" in more:
        hdus[1].header["BANDS"] = more["bands"]
    if "psf" in more:
        hdus.append(fits.ImageHDU(more["psf"], name="PSF"))
    fits.HDUList(hdus).writeto(path)
    return path


ROW = {"pixel_scale": 0.05, "mag_g": 24.0, "mag_r": 23.5, "psf_fwhm": 0.1}


def read(path: Path) -> Sources:
    return read_sources(path, ("g", "r"))


def test_a_picture_of_a_profile_is_lensed_as_the_profile() -> None:
    lens = Deflector(7.0, 0.8, 0.3, 0.03, -0.02)
    plane = disk(128, 8.0)
    picture = Picture(plane[None] / plane.sum(), 5.0, 0.6, 1.5, -0.8)
    profile = Lensed(lens, Sersic(1.0, 1.6, 0.7, 0.6, 1.5, -0.8))
    found = picture_light(lens, picture, SIZE, 0.2, -0.3)[0]
    expected = light(profile, SIZE, 0.2, -0.3)
    assert picture.half_light == pytest.approx(1.6 * np.sqrt(0.7), rel=0.05)
    assert found[0, 0].real == pytest.approx(expected[0, 0].real, rel=3e-3)
    # What a PSF of 4 px leaves through.
    kernel = np.zeros((SIZE, SIZE))
    kernel[:41, :41] = moffat(41, 4.0, 0.0, 0.0)
    a, b = (np.fft.irfft2(f * np.fft.rfft2(kernel)) for f in (found, expected))
    assert np.abs(a - b).max() < 0.01 * b.max()


def test_flux_without_a_lens() -> None:
    plane = disk(61, 5.0)
    picture = Picture(np.stack([plane, plane**2]) / np.array([plane.sum(), (plane**2).sum()])[:, None, None],
                      4.0, 1.0, 2.0, 3.0)  # fmt: skip
    out = picture_light(Deflector(1e-6, 0.9, 0.0), picture, 64, 0.0, 0.0)
    np.testing.assert_allclose(out[:, 0, 0].real, 1.0, rtol=3e-3)


def test_reading(tmp_path: Path) -> None:
    cube = np.stack([np.stack([disk(21, r), 3 * disk(21, r), disk(21, r)]) for r in (2.0, 3.0)])
    rows = [{k: v for k, v in ROW.items() if k != "psf_fwhm"}] * 2
    psf = moffat(15, 3.0, 0.0, 0.0).astype(np.float32)
    found = read(written(tmp_path / "a.fits", cube, rows, bands="r,i,g", psf=psf))
    assert found.planes.shape == (2, 2, 21, 21)
    np.testing.assert_allclose(found.planes.sum(axis=(2, 3)), 1.0, rtol=1e-5)
    large = [{**row, "pixel_scale": 0.12} for row in rows]
    with pytest.raises(CatalogueError, match=r"FWHM of its PSF, arcsec, is 0\.36"):
        read(written(tmp_path / "large.fits", cube, large, bands="r,i,g", psf=psf))
    cube[0, 0, 3, 3] = np.nan
    wide = {**ROW, "psf_fwhm": 0.8}
    found = read(written(tmp_path / "b.fits", cube[:, 0], [ROW, ROW]))
    assert found.refused == ("its picture has pixels without a value", "")
    assert found.usable.tolist() == [1]
    with pytest.raises(CatalogueError, match=r"FWHM of its PSF, arcsec, is 0\.8"):
        read(written(tmp_path / "c.fits", cube[1:, 0], [wide]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": [{k: v for k, v in ROW.items() if k != "mag_r"}]}, "no column 'mag_r'"),
        ({"rows": [{k: v for k, v in ROW.items() if k != "pixel_scale"}]}, "no column 'pixel_scale'"),
        ({"rows": [{k: v for k, v in ROW.items() if k != "psf_fwhm"}]}, "how sharp"),
        ({"rows": [ROW, ROW]}, "1 pictures, but 2 rows"),
        ({"cube": disk(9, 2.0)}, "no HDU with an image"),
        ({"cube": np.zeros((1, 9, 9), np.float32)}, "no light"),
        ({"cube": np.ones((1, 2, 9, 9), np.float32)}, "the card BANDS is ''"),
        ({"cube": np.ones((1, 2, 9, 9), np.float32), "bands": "g,i"}, "no pictures in band 'r'"),
    ],
)
def test_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    given = {"cube": disk(9, 2.0)[None], "rows": [ROW]} | change
    with pytest.raises(CatalogueError, match=said):
        read(written(tmp_path / "s.fits", given.pop("cube"), given.pop("rows"), **given))


def test_no_fits(tmp_path: Path) -> None:
    (tmp_path / "x.fits").write_text("no file of pictures")
    with pytest.raises(CatalogueError, match="cannot be read as a FITS file of pictures"):
        read(tmp_path / "x.fits")
    # What astropy raises for a broken card is none of Python's own errors.
    data = bytearray(written(tmp_path / "whole.fits", disk(9, 2.0)[None], [ROW]).read_bytes())
    data[data.index(b"TFORM1  = '") + len("TFORM1  = '")] = 0
    (tmp_path / "card.fits").write_bytes(bytes(data))
    with pytest.raises(CatalogueError, match="cannot be read as a FITS file of pictures: Unparsable card"):
        read(tmp_path / "card.fits")
    with pytest.raises(CatalogueError, match="cannot be read"):
        read(tmp_path / "absent.fits")


def blank(n: int) -> CutoutBatch:
    """Sky in g and r with one PSF."""
    shape = (n, 2, 64, 64)
    rng = np.random.default_rng(4)
    catalog: dict[str, np.ndarray[Any, Any]] = {
        "index": np.arange(n, dtype=np.int64), "id": np.arange(n), "ra": np.zeros(n), "dec": np.zeros(n),
        "dx": np.zeros(n, np.float32), "dy": np.zeros(n, np.float32),
    }  # fmt: skip
    psf = moffat(41, 4.0, 0.0, 0.0).astype(np.float32)[None]
    return CutoutBatch(
        ("g", "r"), rng.standard_normal(shape).astype(np.float32), np.ones(shape, np.float32),
        np.zeros(shape, np.uint32), MASK_PLANES, psf, np.zeros((n, 2), np.int32), catalog,
    )  # fmt: skip


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arcs have the magnitudes of the file times their magnification; the same bytes whatever the workers."""
    cutouts = str(write(tmp_path / "cutouts", blank(8), 0))
    path = written(tmp_path / "s.fits", [disk(31, 3.0), disk(31, 5.0)], [ROW, {**ROW, "mag_g": 25.0}])
    argv = ["inject", cutouts, "--sources", str(path), "--fraction", "1", "--theta-max", "1.2", "-q"]
    for name, workers in (("a", "0"), ("b", "2")):
        assert run([*argv, "--workers", workers, "-o", str(tmp_path / name)]) == 0
    for file in ("shard-00000.h5", "shard-00001.h5", "index.parquet", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    rows = [row for row in pq.read_table(tmp_path / "a" / "index.parquet").to_pylist() if row["injected"]]
    assert {row["source_row"] for row in rows} == {0, 1}
    for row in rows:
        expected = (24.0, 25.0)[row["source_row"]] - 2.5 * np.log10(row["magnification"])
        assert row["arc_mag_g"] == pytest.approx(expected, abs=0.02)
    assert run([*argv, "--set", "source_faint=26", "-o", str(tmp_path / "c")]) == 2
    assert "source_faint is for drawn sources" in capsys.readouterr().err


GIVEN = {
    "theta_E": 1.3, "q": 0.7, "phi": 30.0, "gamma1": 0.03, "gamma2": -0.02, "x_lens": 0.1, "y_lens": -0.05,
    "x_source": 0.25, "y_source": 0.1, "phi_source": -40.0, "z_lens": 0.5, "z_source": 1.4,
}  # fmt: skip


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    Table(rows).write(path, format="ascii.csv")
    return path


def test_lenses_of_a_table_with_pictures(tmp_path: Path) -> None:
    """A picture of a profile at its place, turned by its angle, makes the arcs of the profile."""
    picture = disk(128, 8.0, 0.6)
    path = written(tmp_path / "s.fits", [disk(128, 2.0), picture], [{**ROW, "id": 7}, {**ROW, "id": 9}])
    sources = read(path)
    batch, config = blank(1), InjectConfig(fraction=1.0)
    pictured = read_lenses(table(tmp_path / "p.csv", [{**GIVEN, "source_id": 9}]), ("g", "r"), sources)
    light = {"R_source": 0.4, "q_source": 0.6, "n_source": 1.0, "mag_g": 24.0, "mag_r": 23.5}
    profiles = read_lenses(table(tmp_path / "l.csv", [GIVEN | light]), ("g", "r"))
    found, expected = (np.zeros(batch.image.shape, np.float32) for _ in range(2))
    out = inject_batch(batch, config, pictured, keep=found, sources=sources).catalog
    other = inject_batch(batch, config, profiles, keep=expected).catalog
    assert out["source_row"].tolist() == [1]
    for name in ("theta_E", "z_lens", "z_source", "images"):
        assert out[name][0] == other[name][0]
    assert out["magnification"][0] == pytest.approx(other["magnification"][0], rel=5e-3)
    assert np.abs(found - expected).max() < 0.015 * expected.max()


def test_tables_that_do_not_fit_the_pictures(tmp_path: Path) -> None:
    path = written(tmp_path / "s.fits", [disk(31, 3.0), disk(31, 3.0)], [ROW, {**ROW, "mag_g": 99.0}])
    sources = read(path)

    with pytest.raises(CatalogueError, match="no column 'source_id'"):
        read_lenses(table(tmp_path / "none.csv", [GIVEN]), ("g", "r"), sources)
    with pytest.raises(CatalogueError, match="column 'mag_g', but the source is a picture"):
        read_lenses(
            table(tmp_path / "mag.csv", [{**GIVEN, "source_id": 0, "mag_g": 22.0}]), ("g", "r"), sources
        )
    rows = [{**GIVEN, "source_id": k} for k in (0, 1, 5)]
    found = read_lenses(table(tmp_path / "ids.csv", rows), ("g", "r"), sources)
    assert found.refused == ("", "source 1: mag_g is 99, not from 10 to 40", "no source has the id 5")
    twice = read(written(tmp_path / "t.fits", [disk(31, 3.0)] * 2, [{**ROW, "id": 0}] * 2))
    assert len(twice.usable) == 2
    with pytest.raises(CatalogueError, match="several sources have the id 0"):
        read_lenses(table(tmp_path / "one.csv", rows[:1]), ("g", "r"), twice)


def test_the_verb_with_lenses_and_pictures(tmp_path: Path) -> None:
    cutouts = str(write(tmp_path / "cutouts", blank(4), 0))
    path = written(tmp_path / "s.fits", [disk(31, 3.0)], [ROW])
    lenses = table(tmp_path / "l.csv", [{**GIVEN, "id": k, "source_id": 5 * (k == 2)} for k in (1, 2)])
    argv = ["inject", cutouts, "--sources", str(path), "--lenses", str(lenses), "--workers", "0", "-q"]
    assert run([*argv, "-o", str(tmp_path / "a")]) == 0
    rows = {
        row["id"]: row
        for row in pq.read_table(tmp_path / "a" / "index.parquet").to_pylist()
        if row["shard"] >= 0
    }
    assert rows[1]["injected"] == 1
    assert (rows[1]["lens_row"], rows[1]["source_row"]) == (0, 0)
    assert rows[2]["not_injected"] == "lens: no source has the id 5"
    assert rows[3]["not_injected"] == "no lens has its id"
