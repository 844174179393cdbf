"""`ripple vet`: write what is graded, then serve the pages until the user stops it."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ripple.config import Json, canonical_json
from ripple.errors import ConfigError, DataError
from ripple.report.cutout_pictures import RowFluxes, fluxes_of_rows
from ripple.runtime.log import quiet
from ripple.runtime.summary import Summary, plain
from ripple.stages.plan.tables import read_table
from ripple.stages.report.figures import numbers
from ripple.stages.report.report import ranked_table, tensor_artefacts, with_truth
from ripple.stages.similar.query import Query, examples_of
from ripple.stages.similar.search import similarities
from ripple.stages.vet.config import SIMILAR, VetConfig
from ripple.stages.vet.wide import write_wide
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.directory import write_directory
from ripple.storage.embeddings import KIND as EMBEDDINGS
from ripple.storage.files import write_new
from ripple.storage.manifest import MANIFEST, read_manifest
from ripple.storage.parquet import parquet_bytes
from ripple.vetting.queue import Chosen, Order, choose, queue
from ripple.vetting.session import (
    HAS_WIDE,
    KIND,
    OBJECTS,
    PIXELS,
    SESSION,
    WIDE_PIXELS,
    Session,
    open_session,
)
from ripple.vetting.store import GRADES, Given, GradeStore, Record, read_grades, spread


def vet(config: VetConfig) -> Summary:
    """Let people grade the best rows of scores, or add the grades of a report page.

    Raises
    ------
    DataError
        The tensors that were scored are missing or have changed, or there are no rows.
    ConfigError
        The output belongs to other scores or options, or the port is in use.
    """
    start = time.perf_counter()
    scores = open_artefact(config.scores, "scores")
    context = None if config.context is None else open_artefact(config.context, "cutouts")
    inputs = {"scores": scores.digest, **_context_input(config.output, context)}
    write_directory(config.output, KIND, config, inputs, lambda d: write_session(d, scores, config, context))
    session = open_session(config.output)
    with closing(GradeStore(config.output)) as store:
        known = {name: store.order(name) for name in config.graders}
        tokens = {name: _joined(store, session, config, name) for name in config.graders}
        if config.import_:
            facts = add_page_grades(session, store, config.graders[0], config.import_)
        else:
            _say_orders(known, config.order)
            serve(session, store, tokens, config)
            facts = {}
    facts = {**_counts(session), **facts}
    return Summary("vet", str(config.output), facts, seconds=time.perf_counter() - start)


def _context_input(output: Path, context: Artefact | None) -> dict[str, str]:
    """Digest of the wide fields: of those given, else of those that the session has a copy of."""
    if context is not None:
        return {"context": context.digest}
    known = read_manifest(output, KIND)["inputs"] if (output / MANIFEST).is_file() else {}
    return {"context": known["context"]} if "context" in known else {}


def write_session(
    directory: Path, scores: Artefact, config: VetConfig, context: Artefact | None = None
) -> None:
    """Write what is graded: the objects, their pixels, and what the pixels are.

    Parameters
    ----------
    directory
        Of the session.
    scores, config
        Whose rows are graded, and how.
    context
        Larger cutouts of the same objects; None for no wide fields.

    Raises
    ------
    DataError
        The scores have no rows, or the larger cutouts cannot be those of the same objects.
    ConfigError
        They are no larger, or lack a band.
    """
    table = with_truth(ranked_table(scores), scores.attributes.get("lens_labels", [1]))
    if not table.num_rows:
        raise DataError(f"{scores.directory} has no rows to grade", hint="score tensors with rows")
    label = np.nan_to_num(numbers(table, "label"), nan=-1).astype(np.int8)
    chosen = choose(label, config.top, tests=config.tests, seed=config.seed)
    objects, rows = _objects(table, chosen)
    found = fluxes_of_rows(
        tensor_artefacts(scores), *(numbers(table, c)[rows].astype(np.int64) for c in ("shard", "row"))
    )
    pixels = _of_one_size(found)
    wide: Json = {}
    if context is not None:
        there, scale = write_wide(directory / WIDE_PIXELS, context, objects, found, pixels.shape[-1])
        objects, wide = objects.append_column(HAS_WIDE, pa.array(there)), {"wide_pixel_scale": scale}
    write_new(directory / OBJECTS, parquet_bytes(objects))
    with (directory / PIXELS).open("xb") as file:
        np.save(file, pixels, allow_pickle=False)
    facts = {
        "bands": list(found.bands),
        "pixel_scale": found.pixel_scale,
        "psf_fwhm": [float(w) if np.isfinite(w) else None for w in found.width],
        "tests": {"lenses": int((chosen.truth == 1).sum()), "others": int((chosen.truth == 0).sum())},
        "candidates": len(chosen.candidates),
        "prevalence": scores.attributes.get("prevalence"),
        **wide,
    }
    write_new(directory / SESSION, canonical_json(facts))


def _objects(table: pa.Table, chosen: Chosen) -> tuple[pa.Table, NDArray[np.int64]]:
    """The objects in order of rank, and where they are in the table."""
    rows = np.concatenate([chosen.candidates, chosen.tests])
    truth = np.concatenate([np.full(len(chosen.candidates), -1, np.int8), chosen.truth])
    order = np.argsort(rows, kind="stable")
    rows, truth = rows[order], truth[order]
    columns: dict[str, Any] = {"id": pc.cast(table["id"].take(rows), pa.string())}
    for name in ("ra", "dec", "score", "probability"):
        columns[name] = numbers(table, name)[rows]
    columns |= {"rank": numbers(table, "rank")[rows].astype(np.int64), "truth": truth}
    return pa.table(columns), rows


def _of_one_size(found: RowFluxes) -> NDArray[np.float32]:
    """`(N, B, H, W)`; smaller cutouts get a frame without pixels."""
    side = np.array([image.shape for image in found.image]).max(axis=0)
    out = np.full((len(found.image), *side), np.nan, np.float32)
    for frame, image in zip(out, found.image, strict=True):
        top, left = ((side - np.array(image.shape))[1:] // 2).tolist()
        frame[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return out


def _joined(store: GradeStore, session: Session, config: VetConfig, grader: str) -> str:
    """The token of a grader, who keeps the queue of the first session."""
    objects = grader_queue(session, config, grader) if store.order(grader) is None else np.zeros(0, np.int64)
    return store.join(grader, objects, config.order)


def _say_orders(known: Mapping[str, str | None], order: str) -> None:
    """Tell who goes on in another order than the one that was asked for."""
    for name, before in known.items():
        if before not in (None, order) and not quiet():
            print(f"{name} goes on in the order of the first session: {plain(str(before))}", file=sys.stderr)


def grader_queue(session: Session, config: VetConfig, grader: str) -> NDArray[np.int64]:
    """Objects by place for one grader.

    Raises
    ------
    ConfigError
        `--order similar:ID` with an id that the embeddings do not have.
    """
    order, value = _ordering(session, config)
    return queue(
        value, session.truth >= 0, order=order, repeat=config.repeat, seed=config.seed, grader=grader
    )


def _ordering(session: Session, config: VetConfig) -> tuple[Order, NDArray[np.float64]]:
    """The kind of order, and what it goes by."""
    match config.order:
        case "disagree":
            return "disagree", spread(read_grades(session.directory), session.objects.num_rows)
        case "shuffle" | "rank" | "uncertain":
            return config.order, session.numbers("probability")
    assert config.embeddings is not None
    embeddings = open_artefact(config.embeddings, EMBEDDINGS)
    name = config.order.removeprefix(SIMILAR)
    query = Query.of([examples_of(embeddings, [name])[name]])
    return "similar", similarities(embeddings, query, session.objects["id"])


def add_page_grades(session: Session, store: GradeStore, grader: str, path: Path) -> Json:
    """Add the grades that a report page has exported.

    Raises
    ------
    DataError
        The file has no columns `id` and `grade`, a grade is none of A, B, C and X, or no id is graded here.
    """
    table = read_table(path, id_column="id").columns
    if not {"id", "grade"} <= set(table.column_names):
        raise DataError(
            f"{path}: no columns id and grade", hint="give the grades.csv that a report page saves"
        )
    first: dict[str, int] = {}
    ids = session.objects["id"].to_pylist()
    for place, k in enumerate(store.queue(grader).tolist()):
        first.setdefault(ids[k], place)
    given: list[Given] = []
    for name, grade in zip(
        pc.cast(table["id"], pa.string()).to_pylist(), table["grade"].to_pylist(), strict=True
    ):
        if grade not in GRADES[:4]:
            raise DataError(f"{path}: {grade!r} is no grade", hint="grades are A, B, C and X")
        # The page puts an apostrophe before what a spreadsheet would run.
        key = name if name in first else str(name).removeprefix("'")
        if key in first:
            given.append(Given(first[key], grade))
    if not given:
        raise DataError(
            f"{path}: none of its {table.num_rows} ids is graded here", hint="give the page's scores"
        )
    store.add(grader, given, "page")
    return {"imported": len(given), "not among the objects": table.num_rows - len(given)}


# Serving ------------------------------------------------------------


def serve(session: Session, store: GradeStore, tokens: dict[str, str], config: VetConfig) -> None:
    """Serve the pages on 127.0.0.1 until SIGINT or SIGTERM.

    Raises
    ------
    ConfigError
        The port is in use.
    """
    import uvicorn  # the extra `vet`

    from ripple.vetting.app import Desk, Site, application

    secret = store.secret()
    with closing(_listen(config.port)) as listener:
        port = listener.getsockname()[1]
        names = frozenset(f"{host}:{port}" for host in ("127.0.0.1", "localhost"))
        site = Site(
            session, store, session.pictures(config.stretch, config.softening),
            {name: Desk(name, token, store.queue(name), secret) for name, token in tokens.items()},
            # A proxy asks under the name that it is known by.
            frozenset() if config.root_path else names,
            config.root_path, config.training, config.hide_ids,
        )  # fmt: skip
        # No log of requests: their addresses have the tokens.
        options = uvicorn.Config(
            application(site), log_level="warning", access_log=False, lifespan="off", ws="none",
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=3,
        )  # fmt: skip
        server = uvicorn.Server(options)
        server.capture_signals = lambda: _stopping(server)  # type: ignore[method-assign]
        _announce(tokens, port, config.root_path)
        server.run(sockets=[listener])


@contextmanager
def _stopping(server: Any) -> Iterator[None]:
    """A signal ends the server in an orderly way, and is then forgotten: it is how a session ends."""

    def stop(_signum: int, _frame: Any) -> None:
        server.should_exit = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()  # before the links are printed: whoever follows one at once waits, and is answered
    except OSError as err:
        listener.close()
        raise ConfigError(
            f"port {port}: {err.strerror}", hint="give another --port, or 0 for a free one"
        ) from None
    return listener


def _announce(tokens: dict[str, str], port: int, root_path: str) -> None:
    """Print the links; they are the answer, and go to stdout even with --quiet."""
    for name, token in tokens.items():
        print(
            f"http://127.0.0.1:{port}/{name}/{token}/"
            if not root_path
            else f"{root_path.rstrip('/')}/{name}/{token}/"
        )
    sys.stdout.flush()
    if not quiet():
        print(
            "Serving until Ctrl-C. A grade is on disk once the page shows the next object.", file=sys.stderr
        )


def _counts(session: Session) -> Json:
    """How far everybody is."""
    facts: Json = {"candidates": session.facts["candidates"]}
    facts["hidden tests"] = sum(session.facts["tests"].values())
    if "wide_pixel_scale" in session.facts:
        facts["with wide field"] = f"{int(session.has_wide.sum()):,} of {session.objects.num_rows:,}"
    by_grader: dict[str, list[Record]] = {}
    for record in read_grades(session.directory):
        by_grader.setdefault(record.grader, []).append(record)
    for name, records in by_grader.items():
        counts = {g: sum(r.grade == g for r in records) for g in GRADES}
        facts[f"grades of {name}"] = ", ".join(f"{n} {g}" for g, n in counts.items() if n)
    return facts
