"""Row 16: a catalogue whose ids attack file names, terminals, logs, spreadsheets, pages and formats."""

from __future__ import annotations

import csv
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import verbs
from faultlib import Tally
from rows import row
from verbs import VERB_ROWS

from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import map_tensors, unpack_cutouts

BASE = [
    "../../x", "/etc/passwd", "..\\..\\x", "C:\\CON", "CON", "nul.txt", ".", "..", "~root", "a/b",
    "file://x", "-rf", "--output=/", "$(touch CANARY)", "`touch CANARY`", "; touch CANARY",
    "| touch CANARY", "&& touch CANARY", "a\nFORGED: all is well", "a\r\nFORGED: x", "a\rFORGED",
    "\x1b[2J\x1b[1;31mFORGED", "\x1b]0;title\x07", "\x9b31m", "\u202egnp.exe", "\u200b", "\ufeffbom",
    "e\u0301", "\u2028FORGED", "\x07bell", "\x7f", "\t", "a\tb", " lead", "trail ", "=1+1", "+1", "-1",
    "@SUM(A1)", "=cmd|' /C calc'!A0", "\t=1+1", "'quoted'", '"quoted"', "a,b;c", "a\x0bb",
    "<script>FORGED()</script>", '"><img src=x onerror=FORGED()>', "'><svg/onload=FORGED()>",
    "</style><b>x</b>", "</script><script>FORGED()", "<!--", "]]>", "{{ 7*7 }}", "{% raw %}",
    "javascript:FORGED()", "&lt;i&gt;", "%s%n", "{0.__class__}", "%(x)s", "' OR 1=1 --", "1; DROP TABLE x",
    "NaN", "null", "None", "-inf", "0x10", "1e999", "True", "𝕏" * 20, "x" * 10_000, "ß", "İ", "日本",
    "\U0001f600", "a" + "\u0300" * 200,
]  # fmt: skip
TAGS = frozenset({
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "div", "main",
    "footer", "svg", "text", "path", "table", "caption", "thead", "tbody", "tr", "th", "td", "label",
    "select", "option", "input", "output", "button", "span", "article", "img", "i", "kbd", "a", "script",
})  # fmt: skip


def payloads(rng: random.Random, count: int) -> list[str]:
    """Distinct strings, the plain ones first."""
    found = dict.fromkeys(BASE)
    while len(found) < count:
        a, b = rng.choice(BASE), rng.choice(BASE)
        cut = rng.randrange(len(b) + 1)
        found[(b[:cut] + a + b[cut:])[:12_000]] = None
    return list(found)[:count]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@row("16", "hostile ids through fetch, preprocess, score, report, export", full=700, gate=150, into=VERB_ROWS)
def hostile_catalogue(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    directory = directory / "inside"
    directory.mkdir()
    ids = payloads(rng, trials)
    catalogue = _catalogue(directory, ids)
    model = directory / "model"
    tensors, scores = directory / "tensors", directory / "scores"
    chain = [
        verbs.fetch_argv(directory / "cutouts", "--targets", str(catalogue), "--set", "duplicate_radius=0"),
        verbs.preprocess_argv(directory / "cutouts", tensors, "--psf", "1.2", "--missing-band", "reject"),
        [*verbs.RIPPLE, "score", str(model), str(tensors), "-o", str(scores), "--top", str(trials)],
        [*verbs.RIPPLE, "report", str(scores), "--model", str(model), "-o", str(directory / "page")],
        [*verbs.RIPPLE, "report", str(tensors), "-o", str(directory / "page2")],
        [*verbs.RIPPLE, "export", str(directory / "cutouts"), "--format=fits", "-o", str(directory / "fits")],
        [*verbs.RIPPLE, "export", str(tensors), "--format", "webdataset", "-o", str(directory / "web")],
        [*verbs.RIPPLE, "show", str(scores)], [*verbs.RIPPLE, "show", str(tensors)],
    ]  # fmt: skip
    outside = {p.name for p in directory.parent.iterdir()}
    for argv in chain:
        if argv[3:4] == ["score"]:
            _make_model(model, tensors)
        done = verbs.call(argv, cwd=directory)
        said = done.stdout + done.stderr
        if done.returncode != 0 or "Traceback" in said:
            tally.unnamed += 1
            tally.note(f"{argv[3]}: exit {done.returncode}: {done.stderr[-300:]!r}")
        if "\x1b" in said or "\x9b" in said or re.search(r"^FORGED", said, re.M):
            tally.silent += 1
            tally.note(f"{argv[3]}: a payload reached the terminal")
    tally.trials = trials
    if {p.name for p in directory.parent.iterdir()} != outside or list(directory.rglob("CANARY")):
        tally.silent += 1
        tally.note("files outside of the output")
    _names(tally, directory)
    _ids(tally, directory, ids)
    for page in directory.rglob("*.html"):
        _page(tally, page)
    for table in directory.rglob("*.csv"):
        _table(tally, table)


def _catalogue(directory: Path, ids: list[str]) -> Path:
    """Positions around those of the survey, a few arcsec apart."""
    assert verbs.SKY is not None
    truth = pq.read_table(verbs.SKY / "truth.parquet", columns=["ra", "dec"])
    ra, dec = (np.resize(truth[k].to_numpy(), len(ids)) for k in ("ra", "dec"))
    step = np.arange(len(ids)) // truth.num_rows
    path = directory / "catalogue.parquet"
    columns = {
        "id": ids,
        "ra": ra + 0.0005 * (step % 5),
        "dec": dec + 0.0005 * (step // 5),
        "note": ids[::-1],
    }
    pq.write_table(pa.table(columns), path)
    return path


def _make_model(directory: Path, tensors: Path) -> None:
    """Random weights whose contract is that of the tensors."""
    import torch

    from ripple.learn.model.contract import ArchitectureRecord, Contract, Facts, Member
    from ripple.learn.model.network import build
    from ripple.learn.model.weights import save_model

    facts = Facts.of(map_tensors(open_artefact(tensors).verified_path(0)))
    arch = ArchitectureRecord(name="d4cnn", bands=len(facts.bands), size=facts.size[0], outputs=1, width=2)
    contract = Contract(
        architecture=arch, bands=facts.bands, size=facts.size[0], pixel_scale=facts.pixel_scale,
        unit=facts.unit, psf_fwhm=facts.psf_fwhm, normalization=facts.normalization,
        class_map={"0": "nonlens", "1": "lens"}, output="lens",
        members=(Member(file="model.safetensors", bytes=0, sha256=""),),
    )  # fmt: skip
    torch.manual_seed(0)
    net = build(arch.architecture())
    torch.nn.init.normal_(net.head.weight)
    save_model(directory, contract, [net.state_dict()])


def _names(tally: Tally, directory: Path) -> None:
    """File names are ours: no part of an id is in them."""
    for path in directory.rglob("*"):
        if not re.fullmatch(r"\.?[A-Za-z0-9_.\-]{1,80}", path.name) or path.is_symlink():
            tally.silent += 1
            tally.note(f"file name {path.name!r}")


def _ids(tally: Tally, directory: Path, ids: list[str]) -> None:
    """Every id comes back as it was, in the indexes, the shards and the scores."""
    for kind in ("cutouts", "tensors"):
        artefact = open_artefact(directory / kind)
        index = artefact.index()
        if index["id"].to_pylist() != ids:
            wrong = [(a, b) for a, b in zip(index["id"].to_pylist(), ids, strict=False) if a != b]
            tally.lost += 1
            tally.note(f"{kind}: {wrong[:2]}")
        for k in range(len(artefact.shards)):
            batch: Any = (
                unpack_cutouts(artefact.read(k))
                if kind == "cutouts"
                else map_tensors(artefact.verified_path(k))
            )
            for i, name in zip(batch.catalog["index"], batch.catalog["id"], strict=True):
                if _text(name) != ids[int(i)]:
                    tally.silent += 1
                    tally.note(f"{kind} shard {k}: {_text(name)!r} is {ids[int(i)]!r}")
    known = set(ids)
    for name in pq.read_table(directory / "scores/scores.parquet")["id"].to_pylist():
        tally.silent += name not in known


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _page(tally: Tally, path: Path) -> None:
    page = _Page()
    page.feed(path.read_text())
    bad = [t for t, _ in page.tags if t not in TAGS]
    handlers = [n for _, attrs in page.tags for n in attrs if n.startswith("on")]
    links = [a for _, attrs in page.tags for a in (attrs.get("href"), attrs.get("src")) if a and ":" in a]
    foreign = [a for a in links if not a.startswith("data:image/png;base64,")]
    policies = [attrs for t, attrs in page.tags if t == "meta" and "Security" in str(attrs.get("http-equiv"))]
    if bad or handlers or foreign or not policies or sum(t == "script" for t, _ in page.tags) > 1:
        tally.silent += 1
        tally.note(f"{path.name}: {bad} {handlers} {foreign[:2]} policies {len(policies)}")


def _table(tally: Tally, path: Path) -> None:
    """No cell is a formula, no line was added by an id."""
    with path.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    for record in records:
        if None in record or any(v is None for v in record.values()):
            tally.silent += 1
            tally.note(f"{path.name}: a broken line")
        for name in ("id", "note"):
            if (record.get(name) or "").startswith(("=", "+", "-", "@", "\t", "\r")):
                tally.silent += 1
                tally.note(f"{path.name}: {name} {record[name][:30]!r} is a formula")
