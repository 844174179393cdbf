"""Options of `ripple import` and `ripple export`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ripple.config import Config, neutral, setting


class ExportConfig(Config):
    """Options of `ripple export`."""

    verb: ClassVar[str] = "export"

    source: Path = neutral(description="Tensors or cutouts to export.")
    output: Path = neutral(description="Directory to make.")
    format: Literal["deeplense", "mmu", "webdataset", "zarr", "fits"] = Field(description="Layout to write.")
    rejected: bool = Field(False, description="Export rejected rows that have pixels, too.")
    split: Literal["sky", "none"] = Field("sky", description="deeplense: split by sky block, or not at all.")
    split_column: str | None = Field(None, description="deeplense: column that names the split instead.")
    fractions: tuple[float, float, float] = setting(
        (0.7, 0.15, 0.15), description="deeplense: shares of train, validation, test."
    )
    nside: int = setting(2048, ge=1, description="deeplense: HEALPix side of the blocks of sky.")
    seed: int = setting(0, ge=0, description="deeplense: of the choice of blocks.")
    rows_per_file: int = setting(1000, ge=1, description="webdataset: rows in a tar file; zarr: in a chunk.")


Format = Literal["deeplense", "arrays", "fits", "mmu", "zarr", "webdataset"]


class ImportConfig(Config):
    """Options of `ripple import`."""

    verb: ClassVar[str] = "import"

    source: Path = Field(description="Folder or file to import.")
    output: Path = Field(description="Directory of the artefact to write.")
    format: Format | None = Field(
        None,
        description="deeplense: .npy folders; arrays: .npz, HDF5; fits; mmu: HDF5; zarr, webdataset: exports;"
        " by default the only one that the files can be.",
    )
    into: Literal["auto", "cutouts", "tensors"] = Field(
        "auto", description="What to write; auto: tensors for deeplense, else cutouts."
    )
    bands: tuple[str, ...] = Field((), description="Band names in order, for example gri.")
    pixel_scale: float | None = Field(
        None, gt=0, description="Arcsec per pixel, where the source says none or with --align."
    )
    align: bool = Field(False, description="fits: resample bands and rows of another grid or pixel scale.")
    resample: bool = Field(
        True, description="fits: resample cutouts whose projection is not gnomonic (TAN); else refuse them."
    )
    size: int | None = Field(None, ge=8, description="Crop or pad to this many pixels, around the centre.")
    unit: Literal["nJy", "none"] | None = Field(None, description="Unit where the source names none.")
    zero_points: tuple[float, ...] = Field(
        (), description="AB zero point of each band where the source says no unit: counts to nJy."
    )
    ignore_cards: tuple[str, ...] = Field(
        (), description="fits: header cards to read as if they were not there, for example FILTER,MAGZERO."
    )
    sentinels: tuple[float, ...] = setting((), description="Pixel values that mean no data.")
    find_fill: bool = setting(
        True, description="Take values for no data that repeat where measurements do not; cutouts only."
    )
    mask: Literal["bad", "good", "ignore"] = Field(
        "bad", description="What 1 means in a mask of 0 and 1, or to use no mask."
    )
    mask_bits: tuple[str, ...] = Field(
        (), description="arrays, fits: bits of an integer mask, for example BAD=0,SAT=1,DETECTED=5."
    )
    classes: tuple[str, ...] = Field((), description="Class names by label value, for example nonlens,lens.")
    gaussian_psf: bool = Field(
        False, description="mmu: make round Gaussian PSFs from the FWHM in the file, which has no PSF image."
    )
    image_key: str = setting("image", description="arrays: name of the image array.")
    variance_key: str = setting("variance", description="arrays: name of the variance array.")
    mask_key: str = setting("mask", description="arrays: name of the mask array.")
    psf_key: str = setting("psf", description="arrays: name of the PSF array.")
    label_key: str = setting("label", description="arrays: name of the label array.")
    id_key: str = setting("id", description="arrays: name of the id array.")
    ra_key: str = setting("ra", description="arrays: name of the right ascension array, deg.")
    dec_key: str = setting("dec", description="arrays: name of the declination array, deg.")
    dry_run: bool = neutral(False, description="Say what was understood, and write nothing.")
    rows_per_shard: int = setting(2000, ge=1, le=100_000, description="Rows in a shard.")
