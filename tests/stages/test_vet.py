"""`ripple vet` as graders meet it: real processes, a real browser, and people who mean harm."""

from __future__ import annotations

import html
import http.client
import io
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import Browser, started
from cutout_artefacts import write as write_artefact
from made_embeddings import write_embeddings
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from tensorsets import make_scores
from toys import toy_batch, write_batches

import ripple
from ripple.cli import run
from ripple.errors import ConfigError, DataError
from ripple.imaging.batch import CutoutBatch
from ripple.stages.consensus.config import ConsensusConfig
from ripple.stages.consensus.consensus import consensus
from ripple.stages.consensus.panel import gather
from ripple.stages.vet.config import VetConfig
from ripple.stages.vet.vet import _say_orders, grader_queue, vet, write_session
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.directory import write_directory
from ripple.storage.shards import images_of
from ripple.vetting.consensus import fuse
from ripple.vetting.pictures import Wide
from ripple.vetting.session import open_session
from ripple.vetting.store import Given, GradeStore, Record, read_grades

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</body><iframe src=//x>", "{{ 7*7 }}",
    "javascript:alert(1)", "&lt;i&gt;", "=1+1", "\u202eabc", "'><svg/onload=alert(1)>",
]  # fmt: skip


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vet")
    ids = np.array([*HOSTILE, *(f"object {k}" for k in range(111))])
    batches = [
        toy_batch(60, k, first=60 * k, size=24, catalog_extra={"id": ids[60 * k : 60 * k + 60]})
        for k in (0, 1)
    ]
    write_batches(root / "tensors", batches)
    return make_scores(root / "scores", root / "tensors")


class Server:
    """`ripple vet` in a process of its own."""

    def __init__(self, scores: Path, output: Path, *options: str, graders: str = "ann") -> None:
        command = [sys.executable, "-m", "ripple", "vet", str(scores), "-o", str(output), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--graders", graders, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.links = [self.process.stdout.readline().strip() for _ in graders.split(",")]
        assert all(self.links), self.process.communicate()[1]
        self.port = int(self.links[0].split(":")[2].split("/")[0])
        self.paths = [link.partition(f":{self.port}")[2] for link in self.links]
        self.tokens = [path.split("/")[2] for path in self.paths]

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            method = "GET" if body is None else "POST"
            data = None if body is None else json.dumps(body) if not isinstance(body, str) else body
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def items(self, who: int = 0, first: int = 0, count: int = 200) -> list[dict[str, Any]]:
        found = json.loads(self.ask(f"{self.paths[who]}items?from={first}&count={count}")[2])
        return list(found["items"])

    def grade(self, key: str, grade: str, who: int = 0, **more: Any) -> tuple[int, dict[str, Any] | str]:
        head = {"Content-Type": "application/json", "X-Ripple-Token": self.tokens[who]}
        body = {"source": "one", "grades": [{"key": key, "grade": grade, **more}]}
        status, _, data = self.ask(f"{self.paths[who]}grades", body, head)
        return status, json.loads(data) if status == 200 else data.decode()

    def stop(self, signum: int = signal.SIGINT) -> int:
        self.process.send_signal(signum)
        self.process.communicate(timeout=30)
        return self.process.returncode


@contextmanager
def serving(*args: Any, **options: Any) -> Iterator[Server]:
    server = Server(*args, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def served(scores: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for two graders, shared by tests that do not mind the grades of others."""
    with serving(scores, tmp_path_factory.mktemp("shared") / "grades", graders="ann,bob") as server:
        yield server


def last(directory: Path, who: str = "ann") -> dict[int, Record]:
    return {r.place: r for r in read_grades(directory) if r.grader == who}


# Links and requests of others ---------------------------------------


def opened(scores: Path, output: Path, **options: Any) -> tuple[Any, VetConfig]:
    """A session that nobody serves."""
    config = VetConfig.make({"scores": str(scores), "output": str(output), **options})
    fresh = write_directory(
        output, "grades", config, {"scores": "0"}, lambda d: write_session(d, open_artefact(scores), config)
    )
    assert fresh or output.exists()
    return open_session(output), config


def test_the_order_by_likeness(scores: Path, tmp_path: Path) -> None:
    session, _ = opened(scores, tmp_path / "g", top=40, tests=False, repeat=0.0)
    ids = session.objects["id"].to_pylist()
    features = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    there = [k for k in range(len(ids)) if k % 5]  # the others were not embedded
    known = write_embeddings(tmp_path / "e", features[there], (len(there),), id=[ids[k] for k in there])
    how = {"top": 40, "tests": False, "repeat": 0.0, "order": f"similar:{ids[7]}", "embeddings": str(known)}
    _, config = opened(scores, tmp_path / "g", **how)  # another order, the same session
    places = grader_queue(session, config, "ann").tolist()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    wanted = sorted(there, key=lambda k: -float(unit[k] @ unit[7]))
    assert places[0] == 7
    assert places[len(there) :] == [k for k in range(len(ids)) if k % 5 == 0]
    assert np.mean(np.array(places[:10]) == np.array(wanted[:10])) > 0.7  # int8 may swap neighbours
    _, config = opened(scores, tmp_path / "g", **how | {"order": "similar:nobody"})
    with pytest.raises(ConfigError, match="has no row 'nobody'"):
        grader_queue(session, config, "ann")


def test_what_others_disagree_on_comes_first(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, config = opened(scores, tmp_path / "g", top=40, tests=False, repeat=0.0)
    with closing(GradeStore(session.directory)) as store:
        for name, grades in (("ann", "AXB"), ("bob", "XXC")):
            objects = grader_queue(session, config, name)
            store.join(name, objects)
            place = {int(k): at for at, k in enumerate(objects)}
            store.add(
                name, [Given(place[k], grade) for k, grade in zip((9, 4, 22), grades, strict=True)], "one"
            )
    _, config = opened(scores, tmp_path / "g", top=40, tests=False, repeat=0.0, order="disagree")
    assert grader_queue(session, config, "cleo").tolist()[:2] == [9, 22]
    _say_orders({"ann": "shuffle", "cleo": None}, "disagree")
    assert capsys.readouterr().err == "ann goes on in the order of the first session: shuffle\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order": "best"}, "none of shuffle, rank"),
        ({"order": "similar:", "embeddings": "e"}, "needs an id"),
        ({"order": "similar:3"}, "belong together"),
        ({"embeddings": "e"}, "belong together"),
    ],
)
def test_orders_that_cannot_be_meant(scores: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        VetConfig.make({"scores": str(scores), "output": "g", **options})


def test_only_the_link_opens_the_page(served: Server) -> None:
    ann, bob = served.paths
    assert served.ask(ann)[0] == 200
    swapped = f"/ann/{served.tokens[1]}/"
    for path in (swapped, "/ann/x/", "/nobody/x/", ann[:-2] + "/", f"/ann/{served.tokens[0]}%20/"):
        for tail in ("", "items", "vet.js", "picture/x"):
            status, _, body = served.ask(path + tail)
            assert status == 403, path + tail
            assert served.tokens[0].encode() not in body
    assert served.ask("/")[0] == 404
    assert bob != ann


def test_pages_of_other_hosts_cannot_grade(served: Server) -> None:
    key, path = served.items(first=60)[0]["key"], f"{served.paths[0]}grades"
    body = {"source": "one", "grades": [{"key": key, "grade": "A"}]}
    json_type, token = {"Content-Type": "application/json"}, {"X-Ripple-Token": served.tokens[0]}
    ours = json_type | token
    refused = [
        json_type, token, {"Content-Type": "text/plain"} | token,
        json_type | {"X-Ripple-Token": served.tokens[1]},
        ours | {"Origin": "https://evil.example"}, ours | {"Origin": "null"},
        ours | {"Sec-Fetch-Site": "cross-site"}, ours | {"Sec-Fetch-Site": "same-site"},
        ours | {"Host": "evil.example"}, ours | {"Host": f"evil.example:{served.port}"},
    ]  # fmt: skip
    assert [served.ask(path, body, head)[0] for head in refused] == [403] * len(refused)
    assert served.items(first=60)[0]["grade"] == ""
    assert served.ask(path, body, ours | {"Origin": f"http://127.0.0.1:{served.port}"})[0] == 200
    status, head, _ = served.ask(path, None)
    assert status in (404, 405)
    assert "access-control-allow-origin" not in head


@pytest.mark.parametrize(
    "body",
    [
        "", "[]", "{", '{"source": "one", "grades": []}',
        '{"source": "page", "grades": [{"key": "K", "grade": "A"}]}',
        '{"source": "one", "grades": [{"key": "other", "grade": "A"}]}',
        '{"source": "one", "grades": [{"key": "K", "grade": "D"}]}',
        '{"source": "one", "grades": [{"key": "K", "grade": "X", "kind": "planet"}]}',
        '{"source": "one", "grades": [{"key": "K", "grade": "A", "seconds": NaN}]}',
        '{"source": "one", "grades": [{"key": "K", "grade": "A", "seconds": -1}]}',
        '{"source": "one", "grades": [{"key": "K", "grade": "A", "place": 3}]}',
        '{"source": "one", "grades": [{"key": "K", "grade": "A", "note": "' + "x" * 2001 + '"}]}',
        '{"source": "one", "grades": [{"key": "K", "grade": "A", "note": "' + "x" * 3_000_000 + '"}]}',
    ],
)  # fmt: skip
def test_what_is_no_grade_is_refused_and_changes_nothing(served: Server, body: str) -> None:
    item = served.items(first=61)[0]
    head = {"Content-Type": "application/json", "X-Ripple-Token": served.tokens[0]}
    status, _, text = served.ask(f"{served.paths[0]}grades", body.replace('"K"', f'"{item["key"]}"'), head)
    assert status == 422, text
    assert served.items(first=61)[0]["grade"] == ""


def test_nothing_that_is_sent_tells_tests_from_others(served: Server, scores: Path) -> None:
    """Same headers, same fields, keys without meaning."""
    items = served.items()
    assert {tuple(sorted(item)) for item in items} == {
        ("grade", "id", "key", "kind", "note", "place", "position", "wide")
    }
    assert len({item["key"] for item in items}) == len(items)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{20}", item["key"]) for item in items)
    assert not {item["key"] for item in served.items(who=1)} & {item["key"] for item in items}
    heads = set()
    for item in items[:40]:
        status, head, body = served.ask(f"{served.paths[0]}picture/{item['key']}?view=default")
        assert (status, body[:4]) == (200, b"\x89PNG")
        heads.add(tuple(sorted((k, v) for k, v in head.items() if k not in ("date", "content-length"))))
    assert len(heads) == 1
    page = served.ask(served.paths[0])[2].decode()
    assert "lens" not in re.sub(r"(certain|probable|possible|no) lens", "", page)


def test_every_view_is_a_picture_and_unknown_ones_are_not(served: Server) -> None:
    key = served.items()[0]["key"]
    seen = set()
    for view in ("default", "brighter", "bluer", "inverted", "residual", "g", "r", "i"):
        status, _, body = served.ask(f"{served.paths[0]}picture/{key}?view={view}")
        assert status == 200, view
        seen.add(body)
    assert len(seen) == 8
    for path in (f"picture/{key}?view=z", f"picture/{key}?view=../../x", "picture/nobody"):
        assert served.ask(served.paths[0] + path)[0] == 404


def test_security_headers_are_on_every_answer(served: Server) -> None:
    for path in (served.paths[0], served.paths[0] + "items", served.paths[0] + "picture/x", "/ann/x/", "/"):
        _, head, _ = served.ask(path)
        assert head["content-security-policy"].startswith("default-src 'none'"), path
        assert head["x-content-type-options"] == "nosniff"
        assert head["referrer-policy"] == "no-referrer"
        assert "server" not in head


def test_behind_a_proxy(scores: Path, tmp_path: Path) -> None:
    """One that leaves its prefix in the address, and one that takes it off; the host is the proxy's."""
    root = "/user/ann/proxy/8050"
    with proxied(scores, tmp_path / "g", root, free_port()) as (port, link):
        assert link.startswith(root + "/ann/")
        for asked in (link, link.removeprefix(root)):
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                connection.request("GET", asked + "items?count=1", headers={"Host": "hub.example"})
                answer = connection.getresponse()
                assert (answer.status, len(json.loads(answer.read())["items"])) == (200, 1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def proxied(scores: Path, output: Path, root: str, port: int) -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "ripple", "vet", str(scores), "-o", str(output), "--graders", "ann"]
    command += ["--port", str(port), "--root-path", root]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        link = process.stdout.readline().strip()
        yield port, link
    finally:
        process.kill()
        process.communicate()


# Wide fields --------------------------------------------------------

#: Objects, by rank, of which there is no larger cutout.
WITHOUT = (1, 4)


@pytest.fixture(scope="module")
def context(scores: Path) -> Path:
    """Cutouts of 40 px in other bands and another order, of all rows of the scores but two."""
    return write_context(scores, scores.parent / "context")


def write_context(scores: Path, output: Path, **changes: Any) -> Path:
    table = pq.read_table(scores / "scores.parquet").select(["id", "ra", "dec"])
    kept = [k for k in range(table.num_rows) if k not in WITHOUT][::-1]
    columns = {name: np.array(table[name].to_pylist())[kept] for name in table.column_names}
    image = np.random.default_rng(5).normal(0, 0.3, (len(kept), 4, 40, 40)).astype(np.float32)
    image[:, :, 20, 20] = 100.0
    fields = {"image": image, "bands": "zirg", "catalog": columns, "rows_per_shard": 50, "pixel_scale": 0.25}
    ripple.write_cutouts(output, **(fields | changes))
    return output


def test_wide_fields_are_those_of_the_objects(scores: Path, context: Path, tmp_path: Path) -> None:
    output, page = tmp_path / "g", tmp_path / "grades.csv"
    best = pq.read_table(scores / "scores.parquet")["id"].to_pylist()
    page.write_text("id,grade\n" + "".join(f'"{k}",A\n' for k in best if k.startswith("object")))
    base = {"scores": scores, "output": output, "graders": ["ann"], "import_": page, "top": 70}
    done = vet(VetConfig.make(base | {"context": context}))
    session = open_session(output)
    count, lacking = session.objects.num_rows, set(np.flatnonzero(~session.has_wide).tolist())
    assert done.facts["with wide field"] == f"{count - len(lacking)} of {count}"
    ids = session.objects["id"].to_pylist()
    assert {ids[k] for k in lacking} == {best[k] for k in WITHOUT} & set(ids)
    assert lacking
    drawn = session.pictures(8.0, 8.0)
    assert drawn.wide is not None
    found = open_artefact(context)
    index = [found.index()[name].to_pylist() for name in ("id", "shard", "row")]
    rows = {name: place for name, *place in zip(*index, strict=True)}
    shards = [images_of(found, k) for k in range(len(found.shards))]
    assert len(shards) == 3
    for k in range(count):
        if k in lacking:
            assert np.isnan(drawn.wide.pixels[k]).all()
            assert (drawn.rgb(k, "wide") == 0).all()
        else:
            shard, row = rows[ids[k]]
            assert np.array_equal(drawn.wide.pixels[k], shards[shard].image[row][[3, 2, 1]])  # g, r, i
    assert drawn.rgb(0, "wide").shape == (40, 40, 3)
    assert drawn.views == ("default", "brighter", "bluer", "inverted", "residual", "wide", "g", "r", "i")
    assert drawn.wide_noise.colour == pytest.approx(0.3, rel=0.5)
    # Of the same pixels with more around them: the same picture with more around it.
    image = np.pad(drawn.pixels, ((0, 0), (0, 0), (8, 8), (8, 8)), constant_values=30.0)
    more = replace(drawn, wide=Wide(image, np.ones(count, bool), drawn.pixel_scale))
    assert np.array_equal(more.rgb(5, "wide")[8:-8, 8:-8], drawn.rgb(5, "default"))
    # GRADES has a copy: it goes on without the cutouts, but not with others. The bytes are the same again.
    assert vet(VetConfig.make(base)).facts["with wide field"] == done.facts["with wide field"]
    with pytest.raises(ConfigError, match="context"):
        vet(VetConfig.make(base | {"context": write_context(scores, tmp_path / "c", pixel_scale=0.3)}))
    vet(VetConfig.make(base | {"context": context, "output": tmp_path / "again"}))
    for name in ("manifest.json", "wide.npy", "objects.parquet", "session.json"):
        assert (tmp_path / "again" / name).read_bytes() == (output / name).read_bytes()
    assert verify(output) == []
    vet(VetConfig.make(base | {"output": tmp_path / "plain"}))
    assert open_session(tmp_path / "plain").pictures(8.0, 8.0).wide is None
    with pytest.raises(ConfigError, match="context"):  # nor does a session get them later
        vet(VetConfig.make(base | {"output": tmp_path / "plain", "context": context}))


def test_cutouts_that_cannot_be_the_surroundings(scores: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], words: str, name: str, **changes: Any) -> None:
        config = VetConfig.make({"scores": scores, "output": tmp_path / "g"})
        if changes:
            write_context(scores, tmp_path / name, **changes)
        context = open_artefact(tmp_path / name)
        (tmp_path / f"session-{name}").mkdir()
        with pytest.raises(kind, match=words):
            write_session(tmp_path / f"session-{name}", open_artefact(scores), config, context)

    table = pq.read_table(scores / "scores.parquet").select(["id", "ra", "dec"])
    columns = {name: np.array(table[name].to_pylist())[2:] for name in table.column_names}
    image = np.zeros((len(columns["id"]), 4, 30, 30), np.float32)
    given = {"image": image, "catalog": columns}
    refused(ConfigError, "shows 3 arcsec, no more than .* objects .4.8", "small", **given, pixel_scale=0.1)
    refused(ConfigError, "has no band 'g'", "band", bands="zirY")
    moved = columns | {"dec": columns["dec"] + 0.01}
    refused(DataError, "is another object in .*: 36 arcsec", "moved", image=image, catalog=moved)
    others = columns | {"id": np.array([f"other {k}" for k in range(len(columns["id"]))])}
    refused(DataError, "none of its 118 ids is graded here", "others", image=image, catalog=others)
    batch = images_of(open_artefact(tmp_path / "others"), 0)
    assert isinstance(batch, CutoutBatch)
    twice = replace(batch, catalog=batch.catalog | {"id": np.array(["object 5"] * len(batch))})
    write_artefact(tmp_path / "twice", twice, 0, per_shard=len(batch))
    refused(DataError, "cutouts have the id 'object 5'", "twice")


def test_the_page_shows_wide_fields_and_says_where_there_is_none(
    scores: Path, context: Path, tmp_path: Path
) -> None:
    how = ("--order", "rank", "--context", str(context), "--no-tests", "--repeat", "0")
    with serving(scores, tmp_path / "g", *how) as server:
        items = server.items()
        assert [item["place"] for item in items if not item["wide"]] == list(WITHOUT)
        page = server.ask(server.paths[0])[2].decode()
        assert '<option value="wide">' in page
        settings = json.loads(html.unescape(re.search(r'data-settings="([^"]*)"', page)[1]))  # type: ignore[index]
        assert (settings["scale"], settings["wide_scale"]) == (0.2, 0.25)
        heads = set()
        for item in items[:6]:
            status, head, body = server.ask(f"{server.paths[0]}picture/{item['key']}?view=wide")
            with Image.open(io.BytesIO(body)) as picture:
                assert (status, picture.size) == (200, (40, 40))
                brightest = picture.convert("L").getextrema()[1]
            assert (brightest > 0) == item["wide"]
            heads.add(tuple(sorted((k, v) for k, v in head.items() if k not in ("date", "content-length"))))
        assert len(heads) == 1
        assert {item["id"] for item in items} > set(HOSTILE)
        assert server.grade(items[1]["key"], "B", view="wide")[0] == 200


# Grades -------------------------------------------------------------


def test_no_acknowledged_grade_is_lost_and_everybody_resumes(scores: Path, tmp_path: Path) -> None:
    """Two graders, one of them in two tabs; kill -9 in the middle."""
    output = tmp_path / "grades"
    told: list[tuple[int, int, str]] = []
    with serving(scores, output, graders="ann,bob") as server:
        links = server.links
        items = [server.items(who) for who in (0, 1)]
        for place in range(6):
            for who, grade in ((0, "ABCX"[place % 4]), (1, "XCBA"[place % 4])):
                status, answer = server.grade(items[who][place]["key"], grade, who, seconds=1.5)
                assert status == 200
                assert isinstance(answer, dict)
                assert answer["next"] == place + 1
                told.append((who, place, grade))
                assert last(output, ("ann", "bob")[who])[place].grade == grade  # on disk before the answer
        with closing(sqlite3.connect(output / "grades.sqlite")) as base:
            assert base.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert (output / "grades.sqlite").stat().st_mode & 0o077 == 0
        # The other tab of ann goes back to the third object.
        assert server.grade(items[0][2]["key"], "X", kind="ring", note="a 'ring' <b>")[0] == 200
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    want = {(who, place): grade for who, place, grade in told} | {(0, 2): "X"}
    for who, name in enumerate(("ann", "bob")):
        assert {p: r.grade for p, r in last(output, name).items()} == {
            place: grade for (w, place), grade in want.items() if w == who
        }
    assert (last(output)[2].kind, last(output)[2].note) == ("ring", "a 'ring' <b>")
    with serving(scores, output, graders="ann,bob") as server:
        assert [link.split("/")[3:] for link in server.links] == [link.split("/")[3:] for link in links]
        for who in (0, 1):
            start = json.loads(server.ask(f"{server.paths[who]}items?count=1")[2])
            assert (start["from"], start["done"]) == (6, 6)
        assert server.stop(signal.SIGINT) == 0
    assert verify(output) == []
    assert run(["show", str(output)]) == 0


def test_only_training_tells_the_truth_of_tests(scores: Path, tmp_path: Path, served: Server) -> None:
    session_of = tmp_path / "g"
    with serving(scores, session_of, "--training") as server:
        answers = [server.grade(item["key"], "C")[1] for item in server.items()[:20]]
    truth = open_session(session_of).truth
    told = {1: "lens", 0: "not a lens", -1: ""}
    assert [a["tests"] for a in answers if isinstance(a, dict)] == [
        [told[int(truth[r.object])]] for r in last(session_of).values()
    ]
    assert sum(truth[r.object] >= 0 for r in last(session_of).values()) == 8
    answer = served.grade(served.items(1)[0]["key"], "C", 1)[1]
    assert isinstance(answer, dict)
    assert set(answer) == {"done", "next"}


def test_grades_of_a_report_page_come_in(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "grades.csv"
    page.write_text(
        'id,ra,dec,rank,probability,grade\r\n"object 3",1,2,3,0.5,A\r\n'
        '"\'=1+1",1,2,3,0.5,X\r\nnobody,1,2,3,0.5,B\r\n'
    )
    output = tmp_path / "g"
    command = ["vet", str(scores), "-o", str(output), "--graders", "ann", "--import", str(page), "--json"]
    assert run(command) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert (facts["imported"], facts["not among the objects"]) == (2, 1)
    ids = open_session(output).objects["id"].to_pylist()
    assert {(ids[r.object], r.grade, r.source) for r in read_grades(output)} == {
        ("object 3", "A", "page"), ("=1+1", "X", "page"),
    }  # fmt: skip
    for row, message in (("object 3,D", "'D' is no grade"), ("nobody,A", "none of its 1 ids")):
        page.write_text(f"id,grade\n{row}\n")
        with pytest.raises(DataError, match=message):
            vet(VetConfig.make({"scores": scores, "output": output, "graders": ["ann"], "import_": page}))


def test_another_session_is_refused(scores: Path, tmp_path: Path) -> None:
    page = tmp_path / "grades.csv"
    page.write_text("id,grade\nobject 3,A\n")
    base = {"scores": scores, "output": tmp_path / "g", "graders": ["ann"], "import_": page}
    vet(VetConfig.make(base))
    vet(VetConfig.make(base | {"graders": ["bob"], "hide_ids": True}))
    with pytest.raises(ConfigError, match="top: 300 -> 20"):
        vet(VetConfig.make(base | {"top": 20}))
    for graders in (["a/b"], ["ann", "ann"], [], ["ann", "bob"]):
        with pytest.raises(ConfigError, match="grader"):
            vet(VetConfig.make(base | {"graders": graders}))
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        del base["import_"]
        with pytest.raises(ConfigError, match="--port"):
            vet(VetConfig.make(base | {"port": taken.getsockname()[1]}))


# A real browser -----------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("browser")) as made:
        yield made


LEFT, ESCAPE, RIGHT = "\ue012", "\ue00c", "\ue014"
#: What the page has shown so far: grades that were kept, views, requests to others.
READY = "return document.body.dataset.idle && document.getElementById('picture').complete"


def at_rest(browser: Browser, place: int) -> None:
    browser.wait(f"return document.body.dataset.place === '{place}'")
    browser.wait(READY)


def test_a_grader_at_the_keyboard(browser: Browser, scores: Path, tmp_path: Path) -> None:
    output = tmp_path / "g"
    with serving(scores, output, "--order", "rank") as server:
        browser.visit(server.links[0])
        at_rest(browser, 0)
        browser.press("a", "B", "c", "x", "1", "4", "s")  # as fast as they come
        at_rest(browser, 7)
        assert [(r.grade, r.kind) for r in last(output).values()] == [
            ("A", ""), ("B", ""), ("C", ""), ("X", ""), ("X", "spiral"), ("X", "artefact"), ("skip", ""),
        ]  # fmt: skip
        assert all(r.seconds is not None and 0 < r.seconds < 60 for r in last(output).values())
        # A note: its letters are no grades.
        browser.press("n")
        browser.wait("return document.activeElement.id === 'note'")
        browser.press(*"abcx <b>&", ESCAPE)
        assert len(last(output)) == 7
        browser.press("b")
        at_rest(browser, 8)
        assert (last(output)[7].grade, last(output)[7].note) == ("B", "abcx <b>&")
        # Back, and another grade.
        browser.press(LEFT, LEFT)
        at_rest(browser, 6)
        browser.press("c")
        at_rest(browser, 8)
        assert last(output)[6].grade == "C"
        # Views change the picture.
        seen = set()
        for _ in range(8):
            seen.add(browser.run("return document.getElementById('picture').src"))
            browser.press("v")
            browser.wait(READY)
        assert len(seen) == 8
        assert "8 of" in browser.run("return document.getElementById('progress').textContent")
        assert "per minute" in browser.run("return document.getElementById('rate').textContent")
        assert "″" in browser.run("return document.getElementById('barname').textContent")
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        # What cannot be saved is said, and nothing moves on.
        browser.press("a")
        browser.wait("return document.getElementById('message').textContent.startsWith('Not saved')")
        assert browser.run("return document.body.dataset.place") == "8"
    with serving(scores, output, "--order", "rank") as server:
        browser.visit(server.links[0])
        at_rest(browser, 8)
    assert len(last(output)) == 8


def test_the_wide_field_in_the_browser(browser: Browser, scores: Path, context: Path, tmp_path: Path) -> None:
    how = ("--order", "rank", "--context", str(context), "--no-tests", "--repeat", "0")
    with serving(scores, tmp_path / "g", *how) as server:
        browser.visit(server.links[0])
        at_rest(browser, 0)
        bar = "return document.getElementById('bar').style.width"
        hidden = "return document.getElementById('nowide').hidden"
        before = browser.run(bar)
        for _ in range(5):
            browser.press("v")
        browser.wait("return document.getElementById('picture').naturalWidth === 40")
        assert browser.run("return document.getElementById('view').value") == "wide"
        assert browser.run(bar) != before
        assert browser.run(hidden)
        browser.press(RIGHT)
        at_rest(browser, 1)
        assert not browser.run(hidden)
        browser.press("v")
        browser.wait("return document.getElementById('nowide').hidden")
        browser.run("document.getElementById('view').value = 'wide'")
        browser.press("m")
        browser.wait("return document.querySelectorAll('#grid img').length === 36")
        said = "return [...document.querySelectorAll('#grid button')].filter(b => b.dataset.nowide).length"
        assert browser.run(said) == len(WITHOUT)
        assert server.stop() == 0


def test_the_mosaic(browser: Browser, scores: Path, tmp_path: Path) -> None:
    output = tmp_path / "g"
    with serving(scores, output, "--order", "rank") as server:
        browser.visit(server.links[0])
        at_rest(browser, 0)
        browser.press("m")
        browser.wait("return document.querySelectorAll('#grid img').length === 36")
        browser.wait("return [...document.querySelectorAll('#grid img')].every(i => i.naturalWidth === 24)")
        click = "document.querySelectorAll('#grid button')[arguments[0]].click()"
        for tile, times in ((0, 1), (3, 2), (5, 3), (7, 4)):
            for _ in range(times):
                browser.run(click, tile)
        browser.press(RIGHT)
        browser.wait("return document.body.dataset.place === '36'")
        found = last(output)
        assert {p: r.grade for p, r in found.items() if r.grade != "X"} == {0: "B", 3: "A", 5: "C"}
        assert len(found) == 36
        assert {r.source for r in found.values()} == {"mosaic"}
        browser.press(LEFT)
        browser.wait("return document.body.dataset.place === '0'")
        shown = "[...document.querySelectorAll('#grid button')].map(b => b.dataset.mark)"
        marks = browser.wait(f"const m = {shown}; return m.length === 36 && m;")
        assert (marks[0], marks[3], marks[5], marks[7]) == ("B", "A", "C", "X")
        assert server.stop() == 0


def test_hostile_ids_and_notes_stay_text_and_nothing_leaves(
    browser: Browser, scores: Path, tmp_path: Path
) -> None:
    with serving(scores, tmp_path / "g", "--order", "rank", "--no-tests", "--repeat", "0") as server:
        items = server.items()
        for item in items:
            if item["id"] in HOSTILE:
                server.grade(item["key"], "X", note=item["id"])
        browser.log()  # what pages of earlier tests still asked for when their server ended
        browser.visit(server.links[0])
        at_rest(browser, next(i["place"] for i in items if i["id"] not in HOSTILE))
        count = "return document.querySelectorAll('*').length"
        elements = browser.run(count)
        hostile = [i for i in items if i["id"] in HOSTILE]
        assert len(hostile) == len(HOSTILE)
        at = int(browser.run("return document.body.dataset.place"))
        for item in sorted(hostile, key=lambda i: i["place"]):
            while at != item["place"]:
                step = 1 if at < item["place"] else -1
                browser.press(*[RIGHT if step > 0 else LEFT] * abs(item["place"] - at))
                at = item["place"]
            at_rest(browser, at)
            assert browser.run("return document.getElementById('name').textContent") == item["id"]
            assert browser.run("return document.getElementById('note').value") == item["id"]
            assert browser.run(count) == elements
        loaded = browser.run("return performance.getEntriesByType('resource').map(e => new URL(e.name).host)")
        assert set(loaded) == {f"127.0.0.1:{server.port}"}
        assert [m for m in browser.log() if "favicon" not in m and "ERR_CONNECTION" not in m] == []


# Three people --------------------------------------------------------

#: Probability of X, C, B, A for an object that is no lens, and for a lens.
PEOPLE = {
    "careful": ((0.86, 0.08, 0.04, 0.02), (0.04, 0.10, 0.26, 0.60)),
    "careless": ((0.45, 0.25, 0.20, 0.10), (0.25, 0.25, 0.25, 0.25)),
    "contrarian": ((0.10, 0.20, 0.30, 0.40), (0.55, 0.25, 0.15, 0.05)),
}


@pytest.mark.slow
def test_three_people_at_the_keyboard_are_known_afterwards(browser: Browser, tmp_path: Path) -> None:
    """300 candidates each, by keyboard through the pages; kill -9 in the middle; then the consensus."""
    batches = [toy_batch(400, k, first=400 * k, size=24) for k in (0, 1)]
    write_batches(tmp_path / "tensors", batches)
    scores = make_scores(tmp_path / "scores", tmp_path / "tensors")
    label = {
        str(i): int(v) for b in batches for i, v in zip(b.catalog["id"], b.catalog["label"], strict=True)
    }
    output, names = tmp_path / "g", ",".join(PEOPLE)
    pressed: dict[str, list[str]] = {}
    with serving(scores, output, graders=names) as server:
        for who, (name, chances) in enumerate(PEOPLE.items()):
            rng = np.random.default_rng(who)
            ids = [item["id"] for k in (0, 200, 400) for item in server.items(who, k)]
            pressed[name] = [str(rng.choice(list("xcba"), p=chances[label[i]])) for i in ids]
            half = len(ids) // 2
            browser.visit(server.links[who])
            at_rest(browser, 0)
            for low in range(0, half, 50):
                browser.press(*pressed[name][low : min(low + 50, half)])
            browser.wait(f"return document.body.dataset.place === '{half}'", 120)
        timing = [(float(seen_in(server, item["key"])), item["place"]) for item in server.items()[:150]]
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with serving(scores, output, graders=names) as server:
        for who, name in enumerate(PEOPLE):
            browser.visit(server.links[who])
            at_rest(browser, half)
            for low in range(half, len(pressed[name]), 50):
                browser.press(*pressed[name][low : low + 50])
            browser.wait("return !document.getElementById('end').hidden", 120)
    for name, keys in pressed.items():
        assert [r.grade for r in last(output, name).values()] == [key.upper() for key in keys]

    done = consensus(ConsensusConfig.make({"grades": [output], "output": tmp_path / "candidates"}))
    assert done.facts["hidden tests"] > 40
    panel = gather([open_session(output)])
    fused = fuse(panel.level, panel.truth)
    for j, name in enumerate(panel.graders):
        true, total = np.array(PEOPLE[name]), fused.counts[j].sum(axis=1, keepdims=True)
        # Three standard deviations of the counts, and the pull of the prior.
        error = 3 * np.sqrt(true * (1 - true) / total) + 8 / total
        assert (np.abs(fused.confusion[j] - true) < error).all(), (name, fused.confusion[j])
    table = pq.read_table(tmp_path / "candidates/candidates.parquet")
    found = np.array([label[i] for i in table["id"].to_pylist()])
    assert average_precision_score(found, table["probability"].to_numpy()) > 0.9

    # How long a picture takes says nothing about what it is.
    queue = [r.object for r in last(output, "careful").values()]
    is_test = np.array([open_session(output).truth[queue[place]] >= 0 for _, place in timing])
    assert 0.35 < roc_auc_score(is_test, [seconds for seconds, _ in timing]) < 0.65


def seen_in(server: Server, key: str) -> float:
    """Seconds for a picture: the median of five."""
    took = []
    for _ in range(5):
        begin = time.perf_counter()
        server.ask(f"{server.paths[0]}picture/{key}?view=default")
        took.append(time.perf_counter() - begin)
    return float(np.median(took))
