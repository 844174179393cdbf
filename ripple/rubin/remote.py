"""Bytes of files behind http or in object stores: retried when that can help, complete, tokens kept secret.

Transient faults (no connection, 408, 425, 429, 5xx, a body cut short) are tried again at most three times,
later each time and not before the server's Retry-After. A body counts only when it has the length that was
announced. The access token comes from the environment, goes to the host of the repository alone, over https
or loopback, and appears in no message; nor does the query of a signed address.
"""

from __future__ import annotations

import email.utils
import functools
import http.client
import ipaddress
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from ripple.errors import SourceError, UnreadableError
from ripple.rubin.repository import Dataset, label
from ripple.rubin.source_errors import TOKEN_VARIABLES

if TYPE_CHECKING:
    import requests

_RUBIN_HOSTS = (".lsst.cloud", ".slac.stanford.edu")
# Timeout, too early, too many requests, and what gateways and overloaded servers answer.
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHUNK_BYTES = 1 << 20  # the deadline is looked at once per chunk
_MOST_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to try.

    Parameters
    ----------
    retries
        Further attempts after the first.
    backoff
        Seconds before the first retry, doubled each time.
    longest_wait
        Seconds of Retry-After beyond which it is not worth waiting.
    connect, idle
        Seconds to connect, and between two pieces of a body.
    deadline
        Seconds for one attempt.
    """

    retries: int = 3
    backoff: float = 0.5
    longest_wait: float = 120.0
    connect: float = 10.0
    idle: float = 60.0
    deadline: float = 900.0


PATIENT = Policy()


class _TransientError(Exception):
    """One attempt failed in a way that may pass; `wait` is the server's Retry-After in seconds."""

    def __init__(self, problem: str, *, wait: float = 0.0, cut: bool = False) -> None:
        super().__init__(problem)
        self.wait = wait
        self.cut = cut


class RemoteFile:
    """A file at an http or https address.

    Parameters
    ----------
    url
        Address, signed or not.
    name
        File, for messages.
    token
        Sent as a bearer token to the host of `url` and nowhere else.
    size
        Bytes that the file must have; -1 when not known, until the first range tells.
    policy
        How long to try.
    """

    def __init__(
        self, url: str, *, name: str, token: str | None = None, size: int = -1, policy: Policy = PATIENT
    ) -> None:
        self._url, self._token, self._policy = url, token, policy
        self.name, self.size = name, size
        # ETag of the first range: all later ones must come from the same version of the file.
        self._version: str | None = None

    def __repr__(self) -> str:
        """Without address and token."""
        return f"RemoteFile({self.name!r})"

    def read_all(self) -> bytes:
        """The whole file.

        Raises
        ------
        UnreadableError
            When it is missing, has the wrong length, or is a web page.
        SourceError
            When access is refused, or the server does not answer after all retries.
        """
        return _retried(lambda: self._get(None), self.name, self._policy)

    def read_range(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`, fewer only at the end of the file; errors as for `read_all`.

        The file must stay the same between calls: another ETag is an error.
        """
        if offset < 0 or length <= 0:
            raise UnreadableError(f"{self.name}: damaged, it points to {length} bytes at offset {offset}")
        return _retried(lambda: self._get((offset, length)), self.name, self._policy)

    def _get(self, span: tuple[int, int] | None) -> bytes:
        """One attempt at a range `(offset, length)`, or at the whole file."""
        # Lengths and ranges count the bytes of the file, so it must not be compressed on the way.
        headers = {"Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[0] + span[1] - 1}"
        with _network_faults(self.name):
            response = self._open_response(headers)
            with response:
                if span is not None and response.status_code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return b""  # begins beyond the end
                self._check_status(response)
                self._check_version(response, span)
                body = self._body(response)
        # A 206 has just the range; a 200 has the whole file, ranges ignored.
        if span is None or response.status_code == http.client.PARTIAL_CONTENT:
            return body
        return body[span[0] : span[0] + span[1]]

    def _open_response(self, headers: dict[str, str]) -> requests.Response:
        """The response after redirects; the token stays with the first host."""
        url = self._url
        for _ in range(_MOST_REDIRECTS + 1):
            sent = dict(headers)
            # Redirects go to object stores, which must not see the token of the repository.
            if self._token and _origin(url) == _origin(self._url) and _is_private(url):
                sent["Authorization"] = f"Bearer {self._token}"
            response = _session().get(
                url,
                headers=sent,
                stream=True,
                allow_redirects=False,
                timeout=(self._policy.connect, self._policy.idle),
            )
            target = response.headers.get("Location")
            if response.status_code not in (301, 302, 303, 307, 308) or not target:
                return response
            response.close()
            following = urljoin(url, target)
            if urlsplit(following).scheme not in ("http", "https"):
                raise SourceError(f"{self.name}: redirected to a {urlsplit(following).scheme} address")
            if urlsplit(url).scheme == "https" and urlsplit(following).scheme == "http":
                raise SourceError(f"{self.name}: redirected from https to http, which is not safe")
            url = following
        raise SourceError(f"{self.name}: more than {_MOST_REDIRECTS} redirects")

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (http.client.OK, http.client.PARTIAL_CONTENT):
            # Expired tokens lead to a sign-in page with status 200.
            kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
            if kind == "text/html":
                raise UnreadableError(
                    f"{self.name}: the server sent a web page instead of the file",
                    hint=f"if it is a sign-in page, set {TOKEN_VARIABLES[0]} to a valid access token",
                )
            return
        if status in _TRANSIENT_STATUS:
            raise _TransientError(f"the server answers {status}", wait=_retry_after(response))
        if status in (401, 403):
            raise SourceError(
                f"{self.name}: access refused ({status})",
                hint=f"set {TOKEN_VARIABLES[0]} to a valid access token with the right to read images",
            )
        if status in (404, 410):
            raise UnreadableError(f"{self.name}: the file is not there ({status})")
        raise UnreadableError(f"{self.name}: the server answers {status}")

    def _check_version(self, response: requests.Response, span: tuple[int, int] | None) -> None:
        """Ranges must be the requested ones, and all of one version of the file."""
        version = response.headers.get("ETag")
        if span is None:
            return
        if version is not None:
            if self._version not in (None, version):
                raise UnreadableError(f"{self.name}: the file changed while it was read")
            self._version = version
        if response.status_code == http.client.PARTIAL_CONTENT:
            found = re.match(r"bytes (\d+)-(\d+)/(\d+|\*)$", response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != span[0] or int(found[2]) > span[0] + span[1] - 1:
                raise UnreadableError(
                    f"{self.name}: the server sent another byte range than the requested one"
                )
            if found[3] != "*":
                if self.size not in (-1, int(found[3])):
                    raise _other_size(self.name, int(found[3]), self.size)
                self.size = int(found[3])
            # Only at the end of the file may a range be shorter.
            at_end = found[3] == "*" or int(found[2]) == int(found[3]) - 1
            if int(found[2]) < span[0] + span[1] - 1 and not at_end:
                raise _TransientError("the server sent a shorter range than the requested one", cut=True)

    def _body(self, response: requests.Response) -> bytes:
        """The body, whole or not at all."""
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise UnreadableError(f"{self.name}: the server sent compressed bytes, which were not requested")
        announced = response.headers.get("Content-Length", "")
        length = int(announced) if announced.isascii() and announced.isdigit() else -1
        whole = response.status_code == http.client.OK
        if whole and self.size >= 0 and length >= 0 and length != self.size:
            raise _other_size(self.name, length, self.size)
        # With no length at all, 16 GiB: no coadd is as large, and memory ends somewhere.
        limit = length if length >= 0 else self.size if self.size >= 0 else 1 << 34
        out = bytearray()
        end = time.monotonic() + self._policy.deadline
        # The raw stream: what came over the wire is counted, and nothing is decoded.
        for piece in response.raw.stream(_CHUNK_BYTES, decode_content=False):
            out += piece
            if len(out) > limit:
                raise _TransientError(f"the server sent more than {limit} bytes", cut=True)
            if time.monotonic() > end:
                raise _TransientError(f"only {len(out)} bytes came in {self._policy.deadline:.0f} s")
        expected = length if length >= 0 else self.size if whole else -1
        if expected >= 0 and len(out) != expected:
            raise _TransientError(f"the body was cut at {len(out)} of {expected} bytes", cut=True)
        return bytes(out)


def _other_size(name: str, found: int, recorded: int) -> UnreadableError:
    return UnreadableError(
        f"{name}: the server has {found} bytes, the Butler recorded {recorded}",
        hint="the file was cut short or replaced; restore it",
    )


def _retried(attempt: Callable[[], bytes], name: str, policy: Policy) -> bytes:
    """The bytes of the first attempt that succeeds; only transient faults are tried again."""
    for k in itertools.count():
        try:
            return attempt()
        except _TransientError as problem:
            # A server that asks for an hour is not waited for: the run can be resumed.
            if problem.wait > policy.longest_wait:
                message = f"{name}: {problem}, and asks to wait {problem.wait:.0f} s"
                raise SourceError(message, hint="run the same command again later to resume") from None
            if k == policy.retries:
                # A body that is always cut is the fault of this file; no answer is that of the server.
                kind = UnreadableError if problem.cut else SourceError
                message = f"{name}: {problem}; gave up after {k} retries"
                raise kind(message, hint="run the same command again later to resume") from None
            time.sleep(max(problem.wait, policy.backoff * 2**k))  # 0.5, 1, 2 s by default
    raise AssertionError


def read_remote(dataset: Dataset, *, repo: str, policy: Policy = PATIENT) -> bytes:
    """The whole file of a remote dataset.

    Parameters
    ----------
    dataset
        As planned; an empty `uri` is resolved again through the Butler, since signed addresses expire.
    repo
        Butler repository: root, label or http address.
    policy
        How long to try.

    Raises
    ------
    UnreadableError
        This file cannot be read; others may be readable.
    SourceError
        Access is refused, or the server does not answer.
    """
    name = label(dataset)
    url = dataset.uri or _current_address(dataset, repo, name)
    if urlsplit(url).scheme in ("http", "https"):
        return _remote_file(url, dataset, repo, policy).read_all()
    return _read_store(url, dataset, policy)


def open_remote(dataset: Dataset, *, repo: str, policy: Policy = PATIENT) -> RemoteFile:
    """A remote dataset of which ranges can be read: `Ranges(open_remote(...).read_range, name)`.

    Raises
    ------
    SourceError
        When the Butler cannot tell the address, or it is not http.
    """
    name = label(dataset)
    url = dataset.uri or _current_address(dataset, repo, name)
    if urlsplit(url).scheme not in ("http", "https"):
        raise SourceError(f"{name}: byte ranges need http, its address is of type {urlsplit(url).scheme!r}")
    return _remote_file(url, dataset, repo, policy)


def _remote_file(url: str, dataset: Dataset, repo: str, policy: Policy) -> RemoteFile:
    token = token_for(url, repo)
    return RemoteFile(url, name=label(dataset), token=token, size=dataset.size, policy=policy)


def token_for(url: str, repo: str) -> str | None:
    """The access token to send with a request, None when there is none to send.

    A token goes to the host of the repository, over https or loopback. Signed addresses, those with a query,
    need none, and object stores refuse requests that carry two credentials.

    Parameters
    ----------
    url
        Where the request goes.
    repo
        The repository that the user named.
    """
    # An origin is scheme, host and port: another port may be another service.
    if urlsplit(repo).scheme not in ("http", "https") or _origin(url) != _origin(repo):
        return None
    if urlsplit(url).query or not _is_private(url):
        return None
    host = urlsplit(url).hostname or ""
    # ACCESS_TOKEN is set by the Rubin notebooks, but is a name that others use too.
    explicit, notebook = (os.environ.get(variable) for variable in TOKEN_VARIABLES)
    return explicit or (notebook if host.endswith(_RUBIN_HOSTS) else None) or None


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port


def _is_private(url: str) -> bool:
    """Whether nobody on the way can read a header: https, or this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _retry_after(response: requests.Response) -> float:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, section 10.2.3); 0 without."""
    value = response.headers.get("Retry-After", "").strip()
    # Nine digits are 30 years; isascii, since int() reads other digits as well.
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


@functools.cache
def _session() -> requests.Session:
    """One connection pool per process."""
    import requests

    # Debug lines of urllib3 show signed addresses.
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    session = requests.Session()
    # Without an auth of its own a session looks into ~/.netrc.
    session.auth = _no_netrc
    return session


def _no_netrc(request: Any) -> Any:
    """In place of requests' own lookup: it would send what ~/.netrc has for the host."""
    return request


@contextmanager
def _network_faults(name: str) -> Iterator[None]:
    """Faults of the network as transient errors, without the request (and its token) that they carry."""
    import requests
    import urllib3

    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, ValueError) as error:
        raise SourceError(f"{name}: damaged address ({type(error).__name__})") from None
    except requests.exceptions.SSLError:
        raise SourceError(f"{name}: the server's certificate is not valid") from None
    except requests.exceptions.Timeout:
        raise _TransientError("the server does not answer in time") from None
    except urllib3.exceptions.ReadTimeoutError:
        raise _TransientError("the server stopped sending") from None
    except (urllib3.exceptions.ProtocolError, requests.exceptions.ChunkedEncodingError):
        raise _TransientError("the connection broke while the body came", cut=True) from None
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise _TransientError(f"no connection ({type(error).__name__})") from None


def _read_store(url: str, dataset: Dataset, policy: Policy) -> bytes:
    """A file in an object store, through lsst.resources, which signs the requests."""
    from lsst.resources import ResourcePath

    name = label(dataset)

    def attempt() -> bytes:
        try:
            data: bytes = ResourcePath(url, forceDirectory=False).read()
        except FileNotFoundError:
            raise UnreadableError(f"{name}: the file is not there") from None
        except PermissionError:
            raise SourceError(
                f"{name}: access refused", hint="set the access keys of the object store"
            ) from None
        except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
            raise SourceError(f"{name}: cannot be reached: {_without_secrets(error)}") from None
        except OSError as error:
            raise _TransientError(f"no connection ({type(error).__name__})") from None
        if 0 <= dataset.size != len(data):
            raise _TransientError(f"only {len(data)} of {dataset.size} bytes came", cut=True)
        return data

    return _retried(attempt, name, policy)


def _current_address(dataset: Dataset, repo: str, name: str) -> str:
    """The present address of a dataset; signed ones hold for about an hour."""
    from uuid import UUID

    from lsst.daf.butler import ButlerUserError

    try:
        butler = client(repo)
        ref = butler.get_dataset(UUID(dataset.uuid))
    except (ButlerUserError, OSError, RuntimeError, LookupError, ValueError) as error:
        raise SourceError(
            f"{name}: the Butler {repo} does not tell its address: {_without_secrets(error)}"
        ) from None
    try:
        address = None if ref is None else str(butler.getURI(ref).geturl())
    except (FileNotFoundError, LookupError):
        address = None
    except (ButlerUserError, OSError, RuntimeError, ValueError) as error:
        raise SourceError(
            f"{name}: the Butler {repo} does not tell its address: {_without_secrets(error)}"
        ) from None
    if address is None:
        raise UnreadableError(f"{name}: the repository no longer has this dataset")
    return address


@functools.cache
def client(repo: str) -> Any:
    """A read-only Butler, one per process and repository."""
    from lsst.daf.butler import Butler

    return Butler.from_config(repo, writeable=False)


def _without_secrets(error: Exception) -> str:
    """The first line of another library's error, without query strings and tokens."""
    # Signatures stand in queries; a token may stand anywhere in an error of another library.
    text = re.sub(r"\?\S*", "", str(error).splitlines()[0] if str(error) else type(error).__name__)
    for variable in TOKEN_VARIABLES:
        token = os.environ.get(variable)
        if token:
            text = text.replace(token, "***")
    return text[:300]
