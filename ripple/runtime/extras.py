"""Packages that only some verbs need, and the extra of `ripple-lsst` that installs each."""

from __future__ import annotations

import importlib.util

from ripple.errors import ConfigError

#: Extra -> what it is for, and its packages by the name under which they are imported.
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "learn": (
        "train, score, explain, completeness, import-model, export-model",
        ("torch", "timm", "sklearn", "safetensors"),
    ),
    "dask": (
        "fetch, preprocess, inject, search and score on a cluster (--dask)",
        ("distributed", "dask_jobqueue"),
    ),
    "explain": ("explain with more methods, and maps of the latent space", ("captum", "umap")),
    "onnx": ("import-model and export-model of ONNX files", ("onnx", "onnxruntime", "onnxscript")),
    "hats": ("catalogues in HATS format", ("lsdb",)),
    "pandas": ('Parquet files in astropy: Table.read("index.parquet")', ("pandas",)),
    "sed": ("inject: colours of sources from spectra (--source-sed), and masses from light", ("galsim",)),
    "s3": ("repositories in object stores (s3://)", ("boto3", "botocore")),
    "tensorboard": ("train --tensorboard", ("tensorboard",)),
    "vet": ("vet and consensus", ("starlette", "uvicorn", "sklearn")),
    # Parsl stands for the packages of Rubin, which share the name `lsst` with those that are always there.
    "pipeline": ("LensSearchTask, for pipetask and bps", ("parsl",)),
    "export": ("export and import of Zarr and WebDataset", ("zarr", "webdataset")),
}


def missing(extra: str) -> list[str]:
    """Packages of an extra that are not installed."""
    return [name for name in EXTRAS[extra][1] if importlib.util.find_spec(name) is None]


def require(extra: str) -> None:
    """Refuse what needs an extra that is not installed.

    Raises
    ------
    ConfigError
        Names the first package that is missing.
    """
    for package in missing(extra):
        raise not_installed(package) or ConfigError(f"{package} is not installed")


def not_installed(package: str) -> ConfigError | None:
    """The error for a package that could not be imported, when it belongs to an extra."""
    name = package.partition(".")[0]
    for extra, (purpose, packages) in EXTRAS.items():
        if name in packages:
            return ConfigError(
                f"{name} is not installed: the extra {extra!r} has it ({purpose})",
                hint=f"pip install 'ripple-lsst[{extra}]'",
            )
    return None
