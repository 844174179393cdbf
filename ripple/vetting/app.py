"""The web application of `ripple vet`: one link per grader, pictures on demand, grades on disk at once.

    GET  /NAME/TOKEN/                     the page
    GET  /NAME/TOKEN/items?from=&count=   what is at some places of the grader's queue
    GET  /NAME/TOKEN/picture/KEY?view=    a picture
    POST /NAME/TOKEN/grades               grades; the token again in the header X-Ripple-Token

Hidden tests pass through the same code as all other objects, and nothing that is sent tells them apart: the
key of an object is a keyed hash of grader and place. All addresses on the page are relative, so that it
works behind a proxy.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ripple.vetting.pictures import Pictures
from ripple.vetting.session import Session
from ripple.vetting.store import KINDS, LONGEST_NOTE, Given, Grade, GradeStore, Record

MOST_ITEMS, MOST_BYTES = 200, 1 << 20
_POLICY = (
    "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The page is never kept; a picture only within the browser, for as long as the next page waits.
    "Cache-Control": "no-store",
}
_PICTURE_CACHE = "private, max-age=3600"


class _Grade(BaseModel):
    """One grade as a page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str = Field(max_length=64)
    grade: Grade
    kind: str = Field("", pattern="^(" + "|".join(KINDS) + ")?$")
    note: str = Field("", max_length=LONGEST_NOTE)
    seconds: float | None = Field(None, ge=0, le=86_400, allow_inf_nan=False)
    view: str = Field("", max_length=40)


class _Sent(BaseModel):
    """What a page sends: the grades of one object, or of a page of the mosaic."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: str = Field(pattern="^(one|mosaic)$")
    grades: list[_Grade] = Field(min_length=1, max_length=MOST_ITEMS)


@dataclass(frozen=True)
class Desk:
    """What one grader works on: the token of the link, and objects by place."""

    name: str
    token: str
    queue: NDArray[np.int64]
    secret: bytes

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys by place; they say nothing about the object."""
        return tuple(self._key(place) for place in range(len(self.queue)))

    @cached_property
    def places(self) -> dict[str, int]:
        """Key -> place."""
        return {key: place for place, key in enumerate(self.keys)}

    def _key(self, place: int) -> str:
        mac = hmac.new(self.secret, f"{self.name}\0{place}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(mac[:15]).decode()


@dataclass(frozen=True)
class Site:
    """Everything the application needs.

    Parameters
    ----------
    session, store, pictures
        What is graded, where grades go, and what it looks like.
    desks
        By the name of the grader.
    hosts
        Names under which the server may be asked for; empty behind a proxy, which has names of its own.
    root_path
        Prefix that a proxy may leave in the address.
    training, hide_ids
        Tell the truth of a test after it was graded; show no ids and positions.
    """

    session: Session
    store: GradeStore
    pictures: Pictures
    desks: dict[str, Desk]
    hosts: frozenset[str]
    root_path: str = ""
    training: bool = False
    hide_ids: bool = False


def application(site: Site) -> ASGIApp:
    """The ASGI application."""
    own = [
        Route("/", _with_desk(site, _page)),
        Route("/items", _with_desk(site, _items)),
        Route("/picture/{key}", _with_desk(site, _picture)),
        Route("/vet.js", _with_desk(site, _asset)),
        Route("/vet.css", _with_desk(site, _asset)),
    ]

    async def post(request: Request) -> Response:
        return await _grades(site, request)

    routes = [Mount("/{name}/{token}", routes=[*own, Route("/grades", post, methods=["POST"])])]
    prefix = site.root_path.rstrip("/")
    app = Starlette(routes=[*([Mount(prefix, routes=routes)] if prefix else []), *routes])
    return _Guarded(app, site.hosts)


class _Guarded:
    """Security headers on every answer, and no answer under a name of somebody else's.

    A page of another host, whose name was made to lead to this machine, would otherwise be of our origin.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":
            return
        if self.hosts and Headers(scope=scope).get("host") not in self.hosts:
            await _refused()(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)


def _refused() -> Response:
    return PlainTextResponse("This link is not valid. Use the link that `ripple vet` printed.\n", 403)


def _desk(site: Site, request: Request) -> Desk | None:
    """The desk of a link; None for an unknown name or another token, after the same time."""
    found = site.desks.get(request.path_params["name"])
    wanted = found.token if found else "0" * 32
    same = hmac.compare_digest(request.path_params["token"].encode(), wanted.encode())
    return found if same else None


def _with_desk(
    site: Site, answer: Callable[[Site, Desk, Request], Response]
) -> Callable[[Request], Response]:
    """An endpoint that answers valid links only; it runs in a thread."""

    def endpoint(request: Request) -> Response:
        desk = _desk(site, request)
        return answer(site, desk, request) if desk else _refused()

    return endpoint


# What is shown ------------------------------------------------------


def _page(site: Site, desk: Desk, _: Request) -> Response:
    settings = {
        "grader": desk.name,
        "token": desk.token,
        "total": len(desk.queue),
        "views": site.pictures.views,
        "kinds": KINDS,
        "scale": site.pictures.pixel_scale,
        "wide_scale": site.pictures.wide.pixel_scale if site.pictures.wide else None,
        "legend": site.pictures.colours.text(site.pictures.bands),
        "training": site.training,
    }
    page = _environment().get_template("vet.html.j2").render(settings=json.dumps(settings), **settings)
    return Response(page, media_type="text/html")


@cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader("ripple.vetting"), autoescape=True, undefined=StrictUndefined)


def _asset(_site: Site, _desk: Desk, request: Request) -> Response:
    name = request.url.path.rpartition("/")[2]
    kind = {"vet.js": "text/javascript", "vet.css": "text/css"}[name]
    return Response((files("ripple.vetting") / "templates" / name).read_bytes(), media_type=kind)


def _items(site: Site, desk: Desk, request: Request) -> Response:
    """Places `from` to `from + count`; without `from`, from the first one that has no grade."""
    latest = site.store.latest(desk.name)
    total = len(desk.queue)
    first = _number(request, "from", _next(latest, total, 0))
    count = min(_number(request, "count", 1), MOST_ITEMS)
    items = [_item(site, desk, place, latest.get(place)) for place in range(first, min(first + count, total))]
    return JSONResponse({"from": first, "done": len(latest), "total": total, "items": items})


def _item(site: Site, desk: Desk, place: int, record: Record | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"place": place, "key": desk.keys[place], "grade": "", "kind": "", "note": ""}
    if record is not None:
        shown |= {"grade": record.grade, "kind": record.kind, "note": record.note}
    k, objects = int(desk.queue[place]), site.session.objects
    name, where = "", ""
    if not site.hide_ids:
        ra, dec = (float(objects[c][k].as_py()) for c in ("ra", "dec"))
        name, where = str(objects["id"][k].as_py()), f"{ra:.5f} {dec:+.5f}"
    return shown | {"id": name, "position": where, "wide": bool(site.session.has_wide[k])}


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default


def _next(latest: dict[int, Record], total: int, after: int) -> int:
    """The first place from `after` on without a grade, else the first such place at all, else `total`."""
    places = [*range(after, total), *range(min(after, total))]
    return next((place for place in places if place not in latest), total)


def _picture(site: Site, desk: Desk, request: Request) -> Response:
    place = desk.places.get(request.path_params["key"])
    view = request.query_params.get("view", "default")
    if place is None or view not in site.pictures.views:
        return PlainTextResponse("There is no such picture.\n", 404)
    data = site.pictures.png(int(desk.queue[place]), view)
    return Response(data, media_type="image/png", headers={"Cache-Control": _PICTURE_CACHE})


# What is graded -----------------------------------------------------


async def _grades(site: Site, request: Request) -> Response:
    """Keep grades, then answer."""
    desk = _desk(site, request)
    if desk is None or not _from_our_page(request, desk):
        return _refused()
    body = await _body(request)
    try:
        sent = _Sent.model_validate_json(body)
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False, include_input=False)[0]
        return PlainTextResponse(f"{'.'.join(map(str, first['loc']))}: {first['msg']}\n", 422)
    if any(g.key not in desk.places for g in sent.grades):
        return PlainTextResponse("There is no such object.\n", 422)
    given = [_given(desk, g) for g in sent.grades]
    # In this thread: a commit takes milliseconds, and answers come in the order of the grades.
    site.store.add(desk.name, given, "training" if site.training else sent.source)
    latest = site.store.latest(desk.name)
    answer: dict[str, Any] = {
        "done": len(latest),
        "next": _next(latest, len(desk.queue), given[-1].place + 1),
    }
    if site.training:
        truth = site.session.truth[desk.queue[[g.place for g in given]]]
        answer["tests"] = [{1: "lens", 0: "not a lens"}.get(int(t), "") for t in truth]
    return JSONResponse(answer)


def _given(desk: Desk, sent: _Grade) -> Given:
    kind = sent.kind if sent.grade == "X" else ""
    return Given(desk.places[sent.key], sent.grade, kind, sent.note, sent.seconds, sent.view)


def _from_our_page(request: Request, desk: Desk) -> bool:
    """Whether a request comes from the page of this grader and not from another host's."""
    head = request.headers
    if head.get("content-type", "").partition(";")[0].strip() != "application/json":
        return False
    # Another host's page can neither read the token nor send a header of its own.
    if not hmac.compare_digest(head.get("x-ripple-token", "").encode(), desk.token.encode()):
        return False
    if (site := head.get("sec-fetch-site")) is not None:
        return site == "same-origin"
    origin = head.get("origin")
    return origin is None or urlsplit(origin).netloc == head.get("host")


async def _body(request: Request) -> bytes:
    """The body, cut off where it is longer than any page sends; then it is no JSON."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            break
        parts.append(part)
    return b"".join(parts)
