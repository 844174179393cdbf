"""A catalogue in GalSim's layout as sources for `inject`, colours of spectra, and masses from light."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.cosmology import FlatLambdaCDM
from astropy.io import fits
from astropy.table import Table
from cutout_artefacts import write
from test_inject_sources import blank, disk

from ripple.cli import run
from ripple.errors import CatalogueError, ConfigError
from ripple.imaging.simulation.lensing import einstein_radius
from ripple.imaging.simulation.observing import moffat
from ripple.stages.inject import masses
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.inject import inject_batch
from ripple.stages.inject.masses import absolute_r, radius_of_mass, velocity_dispersions
from ripple.stages.inject.sources import Sources, read_sources
from ripple.stages.inject.spectra import ab_magnitudes, read_spectrum, spectrum_file
from ripple.stages.inject.stamps import Stamps, isolated

galsim = pytest.importorskip("galsim")
BANDS, SIGMA = ("g", "r"), 2e-3
Z = (0.9, 1.6, 2.4)


def catalogue(folder: Path, drop: str = "", **change: Any) -> Path:
    """Three disks in two files, their PSF, and a table with the columns of the COSMOS sample."""
    rng = np.random.default_rng(3)
    pictures = []
    for k, size in enumerate((61, 81, 101)):
        light = disk(size, 4.0 + 2.0 * k)
        noise = SIGMA * rng.standard_normal(light.shape)
        pictures.append(fits.ImageHDU((light / light.max() + noise).astype(np.float32)))
    fits.HDUList([fits.PrimaryHDU(), *pictures[:2]]).writeto(folder / "images_n1.fits")
    fits.HDUList([fits.PrimaryHDU(), pictures[2]]).writeto(folder / "images_n2.fits")
    psf = moffat(25, 3.3, 0.0, 0.0).astype(np.float32)
    wide = moffat(61, 14.0, 0.0, 0.0).astype(np.float32)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(psf), fits.ImageHDU(wide)]).writeto(folder / "psf.fits")
    columns: dict[str, Any] = {
        "IDENT": [101, 202, 303], "RA": [150.0] * 3, "DEC": [2.0] * 3, "MAG": [22.0, 23.0, 24.0],
        "BAND": ["F814W"] * 3, "WEIGHT": [1.0, 2.0, 3.0],
        "GAL_FILENAME": ["images_n1.fits", "images_n1.fits", "images_n2.fits"], "GAL_HDU": [1, 2, 1],
        "PSF_FILENAME": ["psf.fits"] * 3, "PSF_HDU": [1] * 3, "PIXEL_SCALE": [0.03] * 3,
        "NOISE_MEAN": [0.0] * 3, "NOISE_VARIANCE": [SIGMA**2] * 3,
    }  # fmt: skip
    columns = {name: v for name, v in columns.items() if name != drop} | change
    path = folder / "real_galaxy_catalog_test.fits"
    Table(columns).write(path)
    fits_of = {"IDENT": columns.get("IDENT", [1, 2, 3]), "zphot": list(Z)}
    if drop != "zphot":
        Table(fits_of).write(folder / "real_galaxy_catalog_test_fits.fits")
    return path


def read(path: Path, sed: str = "CWW_Scd_ext") -> Sources:
    read_sources.cache_clear()
    return read_sources(path, BANDS, sed)


@pytest.mark.parametrize("name", ["CWW_E_ext", "CWW_Im_ext"])
def test_magnitudes_are_those_of_galsim(name: str) -> None:
    bands = (*"ugrizy", "F814W", "F606W")
    z = np.array([0.05, 0.8, 1.7, 3.0])
    found = ab_magnitudes(read_spectrum(spectrum_file(name)), z, bands)
    sed = galsim.SED(f"{name}.sed", "Ang", "flambda")
    for k, at in enumerate(z):
        files = [f"LSST_{b}.dat" if len(b) == 1 else f"ACS_wfc_{b}.dat" for b in bands]
        curves = [galsim.Bandpass(file, "nm").withZeropoint("AB") for file in files]
        theirs = np.array([sed.atRedshift(at).calculateMagnitude(curve) for curve in curves])
        # Colours, against F814W; our curves end where they fall to 1e-3 of their peak.
        np.testing.assert_allclose(found[k] - found[k, 6], theirs - theirs[6], atol=0.01)


def test_a_flat_spectrum_has_no_colour(tmp_path: Path) -> None:
    """AB: the same flux per frequency, so per wavelength as its square, has the same magnitude everywhere."""
    wave = np.arange(1000.0, 20000.0, 10.0)
    np.savetxt(tmp_path / "flat.txt", np.stack([wave, wave**-2.0], 1))
    mags = ab_magnitudes(read_spectrum(tmp_path / "flat.txt"), np.array([0.0, 1.0]), tuple("ugrizy"))
    np.testing.assert_allclose(mags - mags[:, :1], 0.0, atol=2e-4)
    # It ends at 2 micron, at a redshift of 0; a band beyond its blue end is unknown.
    assert np.isnan(ab_magnitudes(read_spectrum(tmp_path / "flat.txt"), np.array([5.0]), ("u",))).all()


def test_reading_what_galsim_reads(tmp_path: Path) -> None:
    path = catalogue(tmp_path)
    found = read(path)
    theirs = galsim.RealGalaxyCatalog(path.name, dir=str(tmp_path))
    assert [*found.ids] == theirs.ident == ["101", "202", "303"]
    np.testing.assert_allclose(found.z, Z)
    assert found.weight is not None
    np.testing.assert_allclose(found.weight / found.weight.max(), theirs.weight)
    assert {p.name for p in found.files()} == {"images_n1.fits", "images_n2.fits", "psf.fits"}
    sed = galsim.SED("CWW_Scd_ext.sed", "Ang", "flambda")
    for k in range(3):
        seen = sed.atRedshift(Z[k]).withMagnitude(
            theirs.mag[k], galsim.Bandpass("ACS_wfc_F814W.dat", "nm").withZeropoint("AB")
        )
        expected = [
            seen.calculateMagnitude(galsim.Bandpass(f"LSST_{b}.dat", "nm").withZeropoint("AB")) for b in BANDS
        ]
        np.testing.assert_allclose(found.mags[k], expected, atol=0.01)
        plane, image = found.planes[k], theirs.getGalImage(k).array
        assert plane.shape == (1, *image.shape)
        assert plane.sum() == pytest.approx(1.0, abs=1e-5)
        inside = plane[0] != 0
        np.testing.assert_allclose(plane[0][inside] * image[inside].sum(), image[inside], rtol=1e-4)
    drawn = [found.draw(np.random.default_rng(k)) for k in range(600)]
    np.testing.assert_allclose(np.bincount(drawn) / 600, [1 / 6, 2 / 6, 3 / 6], atol=0.07)
    assert {found.draw(np.random.default_rng(k), 1.0) for k in range(30)} == {1, 2}
    assert found.draw(np.random.default_rng(0), 3.0) == -1


def test_the_galaxy_without_its_surroundings() -> None:
    light = disk(101, 6.0)
    image = light / light.max()
    other = np.roll(image, (38, 38), (0, 1))  # a neighbour in the corner
    noisy = image + other + 5e-3 * np.random.default_rng(1).standard_normal(image.shape)
    alone = isolated(noisy, 5e-3)
    assert (alone[75:, 75:] == 0).all()
    assert (alone[:20] == 0).all()
    assert alone.sum() == pytest.approx(image.sum(), rel=0.05)
    assert isolated(np.zeros((30, 30)), 1.0).sum() == 0


@pytest.mark.parametrize(
    ("drop", "change", "sed", "said"),
    [
        ("MAG", {}, "CWW_Scd_ext", "no column 'mag'"),
        ("NOISE_VARIANCE", {}, "CWW_Scd_ext", "no column 'noise_variance'"),
        ("", {}, "", "nothing says the colours of its galaxies in g, r"),
        ("zphot", {}, "CWW_Scd_ext", "nothing says the redshifts"),
        ("", {"z": [1.0] * 3, "zphot": [1.0] * 3}, "CWW_Scd_ext", "'z' and 'zphot' say the same"),
        ("", {"sed": ["CWW_Im_ext"] * 3}, "CWW_Scd_ext", "a column sed and --source-sed both say"),
        ("", {"mag_g": [24.0] * 3}, "", "no column 'mag_r'"),
        ("", {"BAND": ["F999W"] * 3}, "CWW_Scd_ext", "throughput of band 'F999W' is not known"),
        ("", {"GAL_FILENAME": ["../n1.fits"] * 3}, "CWW_Scd_ext", r"'\.\./n1\.fits' is not beside"),
    ],
)
def test_refused_by_name(tmp_path: Path, drop: str, change: dict[str, Any], sed: str, said: str) -> None:
    with pytest.raises(CatalogueError, match=said):
        read(catalogue(tmp_path, drop, **change), sed)


def test_unknown_spectra(tmp_path: Path) -> None:
    path = catalogue(tmp_path)
    with pytest.raises(ConfigError, match="no spectrum 'CWW_Q'"):
        read(path, "CWW_Q")
    (tmp_path / "bad.sed").write_text("1 2 3\n")
    with pytest.raises(CatalogueError, match="two columns"):
        read(path, str(tmp_path / "bad.sed"))
    np.savetxt(tmp_path / "down.sed", [[2.0, 1.0], [1.0, 1.0]])
    with pytest.raises(CatalogueError, match="must rise"):
        read(path, str(tmp_path / "down.sed"))


def test_single_galaxies_are_refused_with_the_reason(tmp_path: Path) -> None:
    change = {"PSF_HDU": [2, 1, 7], "MAG": [22.0, np.nan, 24.0]}
    found = read(catalogue(tmp_path, **change))
    assert found.refused[0] == found.refused[2] == ""
    assert found.refused[1].startswith("mag_g is nan")
    assert isinstance(found.planes, Stamps)
    with pytest.raises(CatalogueError, match=r"FWHM of its PSF, arcsec, is 0\.4"):
        found.planes[0]
    with pytest.raises(CatalogueError, match=r"HDU 7 of psf\.fits cannot be read"):
        found.planes[2]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arcs in all bands have the colours of the spectrum; a galaxy that cannot be painted stops nobody."""
    cutouts = str(write(tmp_path / "cutouts", blank(24), 0, 8))
    path = catalogue(tmp_path, PSF_HDU=[1, 1, 2])
    argv = ["inject", cutouts, "--sources", str(path), "--fraction", "1", "--theta-max", "1.2", "-q"]
    argv += ["--source-sed", "CWW_Scd_ext"]
    assert run([*argv, "--workers", "0", "-o", str(tmp_path / "a")]) == 0
    rows = pq.read_table(tmp_path / "a" / "index.parquet").to_pylist()
    expected = read(path).mags
    painted = [row for row in rows if row["injected"]]
    assert {row["source_row"] for row in painted} == {0, 1}
    for row in painted:
        mags = expected[row["source_row"]] - 2.5 * np.log10(row["magnification"])
        np.testing.assert_allclose([row["arc_mag_g"], row["arc_mag_r"]], mags, atol=0.03)
    wide = [row["not_injected"] for row in rows if row["shard"] >= 0 and not row["injected"]]
    assert wide
    assert all(why.startswith("source 2: the FWHM of its PSF") for why in wide)
    assert run(["inject", cutouts, "--source-sed", "CWW_E_ext", "-o", str(tmp_path / "c"), "-q"]) == 2
    assert "source_sed is for a catalogue of sources" in capsys.readouterr().err


def test_masses_of_hosts_and_redshifts_of_sources(tmp_path: Path) -> None:
    """With --theta-from the source lies behind the host, at the redshift of its picture."""
    batch = blank(20)
    z = np.linspace(0.3, 2.6, 20)
    cutouts = str(
        write(tmp_path / "cutouts", replace(batch, catalog=batch.catalog | {"z_lens": z}), 0, 20, ("z_lens",))
    )
    argv = ["inject", cutouts, "--sources", str(catalogue(tmp_path)), "--source-sed", "CWW_Im_ext", "-q"]
    argv += ["--fraction", "1", "--theta-from", "300", "--theta-min", "0.2", "--workers", "0"]
    assert run([*argv, "-o", str(tmp_path / "a")]) == 0
    rows = [row for row in pq.read_table(tmp_path / "a" / "index.parquet").to_pylist() if row["shard"] >= 0]
    painted = [row for row in rows if row["injected"]]
    assert len(painted) > 5
    for row in painted:
        assert row["z_source"] == Z[row["source_row"]] > row["z_lens"]
        assert row["lens_sigma_v"] == 300
    assert rows[-1]["not_injected"] == "no source lies behind it"


def test_k_correction_of_a_flat_spectrum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same flux per frequency everywhere the K correction is -2.5 log10(1 + z)."""
    wave = np.arange(1000.0, 20000.0, 10.0)
    np.savetxt(tmp_path / "flat.txt", np.stack([wave, wave**-2.0], 1))
    monkeypatch.setattr(masses, "EARLY_TYPE", str(tmp_path / "flat.txt"))
    z, mag = np.array([0.3, 0.7]), np.array([19.8, 21.0])
    # Distance moduli of astropy's FlatLambdaCDM(70, 0.3).
    expected = mag - FlatLambdaCDM(70, 0.3).distmod(z).value + 2.5 * np.log10(1 + z)
    for band in ("g", "i"):
        np.testing.assert_allclose(absolute_r(mag, z, band), expected, atol=1e-3)


def test_velocity_dispersions_by_hand() -> None:
    """An early-type galaxy of -22 in r has 10^(-2.97 + 0.37 22 - 0.006 22²) = 184 km/s."""
    # At a redshift of 0.3 the distance modulus is 40.95, for H0 = 70 and Omega_m = 0.3.
    z, mag = np.array([0.3, 0.3, -1.0]), np.array([19.8, 12.0, 19.8])
    absolute = absolute_r(mag, z.clip(0.1), "r")
    assert 0.3 < 19.8 - 40.954 - absolute[0] < 0.5  # the K correction in r
    catalog = {"z": z, "mag_r": mag}
    light = InjectConfig(theta_from="faber-jackson", host_mag="mag_r", host_band="r", lens_redshift="z")
    sigma = velocity_dispersions(catalog, light)
    m = absolute[0]
    assert sigma[0] == pytest.approx(10 ** (-2.97 - 0.37 * m - 0.006 * m * m))
    np.testing.assert_allclose(10 ** np.polyval(masses.HYDE_BERNARDI, -22.0), 184.5, atol=0.1)
    assert np.isnan(sigma[1:]).all()
    fixed = InjectConfig(theta_from="250", lens_redshift="z", sigma_scatter=0.07)
    assert velocity_dispersions(catalog, fixed).tolist() == [250.0] * 3
    rng = np.random.default_rng(2)
    drawn = np.array([radius_of_mass(250.0, 0.3, 2.0, fixed, rng)[2] for _ in range(2000)])
    drawn = drawn[np.isfinite(drawn)]
    assert np.log10(drawn).std() == pytest.approx(0.07, rel=0.1)
    # 4 pi (250 / 299792)² D_ls / D_s: 1.80 arcsec times 1 - 1197 / 5179.
    theta = radius_of_mass(250.0, 0.3, 2.0, InjectConfig(theta_from="250"), rng)[0]
    assert theta == pytest.approx(1.8026 * (1 - 1196.8 / 5179.0), rel=2e-3)


def test_arcs_of_masses_from_light() -> None:
    batch = blank(12)
    catalog = batch.catalog | {"z": np.full(12, 0.4), "mag": np.linspace(17.5, 23.0, 12)}
    light = {"theta_from": "faber-jackson", "host_mag": "mag", "host_band": "i", "lens_redshift": "z"}
    config = InjectConfig.make(light | {"fraction": 1.0, "theta_min": 0.1, "theta_max": 3.0})
    found = inject_batch(replace(batch, catalog=catalog), config).catalog
    done = found["injected"] == 1
    assert 6 < done.sum() < 12
    sigma, z, z_source = (found[name][done] for name in ("lens_sigma_v", "z", "z_source"))
    np.testing.assert_allclose(found["theta_E"][done], einstein_radius(sigma, z, z_source), rtol=1e-6)
    assert (np.diff(sigma) < 0).all()  # the fainter, the lighter
    assert found["not_injected"][-1] == "not as bright as galaxies of the relation, by mag"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"theta_from": "faber-jackson"}, "needs host_mag=COLUMN"),
        ({"theta_from": "sigma", "host_mag": "m"}, "host_mag and host_band are for theta_from faber-jackson"),
        ({"sigma_scatter": 0.1}, "sigma_scatter is for theta_from"),
        ({"theta_from": "3"}, "not from 50 to 1000"),
    ],
)
def test_settings_of_masses(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        InjectConfig.make(options)
