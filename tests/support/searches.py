"""A small model for the simulated survey, for tests of searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import make_model

from ripple.learn.model.calibrate import Calibration
from ripple.learn.model.contract import ArchitectureRecord, pixels_of
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import fetch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess
from ripple.storage.artefact import open_artefact


def model_for(sky: Path, root: Path) -> dict[str, Any]:
    """Fields of a contract for cutouts of the survey; `root` gets the cutouts and tensors behind them."""
    shape = {"bands": ["g", "r", "i"], "size": 40, "margin": 6, "output": str(root / "cutouts")}
    where = {"repo": str(sky / "repo"), "collections": ["mini"], "targets": str(sky / "truth.parquet")}
    fetch(FetchConfig.make(where | shape | {"workers": 0}))
    how = {"cutouts": str(root / "cutouts"), "output": str(root / "tensors"), "workers": 0}
    preprocess(PreprocessConfig.make(how))
    made = open_artefact(root / "tensors")
    return {
        "architecture": ArchitectureRecord(name="d4cnn", bands=3, size=40, outputs=1, width=2),
        "size": 40,
        "psf_fwhm": None,
        "normalization": made.attributes["normalization"],
        "noise_correlation": made.attributes["noise_correlation"],
        "pixels": pixels_of(made),
        "calibration": Calibration(scale=0.8, offset=0.1, prevalence=0.15),
        "threshold": 0.0,
    }


def write_model(directory: Path, fields: dict[str, Any], **changes: Any) -> Path:
    """A model with random weights and these fields of a contract."""
    return make_model(directory, **(fields | changes))
