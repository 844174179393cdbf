"""`ripple committee`: several models, each with its contract and its own tensors, to one ranking.

The result is a scores artefact like that of `ripple score`. Its rows are those of the first member, shard by
shard, so that everything which looks for their pixels finds them in the tensors of that member; the others
are found by id.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ripple.config import Json, canonical_json
from ripple.errors import IntegrityError
from ripple.learn.model.calibrate import one_in
from ripple.learn.scoring.ranking import SORTED, top_csv, write_sorted
from ripple.runtime.profile import Profile, peak_rss
from ripple.runtime.summary import Summary
from ripple.stages.committee.combine import mean_logit, mean_rank, normalised_ranks, spread, verdict
from ripple.stages.committee.config import CommitteeConfig, RecordedConfig
from ripple.stages.committee.members import Member, Said, open_members, said_by
from ripple.stages.report.report import located
from ripple.storage.artefact import Artefact
from ripple.storage.checksums import listed
from ripple.storage.files import write_atomic
from ripple.storage.parquet import parquet_bytes
from ripple.storage.writer import Finished, create

TOP = "top.csv"


def committee(config: CommitteeConfig) -> Summary:
    """Combine the scores of several models of the same objects.

    Raises
    ------
    ConfigError
        Fewer than two scores, one of them twice, or the output was written with other options or inputs.
    ContractError
        A member regresses quantities, or members rank by different classes or state different prevalences.
    DataError
        An id occurs twice, or two members have fewer than half of their ids in common or other objects under
        them.
    IntegrityError
        A member is damaged.
    """
    start, profile = time.perf_counter(), Profile()
    with profile.time("read"):
        members = open_members(config.scores)
        said = said_by(members)
    first = members[0].artefact
    opened = create(
        config.output,
        kind="scores",
        config=_recorded(config, first),
        inputs=_inputs(members),
        units=len(first.shards),
        suffix=".parquet",
    )
    if isinstance(opened, Finished):
        return _summary(config, opened.artefact.attributes, 0.0)
    with profile.time("combine"):
        columns = _columns(members, said, config.rule)
    prevalence = members[0].prevalence if "probability" in columns else None
    named = {} if prevalence is None else {"prevalence of probability": f"{prevalence:.6g}"}
    with opened as writer:
        paths = [writer.directory / writer.name(k) for k in range(writer.units)]
        begin = 0
        for k, shard in enumerate(first.shards):
            if writer.done(k) is None:
                here = {name: column[begin : begin + shard.rows] for name, column in columns.items()}
                with profile.time("pack"):
                    data = parquet_bytes(_shard_table(first, k, here).replace_schema_metadata(named))
                with profile.time("write", bytes=len(data)):
                    writer.commit(k, data, shard.rows, {})
            begin += shard.rows
        with profile.time("rank"):
            digest, rows = write_sorted(paths, writer.directory / SORTED)
            if config.top:
                write_atomic(writer.directory / TOP, top_csv(writer.directory / SORTED, config.top))
        attributes = _attributes(
            members, said, config.rule, prevalence, {"name": SORTED, "sha256": digest}, rows
        )
        metrics = {"operations": profile.operations, "peak_rss": peak_rss()}
        index = first.index().replace_schema_metadata(named)
        writer.finish(index, metrics, attributes, files=listed(writer.directory, (SORTED, TOP)))
    return _summary(config, attributes, time.perf_counter() - start)


def _recorded(config: CommitteeConfig, first: Artefact) -> RecordedConfig:
    """The options with the tensors in which the rows lie; none for a search, which has written none."""
    paths = [located(Path(name), first.directory) for name in first.manifest["config"].get("tensors", ())]
    return RecordedConfig.make({**config.model_dump(), "tensors": paths})


def _inputs(members: Sequence[Member]) -> Json:
    """What the bytes depend on; `model` tells committees of other models apart."""
    found: Json = {"scores": [m.artefact.digest for m in members], "model": _identity(members)}
    tensors = members[0].artefact.inputs.get("tensors")
    return found if tensors is None else {**found, "tensors": tensors}


def _identity(members: Sequence[Member]) -> str:
    models = [m.artefact.inputs["model"] for m in members]
    return hashlib.sha256(canonical_json({"committee": models})).hexdigest()


def _columns(members: Sequence[Member], said: Said, rule: str) -> dict[str, Any]:
    """The columns of the committee, each `(N,)`, in the order of the rows of the first member."""
    by_rank = rule == "rank"
    score = mean_rank(said.score) if by_rank else mean_logit(said.score)
    if not np.isfinite(score).all():
        row = int(np.flatnonzero(~np.isfinite(score))[0])
        raise IntegrityError(
            f"no member has a score of the row {members[0].table['id'][row].as_py()!r}", hint="score again"
        )
    columns: dict[str, Any] = {"score": score}
    if all(m.prevalence is not None for m in members):
        columns["probability"] = mean_logit(said.probability).astype(np.float32)
    apart = spread(normalised_ranks(said.score) if by_rank else said.score)
    columns |= {
        "spread": apart.astype(np.float32),
        "split": verdict(said.split),
        "scored_by": np.isfinite(said.score).sum(axis=0).astype(np.int32),
    }
    return columns | {f"score_{k}": each for k, each in enumerate(said.score, start=1)}


def _shard_table(first: Artefact, k: int, columns: dict[str, Any]) -> pa.Table:
    """The table of one shard: position and catalogue of the first member, scores of the committee."""
    table = pq.read_table(first.verified_path(k), use_threads=False)
    names = table.column_names
    if not {"ra", "dec", "qc", "shard", "row"} <= set(names):
        raise IntegrityError(f"{first.shard_path(k)}: it lacks columns of scores", hint="score again")
    mine = {name: pa.array(column, from_pandas=True) for name, column in columns.items()}
    order = ("id", "ra", "dec", "score", "probability", "spread", "qc", "split", "shard", "row")
    out = {name: mine.pop(name) if name in mine else table[name] for name in order if name in {*mine, *names}}
    if "probability" not in columns:  # that of the first member alone
        out["probability"] = pa.nulls(table.num_rows, pa.float32())
    # What follows is the catalogue: answers of the model alone, such as classes, stand before the flags.
    rest = {name: table[name] for name in names[names.index("row") + 1 :] if name not in {*out, *mine}}
    return pa.table({**out, **mine, **rest})


def _attributes(
    members: Sequence[Member],
    said: Said,
    rule: str,
    prevalence: float | None,
    table: dict[str, str],
    rows: int,
) -> Json:
    attributes = [m.artefact.attributes for m in members]
    origins = [str(a["model"]["origin"]) for a in attributes]
    notes = list(said.notes)
    if prevalence is None:
        lacking = [str(k) for k, m in enumerate(members, start=1) if m.prevalence is None]
        notes.append(f"no probability: member {', '.join(lacking)} states no prevalence")
    return {
        "rows": rows,
        "sorted": table,
        "model": {"digest": _identity(members), "origin": f"a committee of {'; '.join(origins)}"},
        "members": len(members),
        "rule": rule,
        "ranked_by": members[0].ranked_by,
        "output": "lens",
        "lens_labels": attributes[0].get("lens_labels", [1]),
        "bands": list(dict.fromkeys(band for a in attributes for band in a["bands"])),
        "prevalence": prevalence,
        "training_prevalence": None,
        "committee": {
            f"member {k}": {
                "scores": m.artefact.digest,
                "model": m.artefact.inputs["model"],
                "origin": origin,
                "bands": list(m.artefact.bands),
            }
            for k, (m, origin) in enumerate(zip(members, origins, strict=True), start=1)
        },
        "notes": notes,
    }


def _summary(config: CommitteeConfig, attributes: Json, seconds: float) -> Summary:
    facts: Json = {
        "rows": attributes["rows"],
        "members": attributes["members"],
        "score": "mean of the ranks, 0 to 1" if attributes["rule"] == "rank" else "sigmoid of the mean logit",
    }
    if (prevalence := attributes.get("prevalence")) is not None:
        facts["probability"] = f"where {one_in(prevalence)} is a lens; not calibrated for the committee"
    return Summary(
        "committee",
        str(config.output),
        facts,
        seconds=seconds,
        done_before=not seconds,
        notes=tuple(attributes.get("notes", ())),
    )
