"""Options of `ripple fetch`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ripple.config import neutral, setting
from ripple.stages.plan.config import Selection


class FetchConfig(Selection):
    """Options of `ripple fetch`: a selection, and how to carry it out."""

    verb: ClassVar[str] = "fetch"

    output: str = neutral("", description="Directory for the cutout shards.")
    workers: int = neutral(1, ge=0, description="Worker processes; 0 reads in this process.")
    dask: str | None = neutral(
        None, description="Dask instead of --workers: tcp://HOST:PORT of a scheduler, or slurm."
    )
    dask_settings: dict[str, Any] = neutral({}, description="Settings of the batch system for `dask: slurm`.")
    deadline: float = setting(
        3600.0,
        neutral=True,
        gt=0,
        description="Seconds a unit may take before its worker is killed as stuck.",
    )
    memory: str = neutral("4GiB", description="Memory for the whole run.")
    digests: str | None = Field(
        None,
        description="Trusted SHA-256 of source files, from cutouts of an earlier fetch or JSON "
        "{uuid: sha256}; a file that differs is refused.",
    )
    lost: Literal["stop", "reject"] = neutral(
        "stop",
        description="Units whose worker died twice: finish the others and exit 7, resumable; or reject them.",
    )
    max_rejected: float = neutral(1.0, ge=0, le=1, description="Exit 8 when a larger share is rejected.")
