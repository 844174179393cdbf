"""`ripple doctor`: checks of this machine, and of a repository."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ripple.errors import RippleError
from ripple.rubin.afw import afw_active
from ripple.rubin.repository import open_repository
from ripple.rubin.source_errors import TOKEN_VARIABLES
from ripple.runtime.extras import EXTRAS, missing

Level = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: `ok`, `note` (worth knowing) or `fail` (`detail` says what to do)."""

    name: str
    level: Level
    detail: str


def environment() -> list[Check]:
    """The checks of this machine."""
    return [_python(), *_packages(), *_extras(), _afw(), _gpu(), *_resources()]


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> list[Check]:
    """Whether the required packages are installed, in versions that RIPPLe's metadata allows."""
    from packaging.requirements import Requirement

    checks = []
    # From the metadata of the installed package: the list is never older than the code.
    for line in importlib.metadata.requires("ripple-lsst") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue  # of an extra, or of another platform
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(requirement.name, "fail", f"missing; pip install '{requirement}'"))
            continue
        good = requirement.specifier.contains(version, prereleases=True)
        detail = version if good else f"{version}; pip install -U '{requirement}'"
        checks.append(Check(requirement.name, "ok" if good else "fail", detail))
    return checks


def _extras() -> list[Check]:
    """Every extra: what it is for, and how to install it where it is not."""
    checks = []
    for extra, (purpose, _) in EXTRAS.items():
        absent = missing(extra)
        how = f"; without {', '.join(absent)}: pip install 'ripple-lsst[{extra}]'" if absent else ""
        checks.append(Check(f"extra {extra}", "note" if absent else "ok", purpose + how))
    return checks


def _afw() -> Check:
    if afw_active():
        return Check("lsst.afw", "ok", "ExposureF coadds are read by the LSST stack, with their PSFs")
    return Check(
        "lsst.afw",
        "note",
        "not installed: ExposureF coadds are read without the LSST stack, and have no PSF where it is a "
        "CoaddPsf; CellCoadds (DP2) need no stack",
    )


def _gpu() -> Check:
    if missing("learn"):
        return Check("GPU", "note", "not looked for: PyTorch is not installed")
    from ripple.learn.model.device import visible_gpus  # loads torch: a second

    version, names = visible_gpus()
    if not names:
        return Check("GPU", "note", f"none visible to torch {version}; training and scoring use the CPU")
    return Check("GPU", "ok", f"{', '.join(names)} (torch {version})")


def _resources() -> list[Check]:
    import psutil

    memory = psutil.virtual_memory()
    # Of the directory where outputs usually go.
    disk = shutil.disk_usage(Path.cwd())
    return [
        Check("CPU", "ok", f"{len(os.sched_getaffinity(0))} cores usable"),
        Check("memory", "ok", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        Check("disk", "ok" if disk.free > 2**30 else "note", f"{disk.free / 2**30:.1f} GiB free here"),
        _token(),
    ]


def _token() -> Check:
    # Only whether it is set: the value never leaves the environment.
    found = [v for v in TOKEN_VARIABLES if os.environ.get(v)]
    if found:
        return Check("access token", "ok", f"{found[0]} is set")
    return Check("access token", "note", "not set; only needed for remote repositories")


def repository(repo: str, collections: tuple[str, ...]) -> list[Check]:
    """The checks of one repository: that it opens and has coadds, and in which bands.

    An error becomes a failed check, so that all checks are printed.
    """
    checks: list[Check] = []
    try:
        with open_repository(repo, collections) as opened:
            checks.append(Check("repository", "ok", f"{repo}: collections {', '.join(opened.collections)}"))
            dataset_type = opened.coadd_type(None)
            checks.append(Check("coadds", "ok", dataset_type))
            for skymap in opened.skymaps():
                # Repositories register sky maps that they have no coadds of.
                bands = "".join(opened.bands(dataset_type, skymap))
                if bands:
                    checks.append(Check("sky map", "ok", f"{skymap}: bands {bands}"))
    except RippleError as err:
        checks.append(Check("repository", "fail", str(err)))
    return checks
