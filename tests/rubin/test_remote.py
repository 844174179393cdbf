"""Files behind http on loopback, with every fault a server can have."""

from __future__ import annotations

import email.utils
import logging
import re
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
from http_server import BODY, CANARY, QUICK, Server, serve

from ripple.errors import SourceError, UnreadableError
from ripple.rubin import remote
from ripple.rubin.formats.fits import Ranges
from ripple.rubin.remote import PATIENT, Policy, RemoteFile, open_remote, read_remote, token_for
from ripple.rubin.repository import Dataset


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serve()


@pytest.fixture
def other() -> Iterator[Server]:
    yield from serve()


def file_of(server: Server, **options: object) -> RemoteFile:
    return RemoteFile(server.url("/patch.fits?sig=secret-signature"), name="patch", policy=QUICK, **options)


@pytest.mark.parametrize(
    "fault",
    [
        ("status", (500, {})), ("status", (502, {})), ("status", (503, {})), ("status", (504, {})),
        ("status", (429, {})), ("status", (408, {})), ("cut", 0), ("cut", 1), ("cut", 150_000),
        ("cut", len(BODY) - 1), ("silent", 1.0), ("hang_up", None),
    ],
)  # fmt: skip
def test_transient_faults_are_retried_and_nothing_partial_is_used(server, fault):
    server.script = [fault, fault, fault]
    assert file_of(server).read_all() == BODY
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(("status", (503, {})), SourceError), (("cut", 7), UnreadableError), (("hang_up", None), SourceError)],
)
def test_three_retries_and_no_more(server, fault, kind):
    server.script = [fault] * 9
    with pytest.raises(kind, match="gave up after 3 retries") as caught:
        file_of(server).read_all()
    assert len(server.seen) == 4
    assert "patch" in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (("status", (401, {})), SourceError, "access refused"),
        (("status", (403, {})), SourceError, "access refused"),
        (("status", (404, {})), UnreadableError, "not there"),
        (("status", (410, {})), UnreadableError, "not there"),
        (("status", (418, {})), UnreadableError, "418"),
        (("page", None), UnreadableError, "web page"),
        (("announce", 1000), UnreadableError, "recorded 300000"),
        (("redirect", "ftp://127.0.0.1/x"), SourceError, "ftp"),
    ],
)
def test_lasting_faults_are_named_at_once(server, fault, kind, words):
    server.script = [fault]
    with pytest.raises(kind, match=words):
        file_of(server, size=len(BODY)).read_all()
    assert len(server.seen) == 1


def test_no_redirect_from_https_to_http(monkeypatch):
    class Answer:
        status_code = 302
        headers: ClassVar = {"Location": "http://elsewhere.example/x"}

        def close(self) -> None:
            pass

    seen = []

    class Session:
        def get(self, url, **_):
            seen.append(url)
            return Answer()

    monkeypatch.setattr(remote, "_session", Session)
    with pytest.raises(SourceError, match="from https to http"):
        RemoteFile("https://example.org/f", name="patch", token=CANARY, policy=QUICK).read_all()
    assert seen == ["https://example.org/f"]


def test_redirect_loops_end(server):
    server.script = [("redirect", "/again")] * 20
    with pytest.raises(SourceError, match="redirects"):
        file_of(server).read_all()
    assert len(server.seen) == 6


def test_retry_after_is_honoured(server):
    server.script = [("status", (429, {"Retry-After": "1"}))]
    start = time.monotonic()
    assert file_of(server).read_all() == BODY
    assert 1.0 <= time.monotonic() - start < 3
    server.script = [("status", (503, {"Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)}))]
    start = time.monotonic()
    assert file_of(server).read_all() == BODY
    assert 0.5 <= time.monotonic() - start < 4


def test_too_long_a_wait_is_an_error(server):
    server.script = [("status", (429, {"Retry-After": "3600"}))]
    start = time.monotonic()
    with pytest.raises(SourceError, match="asks to wait 3600 s"):
        file_of(server).read_all()
    assert time.monotonic() - start < 1
    server.script = [("status", (503, {"Retry-After": "soon"}))]
    assert file_of(server).read_all() == BODY


def test_backoff_grows(server):
    server.script = [("status", (503, {}))] * 3
    start = time.monotonic()
    RemoteFile(server.url(), name="patch", policy=Policy(backoff=0.1)).read_all()
    assert 0.7 <= time.monotonic() - start < 2
    assert PATIENT.retries == 3


def test_nobody_listens(server):
    url = server.url()
    server.server_close()
    with pytest.raises(SourceError, match="no connection"):
        RemoteFile(url, name="patch", policy=QUICK).read_all()


def test_ranges(server):
    file = file_of(server)
    assert file.read_range(1000, 500) == BODY[1000:1500]
    assert file.read_range(len(BODY) - 10, 500) == BODY[-10:]
    assert file.read_range(len(BODY) + 5, 10) == b""
    server.script = [("cut", 10), ("status", (500, {}))]
    assert file.read_range(5, 50) == BODY[5:55]
    server.script = [("whole", None)]
    assert file.read_range(5, 50) == BODY[5:55]
    assert file.size == len(BODY)
    ranges = Ranges(file.read_range, "patch")
    assert [bytes(v) for v in ranges.many([(10, 5), (250_000, 7)])] == [BODY[10:15], BODY[250_000:250_007]]
    assert ranges.bytes_read() < 20_000


def test_wrong_ranges_and_changed_files_are_refused(server):
    file = file_of(server)
    with pytest.raises(UnreadableError, match="recorded 17"):
        file_of(server, size=17).read_range(0, 100)
    server.script = [("wrong_range", 7)]
    with pytest.raises(UnreadableError, match="another byte range"):
        file.read_range(0, 100)
    assert file.read_range(0, 100) == BODY[:100]
    server.script = [("other_version", None)]
    with pytest.raises(UnreadableError, match="changed"):
        file.read_range(0, 100)


def test_token_goes_to_the_repository_alone(server, other, monkeypatch):
    monkeypatch.setenv("BUTLER_RUBIN_ACCESS_TOKEN", CANARY)
    repo = server.url("/api/butler/repo/x")
    assert token_for(server.url(), repo) == CANARY
    assert token_for(other.url(), repo) is None
    assert token_for(server.url("/store/patch.fits?sig=1"), repo) is None
    assert token_for("https://data.lsst.cloud/f", repo) is None
    assert token_for("http://example.org/f", "http://example.org/repo") is None  # in the clear
    assert token_for("https://example.org/f", "https://example.org/repo") == CANARY
    assert token_for("file:///data/f", "/data") is None
    server.script = [("redirect", other.url())]
    assert RemoteFile(server.url(), name="patch", token=CANARY, policy=QUICK).read_all() == BODY
    assert server.tokens() == [f"Bearer {CANARY}"]
    assert other.tokens() == []
    server.script = [("redirect", "/here")]
    RemoteFile(server.url(), name="patch", token=CANARY, policy=QUICK).read_all()
    assert len(server.tokens()) == 3


def test_notebook_token_goes_to_rubin_only(monkeypatch):
    monkeypatch.delenv("BUTLER_RUBIN_ACCESS_TOKEN", raising=False)
    monkeypatch.setenv("ACCESS_TOKEN", CANARY)
    assert token_for("https://data.lsst.cloud/f", "https://data.lsst.cloud/api") == CANARY
    for host in ("evil-lsst.cloud", "data.lsst.cloud.example.org", "example.org"):
        assert token_for(f"https://{host}/f", f"https://{host}/api") is None


def test_no_secret_in_messages_or_logs(server, other, caplog):
    caplog.set_level(logging.DEBUG)
    faults = [
        ("status", (401, {})), ("status", (403, {})), ("status", (404, {})), ("status", (500, {})),
        ("cut", 3), ("hang_up", None), ("silent", 1.0), ("page", None),
        ("redirect", "ftp://x/?sig=secret-signature"), ("redirect", "http://[bad?sig=secret-signature"),
        ("redirect", "http://nowhere.invalid/?sig=secret-signature"),
    ]  # fmt: skip
    for fault in faults:
        server.script = [fault] * 4
        file = file_of(server, token=CANARY)
        with pytest.raises(SourceError) as caught:
            file.read_all()
        chain, error = [], caught.value
        while error is not None:
            chain.append(repr(error) + str(error))
            error = None if error.__suppress_context__ else error.__context__
        assert not re.search(f"{CANARY}|secret-signature", "".join(chain) + repr(file)), fault
    assert CANARY not in caplog.text
    assert "secret-signature" not in caplog.text


def test_netrc_is_not_sent(server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {CANARY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    file_of(server).read_all()
    assert "Authorization" not in server.seen[0][1]


def dataset(uri: str, size: int = len(BODY)) -> Dataset:
    return Dataset(
        "01a1f877-e695-7d8d-bf8f-ef3f12585aca", "run", "deep_coadd", "CellCoadd", 1, 2, "r", uri, size
    )


def test_planned_datasets(server, tmp_path):
    assert read_remote(dataset(server.url()), repo="/data", policy=QUICK) == BODY
    file = open_remote(dataset(server.url()), repo="/data", policy=QUICK)
    assert file.read_range(3, 4) == BODY[3:7]
    with pytest.raises(UnreadableError, match="recorded 17"):
        read_remote(dataset(server.url(), 17), repo="/data", policy=QUICK)
    with pytest.raises(SourceError, match="byte ranges need http"):
        open_remote(dataset("s3://bucket/f.fits"), repo="/data")
    with pytest.raises(SourceError, match="address"):
        read_remote(dataset(""), repo=str(tmp_path), policy=QUICK)
