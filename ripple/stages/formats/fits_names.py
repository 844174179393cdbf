"""File names of FITS exports: the id where it can be a name, else what is left of it, and a number.

A name must be portable, differ from the others where case does not count, and say no band and no role:
`x_g.fits` beside `x_i.fits` would be one row of two bands for `ripple import`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ripple.stages.formats.fits_hdus import FileName, file_name

#: An id that is a name as it is: no hidden file, no option, no path, and short enough for every file system.
_PLAIN = re.compile(r"[A-Za-z0-9+][A-Za-z0-9+._-]{0,99}")
#: How names with a number end; an id that looks like one gets a number itself.
_NUMBERED = re.compile(r"_\d{7,}$")
#: Characters of an id that are kept before a number.
_KEPT = 60


def fits_names(ids: Sequence[str], bands: Sequence[str]) -> list[str]:
    """`<id>.fits`, or `<what is left of it>_<number of the row>.fits`, of each row.

    Parameters
    ----------
    ids
        Of the rows, in the order of the export.
    bands
        Names of its bands.
    """
    count = Counter(text.casefold() for text in ids)
    alone = [count[text.casefold()] == 1 and _is_name(text, bands) for text in ids]
    return [
        f"{text if plain else _numbered(text, k)}.fits"
        for k, (text, plain) in enumerate(zip(ids, alone, strict=True))
    ]


def _is_name(text: str, bands: Sequence[str]) -> bool:
    said = [file_name(text, names) for names in (bands, ())]
    return (
        _PLAIN.fullmatch(text) is not None
        and _NUMBERED.search(text) is None
        and all(name == FileName(text) for name in said)
    )


def _numbered(text: str, number: int) -> str:
    left = re.sub(r"[^A-Za-z0-9+._-]+", "_", text)[:_KEPT].strip("._-")
    return f"{left or 'row'}_{number:07d}"
