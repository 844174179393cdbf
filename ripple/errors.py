"""Every error RIPPLe raises, and every reason for which a target is rejected.

    RippleError                     exit code
    ├── ConfigError                 2   usage, option or YAML
    ├── InputError                  3   bad input
    │   ├── CatalogueError              a table of targets
    │   │   └── NoTargetsError          one of which no row is selected
    │   ├── RegionError                 a region of the sky
    │   ├── SkyMapError                 a sky map, tract or patch
    │   ├── DataError                   arrays or files that someone else wrote
    │   └── ContractError               data that do not fit a model
    ├── IntegrityError              4   bytes that are not what was written
    ├── SourceError                 5   repository or dataset unavailable
    │   └── UnreadableError             a source file that cannot be read
    ├── WriteError                  6   output cannot be written
    │   └── LockedError                 another writer holds the output
    ├── WorkerError                 7   a worker process was lost
    ├── TooManyRejected             8   more rejections than `--max-rejected` allows
    └── Interrupted                 130 or 143, resumable

A message says which thing, what is wrong, and what to do.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class RippleError(Exception):
    """Base of all errors that RIPPLe raises deliberately.

    Parameters
    ----------
    message
        Which thing, and what is wrong with it.
    hint
        What the user can do about it.
    """

    exit_code: ClassVar[int] = 1  # of errors without a code of their own

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # `str(error)` has both; the parts stay, for code that adds a file name to the message.
        super().__init__(message if hint is None else f"{message} ({hint})")
        self.message = message
        self.hint = hint


class ConfigError(RippleError):
    """An option, a YAML key or a combination of them that cannot be used."""

    exit_code = 2


class OtherOptionsError(ConfigError):
    """An output that was written with other options."""


class OtherInputsError(ConfigError):
    """An output that was written with the same options from other inputs."""


class InputError(RippleError):
    """Input that could be read and is wrong."""

    exit_code = 3


class CatalogueError(InputError):
    """A table of targets that cannot be used; the message names the rows."""


class NoTargetsError(CatalogueError):
    """A selection that leaves no row of a table of targets."""


class RegionError(InputError):
    """A region of the sky that cannot be parsed, or contains nothing."""


class SkyMapError(InputError):
    """A sky map, tract or patch that does not exist or is not known."""


class DataError(InputError):
    """Arrays or files from elsewhere that do not have the required layout."""


class ContractError(InputError):
    """Data that do not fit the contract of a model; the message names the field."""


class IntegrityError(RippleError):
    """An artefact whose bytes are not the bytes that were written."""

    exit_code = 4


class SourceError(RippleError):
    """A repository or dataset that cannot be reached."""

    exit_code = 5


class UnreadableError(SourceError):
    """A source file that exists and cannot be read; `reason` says why.

    Parameters
    ----------
    message
        File and fault.
    reason
        The `Reason` that the affected rows get.
    """

    def __init__(self, message: str, *, hint: str | None = None, reason: Reason | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason if reason is not None else Reason.UNREADABLE_SOURCE


class WriteError(RippleError):
    """Output that cannot be written: disk full, no permission."""

    exit_code = 6


class LockedError(WriteError):
    """An output that another process is writing."""


class WorkerError(RippleError):
    """A worker process that died or hung more often than the retries allow."""

    exit_code = 7


class TooManyRejected(RippleError):  # noqa: N818 - reads as the verdict it is
    """More rejected targets than the user allows."""

    exit_code = 8


class Interrupted(RippleError):  # noqa: N818
    """Stopped by a signal; what is committed stays and the run can be resumed.

    Parameters
    ----------
    signum
        2 (SIGINT) or 15 (SIGTERM).
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}", hint="run the same command again to resume")
        self.signum = signum

    @property
    def code(self) -> int:
        """Exit code: 128 + signal number."""
        return 128 + self.signum

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle as class(*args), and args holds the finished message, not the number.
        return (Interrupted, (self.signum,))


class Reason(StrEnum):
    """Why a target is `rejected` or `partial`. The index carries the value."""

    DUPLICATE = "duplicate"  # same id or same place as an earlier target
    BAD_POSITION = "bad_position"  # right ascension or declination of the row is not on the sky
    NO_TRACT = "no_tract"  # no tract of the sky map holds the position
    NO_PATCH = "no_patch"  # the patch is not registered in the repository
    NO_DATASET = "no_dataset"  # no band has a dataset there
    MISSING_BAND = "missing_band"  # some bands have no dataset there
    NO_DATA = "no_data"  # more pixels than a few have no data, though the box lies within the survey
    OUTSIDE = "outside"  # the box leaves the survey, or reaches into a coadd that cannot be read
    SEAM = "seam"  # patches disagree by more than the noise where they overlap under the box
    MISSING_CELL = "missing_cell"  # all pixels lie in missing cells
    UNREADABLE_SOURCE = "unreadable_source"  # a file of the target is missing or damaged
    WRONG_UNIT = "wrong_unit"  # pixels that cannot be brought to nJy
    WRONG_WCS = "wrong_wcs"  # not TAN in ICRS, or the projections of one row disagree
    BAD_PSF = "bad_psf"  # the tables of the PSF are damaged
    WORKER_LOST = "worker_lost"  # the worker of its unit died or hung, more often than it is retried
    QUALITY = "quality"  # see the qc columns
