"""Servers that misbehave while a repository is opened: exit 5, with what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ripple.cli import run
from ripple.errors import SourceError
from ripple.rubin.source_errors import of_the_network


@pytest.fixture(params=["html", "401", "403", "404"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The address of a server that answers every request alike, and how."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if request.param == "html" else int(request.param))
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html><body>please log in</body></html>")

        do_HEAD = do_GET  # noqa: N815 - the name that the server looks for

        def log_message(self, *_: object) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    # A port may come again, and clients remember what an address answered: each answer has its own path.
    yield f"http://127.0.0.1:{httpd.server_port}/butler-{request.param}", request.param
    httpd.shutdown()
    httpd.server_close()


def test_what_a_server_answers_is_named(
    server: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address, how = server
    monkeypatch.setenv("ACCESS_TOKEN", "gt-secret")
    argv = ["plan", "--repo", address, "--collections", "dp2", "--region", "CIRCLE 53 -28 0.1"]
    assert run(argv) == 5
    said = capsys.readouterr().err
    assert address in said
    assert "gt-secret" not in said
    expected = {"html": "login page", "401": "token in ACCESS_TOKEN is refused", "403": "(403)", "404": "404"}
    assert expected[how] in said


@pytest.mark.parametrize(("token", "why"), [(" gt-1", "blanks"), ("gt-1\n", "blanks"), ("gt-é", "not ASCII")])
def test_a_token_that_no_server_can_read(
    token: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCESS_TOKEN", token)
    assert run(["plan", "--repo", "https://nowhere.invalid/api", "--collections", "dp2"]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert "gt-" not in said


def test_a_refusal_of_a_signed_address_does_not_blame_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    monkeypatch.setenv("ACCESS_TOKEN", "gt-1")
    with pytest.raises(SourceError) as err, of_the_network("https://data.example/api"):
        raise requests.HTTPError("403 Client Error: Forbidden for url: https://store.example/x?sig=1")
    assert "token" not in str(err.value)


def test_no_repository_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan"]) == 2
    assert "no repository given" in capsys.readouterr().err
