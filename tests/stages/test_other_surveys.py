"""The path of docs/howto/other-surveys.md: stamps of HSC and DES to scores of a model trained on Rubin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from models import make_model

from ripple import write_cutouts
from ripple.cli import run
from ripple.imaging.batch import MASK_PLANES
from ripple.learn.model.contract import ArchitectureRecord
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import unpack_tensors

FWHM = {"g": 0.85, "r": 0.75, "i": 0.65}  # arcsec
FLUX = {"g": 2e4, "r": 4e4, "i": 6e4}  # nJy
SIGMA = 0.9  # arcsec, of the galaxy


def gaussian(size: int, scale: float, sigma: float, x: float = 0.0) -> np.ndarray:
    """Sum 1 when it fits in; centred `x` px right of the central pixel; `scale` arcsec, `sigma` arcsec."""
    yy, xx = np.mgrid[:size, :size] - size // 2
    r2 = (xx - x) ** 2 + yy**2
    return scale**2 / (2 * np.pi * sigma**2) * np.exp(-0.5 * r2 * scale**2 / sigma**2)


def seen(band: str, size: int, scale: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The galaxy through the seeing, nJy, with noise of `noise` nJy per square arcsec**0.5."""
    sigma = np.hypot(SIGMA, FWHM[band] / 2.3548)
    light = FLUX[band] * gaussian(size, scale, sigma)
    return (light + rng.normal(0, noise * scale, (size, size))).astype(np.float32)


def header(size: int, scale: float, ra: float) -> fits.Header:
    return fits.Header({
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": -1.0, "CRPIX1": size // 2 + 1.0,
        "CRPIX2": size // 2 + 1.0, "CD1_1": -scale / 3600, "CD2_2": scale / 3600, "RADESYS": "ICRS",
    })  # fmt: skip


def hsc(folder: Path, rows: int, rng: np.random.Generator) -> None:
    """As the HSC data archive gives cutouts: image, mask and variance by EXTTYPE, FLUXMAG0 in the primary."""
    folder.mkdir()
    zero = 10 ** (27 / 2.5)
    to_counts = 10 ** (0.4 * (27 - 31.4))
    for k, band in ((k, b) for k in range(rows) for b in "gri"):
        image = seen(band, 84, 0.168, 50.0, rng) * to_counts
        # As the pipeline grows its detections: out to where the light is hardly seen.
        light = FLUX[band] * gaussian(84, 0.168, np.hypot(SIGMA, FWHM[band] / 2.3548))
        mask = np.where(light > 0.2 * 50 * 0.168, 32, 0).astype(np.int32)
        mask[0, :3] = 1
        planes = (
            ("IMAGE", image, {}), ("MASK", mask, {"MP_BAD": 0, "HIERARCH MP_DETECTED": 5}),
            ("VARIANCE", np.full_like(image, (50 * 0.168 * to_counts) ** 2), {}),
        )  # fmt: skip
        hdus: list[fits.hdu.base._BaseHDU] = [fits.PrimaryHDU()]
        hdus[0].header.update({"FLUXMAG0": zero, "FILTER": f"HSC-{band.upper()}"})
        for kind, data, cards in planes:
            hdu = fits.ImageHDU(data, header(84, 0.168, 150 + 0.1 * k))
            hdu.header.update({"EXTTYPE": kind, **cards})
            hdus.append(hdu)
        fits.HDUList(hdus).writeto(folder / f"obj{k}-{band}.fits")
        psf = gaussian(43, 0.168, FWHM[band] / 2.3548).astype(np.float32)
        fits.writeto(folder / f"obj{k}-psf-{band}.fits", psf)


def des(folder: Path, rows: int, rng: np.random.Generator) -> None:
    """As DES coadd cutouts: SCI and WGT, MAGZERO 30, PSFs of even size in a file of their own, no mask."""
    folder.mkdir()
    to_counts = 10 ** (0.4 * (30 - 31.4))
    for k, band in ((k, b) for k in range(rows) for b in "gri"):
        image = seen(band, 54, 0.263, 50.0, rng) * to_counts
        hdus = [
            fits.PrimaryHDU(),
            fits.ImageHDU(image, header(54, 0.263, 150 + 0.1 * k), name="SCI"),
            fits.ImageHDU(np.full_like(image, (50 * 0.263 * to_counts) ** -2), name="WGT"),
        ]
        for hdu in hdus:
            hdu.header.update(
                {"BAND": band, "FILTER": f"{band} DECam SDSS c0001 4720.0 1520.0", "MAGZERO": 30.0}
            )
        fits.HDUList(hdus).writeto(folder / f"obj{k}_{band}.fits")
        psf = gaussian(28, 0.263, FWHM[band] / 2.3548)
        fits.writeto(folder / f"obj{k}_{band}_psf.fits", psf.astype(np.float32))


@pytest.mark.parametrize("survey", [hsc, des])
def test_stamps_of_another_survey_are_scored(survey: object, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    rows, size = 16, 40
    survey(tmp_path / "in", rows, rng)  # type: ignore[operator]
    cutouts, tensors = tmp_path / "cutouts", tmp_path / "tensors"
    assert (
        run(["import", str(tmp_path / "in"), "--format", "fits", "--bands", "gri", "-o", str(cutouts)]) == 0
    )
    index = open_artefact(cutouts).index()
    assert index["status"].to_pylist() == ["ok"] * rows
    assert set(index["id"].to_pylist()) == {f"obj{k}" for k in range(rows)}
    convert = ["--psf", "1.2", "--pixel-scale", "0.2", "--size", str(size)]
    assert run(["preprocess", str(cutouts), "-o", str(tensors), "--normalize", "none", *convert,
                "--set", "psf_profile=gaussian"]) == 0  # fmt: skip
    found = open_artefact(tensors)
    assert found.index()["status"].to_pylist() == ["ok"] * rows, found.index()["detail"].to_pylist()
    batch = unpack_tensors(found.read(0))
    assert (batch.pixel_scale, batch.image.shape) == (0.2, (rows, 3, size, size))
    # The sky itself: the same galaxy through a PSF of 1.2 arcsec in pixels of 0.2 arcsec.
    truth = gaussian(size, 0.2, np.hypot(SIGMA, 1.2 / 2.3548))
    for j, band in enumerate("gri"):
        image = np.median(batch.image[:, j], axis=0)
        assert image.sum() / FLUX[band] == pytest.approx(truth.sum(), rel=0.03)
        np.testing.assert_allclose(image / FLUX[band], truth, atol=0.04 * truth.max())
    # Away from the edges, where the matching has fewer pixels; rows of few sky pixels fix it to a fifth.
    rest = batch.image - np.stack([FLUX[b] * truth for b in "gri"])
    noise = np.stack([batch.catalog[f"noise_{b}"] for b in "gri"])
    ratio = rest[..., 10:-10, 10:-10].std(axis=(0, 2, 3)) / np.median(noise, axis=1)
    assert np.median(ratio) == pytest.approx(1, abs=0.25)
    # Normalised as the model wants it, they are scored.
    ready = tmp_path / "ready"
    assert run(["preprocess", str(cutouts), "-o", str(ready), *convert]) == 0
    facts = unpack_tensors(open_artefact(ready).read(0))
    net = ArchitectureRecord(name="d4cnn", bands=3, size=size, outputs=1, width=2)
    model = make_model(tmp_path / "model", size=size, normalization=facts.normalization, architecture=net)
    assert run(["score", str(model), str(ready), "-o", str(tmp_path / "scores")]) == 0
    assert open_artefact(tmp_path / "scores").index().num_rows == rows
    # Without the conversion the contract names what differs.
    plain = tmp_path / "plain"
    assert run(["preprocess", str(cutouts), "-o", str(plain), "--psf", "1.2"]) == 0
    assert run(["score", str(model), str(plain), "-o", str(tmp_path / "no")]) == 3


def test_small_stamps_are_padded_with_invalid_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    image = np.stack([[seen(b, 48, 0.168, 50.0, rng) for b in "gri"] for _ in range(4)])
    mask = np.zeros(image.shape, np.uint32)
    mask[:, :, 24, 24] = 1 << MASK_PLANES.index("INTERPOLATED")
    write_cutouts(
        tmp_path / "c", image, "gri", {"id": range(4), "ra": np.arange(4.0), "dec": np.zeros(4)},
        variance=np.full_like(image, (50 * 0.168) ** 2), mask=mask, mask_planes=MASK_PLANES,
        pixel_scale=0.168,
    )  # fmt: skip
    argv = ["preprocess", str(tmp_path / "c"), "-o", str(tmp_path / "t"), "--psf", "none", "--variance"]
    assert run([*argv, "--pixel-scale", "0.2", "--size", "64"]) == 0
    found = open_artefact(tmp_path / "t")
    assert found.index()["status"].to_pylist() == ["ok"] * 4
    assert found.attributes["size"] == [64, 64]
    batch = unpack_tensors(found.read(0))
    inside = batch.valid[0, 0] == 1
    rows, columns = np.nonzero(inside)
    assert rows.min() + rows.max() == columns.min() + columns.max() in (63, 64)  # about the pixel 32
    assert 30 <= rows.max() - rows.min() + 1 <= 40  # 48 x 0.168 / 0.2 is 40, less the reach of the kernel
    assert (batch.image[:, :, ~inside] == 0).all()
    assert np.isnan(batch.variance[:, :, ~inside]).all()
    assert np.isfinite(batch.variance[:, :, inside]).all()
    peak = np.unravel_index(batch.image[:, 2].mean(axis=0).argmax(), (64, 64))
    assert np.abs(np.array(peak) - 32).max() <= 1
