"""Rows 29 and 37 for pages, exports and models from elsewhere: rot in what was written, changed options."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import verbs
from cases import Cases
from faultlib import Tally
from rows import named, row, trials_in_time
from verbs import VERB_ROWS


@row("29", "report, explain, export: a file of the output flipped, cut, deleted, added", full=300, gate=6,
     into=VERB_ROWS)  # fmt: skip
def damaged_trees(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    outputs = []
    for verb in ("report", "explain", "export"):
        (directory / verb).mkdir()
        cases = Cases(verb, directory / verb)
        for k, args in enumerate(cases.argv):
            here = directory / verb / f"output-{k}"
            assert verbs.start([*verbs.RIPPLE, *args[:-1], str(here)]).end() == 0
            outputs.append(here)
    if _verify(outputs[0])[0] != 0:
        tally.skipped = f"verify does not know such a directory: {_verify(outputs[0])[1][:80]}"
        return
    for trial in trials_in_time(trials):
        tally.trials = trial + 1
        here = outputs[trial % len(outputs)]
        files = [p for p in sorted(here.rglob("*")) if p.is_file() and p.name != ".lock"]
        path, how = rng.choice(files), rng.choice(["flip", "flip", "cut", "delete", "add"])
        data = path.read_bytes()
        if how == "flip":
            damaged = bytearray(data)
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            damaged = bytearray(data[: rng.randrange(len(data))])
        if how == "add":
            path = path.with_name("stranger.html")
            path.write_bytes(b"<html></html>")
        elif how == "delete":
            path.unlink()
        else:
            path.write_bytes(damaged)
        code, said = _verify(here)
        if how == "add":
            path.unlink()
        else:
            path.write_bytes(data)
        # Without its note the directory is none that we know.
        if code not in ((4,) if path.name != "manifest.json" else (3, 4)):
            tally.silent += 1
            tally.note(f"{path} {how}: exit {code} {said[-200:]}")
        named(tally, said, path.name if path.name != "manifest.json" else str(here))
    for here in outputs:
        code, said = _verify(here)
        if code != 0:
            tally.silent += 1
            tally.note(f"{here}, undamaged: exit {code} {said[-200:]}")


def _verify(here: Path) -> tuple[int | None, str]:
    run = verbs.start([*verbs.RIPPLE, "verify", str(here)])
    return run.end(), run.text()


# Row 37: other options on a finished output --------------------------

#: Another value of every option that decides the output, by verb.
OTHER: dict[str, dict[str, Any]] = {
    "report": {
        "top": 4, "missed": 1, "stretch": 3.0, "softening": 3.0, "csv_rows": 5, "model": "{given}/model",
    },
    "export": {
        "format": "mmu", "rejected": True, "split": "none", "split_column": "id", "nside": 64, "seed": 3,
        "fractions": [0.5, 0.25, 0.25], "rows_per_file": 3,
    },
    "explain": {
        "top": 1, "ids": ["1000"], "training": ["{given}/toys"], "before": "{given}/model", "neighbours": 3,
        "steps": 5, "points": 11, "embedding": "umap", "seed": 3,
    },
    "inject": {
        "fraction": 0.1, "theta_min": 0.7, "theta_max": 2.0, "source_bright": 23.0, "source_faint": 26.0,
        "hosts": "ra >= 0", "keep_arcs": True, "seed": 3,
    },
    "simulate": {
        "patches": 2, "bands": ["r"], "seed": 3, "targets": 5, "lens_fraction": 0.5, "tract": 5062,
        "defects": False,
    },
    "import": {
        "format": "fits", "into": "tensors", "bands": ["g", "r", "z"], "pixel_scale": 0.3, "size": 20,
        "unit": "none", "zero_points": [27.0], "sentinels": [0.0], "mask": "good", "classes": ["a", "b"],
        "gaussian_psf": True, "rows_per_shard": 2, "image_key": "image2", "variance_key": "v",
        "mask_key": "m", "psf_key": "p", "label_key": "l", "id_key": "i", "ra_key": "r", "dec_key": "d",
    },
}  # fmt: skip
#: Where things are: they may move, what they are made of may not change.
PLACES = {"source", "output", "tensors", "model"}


@row("37", "simulate, inject, import, report, explain, export: every key changed on a finished output",
     full=100, gate=8, into=VERB_ROWS)  # fmt: skip
def every_option(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    keys = [(verb, key) for verb, values in OTHER.items() for key in values]
    for verb in OTHER:
        left_out = set(_keys(verb)) - set(OTHER[verb]) - PLACES
        if left_out:
            tally.silent += 1
            tally.note(f"{verb}: options without another value in this row: {sorted(left_out)}")
    chosen = keys if trials >= len(keys) else rng.sample(keys, trials)
    for verb in OTHER:
        here = directory / verb
        here.mkdir()
        mine = [key for v, key in chosen if v == verb]
        if not mine:
            continue
        cases = Cases(verb, here)
        assert cases.start(cases.argv[0]).end() == 0
        for key in mine:
            tally.trials += 1
            _changed(tally, cases, here, verb, key)


def _changed(tally: Tally, cases: Cases, here: Path, verb: str, key: str) -> None:
    value = json.loads(json.dumps(OTHER[verb][key]).replace("{given}", str(here / "given")))
    config = here / "other.json"
    config.write_text(json.dumps({verb: {key: value}}))
    run = cases.start([*_without(cases.argv[0], key), "-c", str(config)])
    code, said = run.end(), run.text()
    # An option that does not go with the input is refused for that, by name or by what it asks for.
    if code == 0 and "already" not in said:
        tally.silent += 1
        tally.note(f"{verb}.{key}: the output was made again")
    elif code == 0:
        tally.silent += 1
        tally.note(f"{verb}.{key} = {value} goes unnoticed: {said[-100:]}")
    elif code not in (2, 3):
        tally.unnamed += 1
        tally.note(f"{verb}.{key}: exit {code}: {said[-200:]}")
    word = "kind" if key == "into" else key
    named(tally, said, *((word,) if code == 2 and str(cases.work) in said else ()))


def _keys(verb: str) -> list[str]:
    """The options that decide the output of a verb."""
    from ripple.learn.config import ExplainConfig
    from ripple.stages.formats.config import ExportConfig, ImportConfig
    from ripple.stages.inject.config import InjectConfig
    from ripple.stages.report.config import ReportConfig
    from ripple.stages.simulate.config import SimulateConfig

    where = {"output": "o"}
    make: dict[str, Callable[[], Any]] = {
        "report": lambda: ReportConfig.make({"source": "s"} | where),
        "export": lambda: ExportConfig.make({"source": "s", "format": "fits"} | where),
        "explain": lambda: ExplainConfig.make({"model": "m", "tensors": ["t"]} | where),
        "inject": lambda: InjectConfig.make({"cutouts": "c"} | where),
        "simulate": lambda: SimulateConfig.make(where),
        "import": lambda: ImportConfig.make({"source": "s", "format": "fits"} | where),
    }
    return sorted(make[verb]().canonical())


def _without(args: list[str], key: str) -> list[str]:
    """The command line without an option, which the file then gives."""
    flag = f"--{key.replace('_', '-')}"
    at = args.index(flag) if flag in args else len(args)
    args = [*args[:at], *args[at + 2 :]]
    given = next((k for k, word in enumerate(args) if word.startswith(f"{key}=")), None)  # after --set
    return args if given is None else [*args[: given - 1], *args[given + 1 :]]
