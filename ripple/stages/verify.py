"""`ripple verify`: compare every byte of a finished directory with its manifest."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ripple.errors import IntegrityError
from ripple.learn.model.contract import load_contract
from ripple.runtime.summary import Summary, plain, progress
from ripple.storage.artefact import verify
from ripple.storage.files import REDO
from ripple.storage.manifest import files_of, read_manifest

#: Damaged files to name, besides the first.
SHOWN = 20


def verify_directory(directory: Path) -> Summary:
    """Read every byte and compare checksums.

    Raises
    ------
    InputError
        RIPPLe did not write the directory, or it is not finished.
    IntegrityError
        A file is damaged; names the first.
    """
    start = time.perf_counter()
    manifest = read_manifest(directory)
    files = files_of(directory, manifest)
    size = sum(size for size, _ in files.values())
    with progress(size, "verify", "bytes") as advance:
        problems = verify(directory, advance)
    if manifest["kind"] == "model" and not problems:
        load_contract(directory)  # a manifest that another program wrote may not list the weights
    for problem in problems[1 : SHOWN + 1]:
        print(f"also: {plain(problem)}", file=sys.stderr)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise IntegrityError(f"{problems[0]}{more}", hint=REDO)
    facts = {"kind": manifest["kind"], "files": len(files), "bytes": size, "digest": manifest["digest"]}
    if "shards" in manifest:
        facts |= {"shards": len(manifest["shards"]), "rows": sum(s["rows"] for s in manifest["shards"])}
    return Summary("verify", str(directory), facts, seconds=time.perf_counter() - start)
