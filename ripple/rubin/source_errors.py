"""What goes wrong on the way to a repository, as errors that name it: servers, stores, access tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ripple.errors import ConfigError, SourceError

#: Where tokens are looked for, as `lsst.daf.butler` does; the second is sent to Rubin hosts only.
TOKEN_VARIABLES = ("BUTLER_RUBIN_ACCESS_TOKEN", "ACCESS_TOKEN")

# Packages whose errors mean that a server, a store or the way there failed.
_NETWORK = (
    "httpx",
    "httpcore",
    "requests",
    "urllib3",
    "botocore",
    "boto3",
    "s3transfer",
    "lsst.daf.butler.remote_butler",
)


def check_token(repo: str) -> None:
    """Raise `ConfigError` for an access token that no server can read: blanks around it, or other letters."""
    if not repo.startswith("http"):
        return
    for name in TOKEN_VARIABLES:
        value = os.environ.get(name, "")
        if value != value.strip() or not value.isascii():
            what = "blanks around it" if value != value.strip() else "letters that are not ASCII"
            raise ConfigError(f"{name}: the token has {what}", hint="set it again, without them")


@contextmanager
def of_the_source(repo: str, what: str) -> Iterator[None]:
    """Turn what the Butler raises for a repository that it cannot open into a `SourceError`."""
    try:
        with of_the_network(repo):
            yield
    except (OSError, ValueError, RuntimeError, LookupError) as err:
        raise _source_error(repo, what, err) from None
    except (TypeError, AttributeError):
        # The configuration is YAML; a page in HTML is read as one long text.
        raise SourceError(
            f"{repo}: answers, but not as a Butler repository: what it sends is no configuration",
            hint="is the address that of a login page?",
        ) from None


@contextmanager
def of_the_network(repo: str) -> Iterator[None]:
    """Turn errors of network libraries into a `SourceError` that names the repository."""
    try:
        yield
    except Exception as err:  # these libraries share no base class
        if not type(err).__module__.startswith(_NETWORK):
            raise
        raise _source_error(repo, "the server or store failed", err) from None


def _source_error(repo: str, what: str, err: Exception) -> SourceError:
    """An error of the source; what 401, 403 and missing credentials mean is said."""
    text = " ".join(str(err).split())[:300]
    # A refusal by another host, as of a signed address of a store, says nothing of the token.
    own = repo.startswith("http") and (urlsplit(repo).hostname or repo) in text
    if own and ("401" in text or "403" in text):
        found = next((name for name in TOKEN_VARIABLES if os.environ.get(name)), None)
        said = f"the token in {found} is refused: wrong or expired" if found else "an access token is needed"
        hint = "make a new one on the portal of the data facility" if found else f"set {TOKEN_VARIABLES[1]}"
        return SourceError(f"{repo}: {said} ({'401' if '401' in text else '403'})", hint=hint)
    if "redentials" in text:
        return SourceError(f"{repo}: {text}", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return SourceError(f"{repo}: {what}: {text}")
