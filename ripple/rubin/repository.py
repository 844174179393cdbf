"""A Butler repository, opened read-only: collections, dataset types, sky maps, datasets.

Opening a repository means trusting it: its configuration names the classes that are imported. The `skyMap`
dataset, a pickle, is never read here.
"""

from __future__ import annotations

import itertools
import logging
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from ripple.config import suggest
from ripple.errors import ConfigError, InputError, SkyMapError, SourceError, UnreadableError
from ripple.rubin.source_errors import check_token, of_the_network, of_the_source

if TYPE_CHECKING:
    import pyarrow as pa
    from lsst.daf.butler import Butler, DatasetRef, LimitedButler
    from lsst.sphgeom import Region

#: Coadd dataset types by release, newest first: DP2 and DP1, then DP0.2 and HSC.
COADD_TYPES = ("deep_coadd", "deepCoadd_calexp", "deepCoadd")
#: Object tables by release, newest first.
OBJECT_TYPES = ("object", "objectTable_tract", "objectTable")
#: Tracts in one query: their numbers stand in its text.
TRACTS_PER_QUERY = 200
#: Probes of a locked registry before giving up; each waits `LOCK_SECONDS`.
LOCK_TRIES, LOCK_SECONDS = 15, 2.0
#: The first probe gives up sooner, so that the user hears at once that the registry is locked.
FIRST_LOCK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Dataset:
    """One coadd of one patch and band.

    Parameters
    ----------
    uuid
        Butler dataset id.
    run
        The RUN collection that holds it.
    dataset_type, storage_class
        As registered.
    tract, patch, band
        Data ID.
    uri
        Where the file is, without query string; empty when it must be resolved again (signed addresses).
    size
        Bytes, as the Butler recorded them; -1 when it did not.
    checksum
        As the Butler recorded it (BLAKE2b), usually empty.
    sha256
        What the whole file must hash to, from a list of trusted digests; empty when nothing is known.
    """

    uuid: str
    run: str
    dataset_type: str
    storage_class: str
    tract: int
    patch: int
    band: str
    uri: str
    size: int
    checksum: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """A registered patch.

    Parameters
    ----------
    patch
        Sequential id.
    column, row
        Position in the tract.
    corners
        `((ra, dec), ...)` deg, corners of the outer box; pixel edges, not centres.
    """

    patch: int
    column: int
    row: int
    corners: tuple[tuple[float, float], ...]


class Inventory(Protocol):
    """What a planner asks of the sky that is there: an open `Repository`, or the inputs of one quantum.

    All methods are as those of `Repository`.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def collections(self) -> tuple[str, ...]:
        """Collections in search order."""
        ...

    def coadd_type(self, name: str | None) -> str:
        """The coadd dataset type."""
        ...

    def object_type(self, name: str | None) -> str:
        """The dataset type of the object table."""
        ...

    def skymaps(self) -> dict[str, tuple[bytes, int]]:
        """Registered sky maps: SHA-1 of their configuration, and number of tracts."""
        ...

    def skymap_name(self, dataset_type: str, name: str | None) -> str:
        """The sky map of the coadds."""
        ...

    def tracts(self, dataset_type: str, skymap: str) -> tuple[int, ...]:
        """Tracts that have datasets of a type, ascending."""
        ...

    def bands(self, dataset_type: str, skymap: str) -> tuple[str, ...]:
        """Bands of the coadds, in order."""
        ...

    def datasets(
        self, dataset_type: str, skymap: str, tracts: Iterable[int], bands: Iterable[str], where: str | None
    ) -> list[Dataset]:
        """Coadds of tracts, sorted by tract, patch, band."""
        ...

    def head(self, dataset: Dataset, size: int) -> bytes:
        """The first `size` bytes of a dataset's file, all of them when `size` is negative."""
        ...

    def registered_patches(self, skymap: str, tracts: Iterable[int]) -> set[tuple[int, int]]:
        """(tract, patch) of all registered patches of tracts."""
        ...

    def registered_tracts(self, skymap: str) -> set[int]:
        """All registered tracts."""
        ...

    def tract_regions(self, skymap: str) -> dict[int, Region]:
        """Outer region (lsst.sphgeom) of each registered tract."""
        ...

    def patch_records(self, skymap: str, tract: int) -> list[PatchRecord]:
        """Registered patches of a tract, by id."""
        ...

    def object_tables(
        self, dataset_type: str, skymap: str, tracts: Iterable[int], wanted: Callable[[list[str]], list[str]]
    ) -> Iterator[tuple[str, pa.Table]]:
        """(dataset id, Arrow table) of the object tables of tracts, in order."""
        ...


@dataclass(frozen=True)
class Repository:
    """An open repository and the collections to search, in order.

    Parameters
    ----------
    name
        As the user gave it.
    butler
        Opened read-only.
    collections
        As given, globs expanded.
    """

    name: str
    butler: Butler
    collections: tuple[str, ...]

    def coadd_type(self, name: str | None) -> str:
        """The coadd dataset type: `name`, or the first of `COADD_TYPES` that has datasets here.

        Raises
        ------
        InputError
            Not registered, without datasets in the collections, or not one per tract, patch and band.
        """
        found = self._find_type(name, COADD_TYPES, "coadds", "dataset_type")
        # Warps, for example, also have a visit; a plan needs one coadd per tract, patch and band.
        dimensions = set(self.butler.get_dataset_type(found).dimensions.required)
        if dimensions != {"skymap", "tract", "patch", "band"}:
            raise InputError(
                f"dataset type {found!r} has the dimensions {', '.join(sorted(dimensions))}",
                hint="coadds have skymap, tract, patch and band",
            )
        return found

    def object_type(self, name: str | None) -> str:
        """The dataset type of the object table: `name`, or the first of `OBJECT_TYPES` that has datasets."""
        return self._find_type(name, OBJECT_TYPES, "object table", "object_type")

    def _find_type(self, name: str | None, candidates: tuple[str, ...], what: str, key: str) -> str:
        for candidate in (name,) if name else candidates:
            if self._has_datasets(candidate):
                return candidate
        held = sorted(t.name for t in self.butler.registry.queryDatasetTypes() if self._has_datasets(t.name))
        option = "--" + key.replace("_", "-")
        wanted = f"datasets of {name!r}" if name else f"{what} ({', '.join(candidates)})"
        raise InputError(
            f"{self.name}: no {wanted} in {', '.join(self.collections)}"
            + (suggest(name, held) if name else ""),
            hint=f"these collections have {', '.join(held) or 'no datasets'}; name one with {option}",
        )

    def _has_datasets(self, dataset_type: str) -> bool:
        from lsst.daf.butler import MissingDatasetTypeError

        try:
            refs = self.butler.query_datasets(dataset_type, self.collections, limit=1, explain=False)
        except MissingDatasetTypeError:
            return False
        return bool(refs)

    def skymaps(self) -> dict[str, tuple[bytes, int]]:
        """Registered sky maps: SHA-1 of their configuration, and number of tracts."""
        records = self.butler.query_dimension_records("skymap", explain=False, limit=None)
        # The registry promises no order, and plans must be reproducible.
        records.sort(key=lambda r: str(r.name))
        return {str(r.name): (bytes(r.hash or b""), int(r.tract_max or 0)) for r in records}

    def skymap_name(self, dataset_type: str, name: str | None) -> str:
        """The sky map of the coadds: `name` when it has any, else the only one there is.

        Raises
        ------
        SkyMapError
            Not registered, or several to choose from; lists them.
        """
        with self.butler.query() as query:
            joined = query.join_dataset_search(dataset_type, self.collections)
            names = sorted({str(d["skymap"]) for d in joined.data_ids(["skymap"])})
        if name is not None and name not in names:
            registered = list(self.skymaps())
            why = f"has no {dataset_type} in these collections" if name in registered else "is not registered"
            raise SkyMapError(
                f"{self.name}: sky map {name!r} {why}{suggest(name, names)}",
                hint=f"{dataset_type} exists for {', '.join(names)}",
            )
        if name is None and len(names) != 1:
            raise SkyMapError(
                f"{self.name}: {dataset_type} exists for {len(names)} sky maps",
                hint=f"choose one of {', '.join(names)} with --skymap",
            )
        return name if name is not None else names[0]

    def tracts(self, dataset_type: str, skymap: str) -> tuple[int, ...]:
        """Tracts that have datasets of a type, ascending."""
        with self.butler.query() as query:
            joined = query.join_dataset_search(dataset_type, self.collections)
            found = joined.where("skymap = wanted", bind={"wanted": skymap}).data_ids(["tract"])
            return tuple(sorted({int(d["tract"]) for d in found}))

    def bands(self, dataset_type: str, skymap: str) -> tuple[str, ...]:
        """Bands of the coadds, by wavelength where the names are those of LSST, else by name."""
        with self.butler.query() as query:
            joined = query.join_dataset_search(dataset_type, self.collections)
            found = joined.where("skymap = wanted", bind={"wanted": skymap}).data_ids(["band"])
            names = {str(d["band"]) for d in found}
        return in_order(names)

    def datasets(
        self, dataset_type: str, skymap: str, tracts: Iterable[int], bands: Iterable[str], where: str | None
    ) -> list[Dataset]:
        """Coadds of tracts, each from the first collection that has it; sorted by tract, patch, band.

        Raises
        ------
        InputError
            `where` is not a query expression of the Butler.
        """
        wanted, refs = set(bands), []
        for chunk in _chunks(sorted(set(tracts)), TRACTS_PER_QUERY):
            refs += self._query(dataset_type, skymap, chunk, where)
        # Bands are chosen here and not in the query: their names would have to be quoted there.
        refs = [r for r in refs if str(r.dataId["band"]) in wanted]
        refs.sort(key=lambda r: (r.dataId["tract"], r.dataId["patch"], str(r.dataId["band"])))
        return list(self._with_addresses(refs))

    def _query(
        self, dataset_type: str, skymap: str, tracts: list[int], where: str | None = None
    ) -> list[DatasetRef]:
        from lsst.daf.butler import ButlerUserError
        from sqlalchemy.exc import SQLAlchemyError

        selected = f"skymap = wanted AND tract IN ({', '.join(map(str, tracts))})"
        try:
            with self.butler.query() as query:
                # find_first: the first collection that has a dataset wins, as in `Butler.get`.
                found = query.datasets(dataset_type, self.collections, find_first=True)
                found = found.where(selected, bind={"wanted": skymap})
                # A condition of its own, which cannot undo the one above, whatever it contains.
                return list(found.where(where) if where else found)
        except (ButlerUserError, ValueError) as err:
            text = " ".join(str(err).split())[:300]
            raise InputError(f"--where: {text}", hint="see the query expressions of the Butler") from None
        except SQLAlchemyError as err:
            raise SourceError(
                f"{self.name}: the registry failed: {' '.join(str(err).split())[:300]}"
            ) from None

    def _with_addresses(self, refs: list[DatasetRef]) -> Iterator[Dataset]:
        """Datasets with address and size, from the datastore's own records where it has them."""
        from lsst.daf.butler.direct_butler import DirectButler

        addresses: dict[Any, str] = {}
        facts: dict[Any, tuple[int, str]] = {}
        if isinstance(self.butler, DirectButler):
            # Public getURI costs a query per dataset; these two answer for all of them at once.
            store = self.butler._datastore
            for chunk in _chunks(refs, 2000):
                for ref, uris in store.getManyURIs(chunk, allow_missing=True).items():
                    if uris.primaryURI is not None:
                        addresses[ref.id] = without_query(str(uris.primaryURI))
                for data in store.export_records(chunk).values():
                    facts.update(file_facts(data.records))
        for ref in refs:
            # A remote Butler tells neither address nor size before the file is read.
            yield dataset_of(ref, addresses.get(ref.id, ""), *facts.get(ref.id, (-1, "")))

    def head(self, dataset: Dataset, size: int) -> bytes:
        """The first `size` bytes of a dataset's file, all of them when `size` is negative.

        Raises
        ------
        UnreadableError
            The file is missing or cannot be read.
        """
        from lsst.resources import ResourcePath

        with readable(dataset):
            if dataset.uri:
                # lsst.resources reads local files, object stores and http alike.
                return bytes(ResourcePath(dataset.uri).read(size))
            ref = self.butler.get_dataset(uuid.UUID(dataset.uuid))
            if ref is None:
                raise UnreadableError(f"{dataset.dataset_type} {dataset.uuid} is no longer in {self.name}")
            return bytes(self.butler.getURI(ref).read(size))

    def registered_patches(self, skymap: str, tracts: Iterable[int]) -> set[tuple[int, int]]:
        """(tract, patch) of all registered patches of tracts."""
        found: set[tuple[int, int]] = set()
        for chunk in _chunks(sorted(set(tracts)), TRACTS_PER_QUERY):
            with self.butler.query() as query:
                ids = query.data_ids(["patch"]).where(
                    f"skymap = wanted AND tract IN ({', '.join(map(str, chunk))})", bind={"wanted": skymap}
                )
                found.update((int(d["tract"]), int(d["patch"])) for d in ids)
        return found

    def registered_tracts(self, skymap: str) -> set[int]:
        """All registered tracts."""
        with self.butler.query() as query:
            ids = query.data_ids(["tract"]).where("skymap = wanted", bind={"wanted": skymap})
            return {int(d["tract"]) for d in ids}

    def tract_regions(self, skymap: str) -> dict[int, Region]:
        """Outer region (lsst.sphgeom) of each registered tract."""
        records = self.butler.query_dimension_records(
            "tract", where="skymap = wanted", bind={"wanted": skymap}, explain=False, limit=None
        )
        return {int(r.id): r.region for r in sorted(records, key=lambda r: int(r.id))}

    def patch_records(self, skymap: str, tract: int) -> list[PatchRecord]:
        """Registered patches of a tract, by id; those without a region are left out."""
        records = self.butler.query_dimension_records(
            "patch",
            where=f"skymap = wanted AND tract = {tract}",
            bind={"wanted": skymap},
            explain=False,
            limit=None,
        )
        return [
            PatchRecord(int(r.id), int(r.cell_x), int(r.cell_y), corners(r.region))
            for r in sorted(records, key=lambda r: int(r.id))
            if r.region is not None
        ]

    def object_tables(
        self, dataset_type: str, skymap: str, tracts: Iterable[int], wanted: Callable[[list[str]], list[str]]
    ) -> Iterator[tuple[str, pa.Table]]:
        """(dataset id, Arrow table) of the object tables of tracts, in order.

        `wanted` chooses from the names of all columns those to read.

        Raises
        ------
        InputError
            No object table for these tracts.
        SourceError
            A table that cannot be read.
        """
        refs: list[DatasetRef] = []
        for chunk in _chunks(sorted(set(tracts)), TRACTS_PER_QUERY):
            refs += self._query(dataset_type, skymap, chunk)
        if not refs:
            raise InputError(
                f"{self.name}: no {dataset_type} for the tracts of this selection",
                hint="give --targets, or --grid for cutouts on a regular grid",
            )
        # Older object tables are per patch, newer ones per tract.
        refs.sort(key=lambda r: tuple(int(r.dataId[k]) for k in ("tract", "patch") if k in r.dataId))
        for ref in refs:
            yield str(ref.id), read_object_table(self.butler, ref, wanted, self.name)


def read_object_table(
    butler: LimitedButler, ref: DatasetRef, wanted: Callable[[list[str]], list[str]], name: str
) -> pa.Table:
    """Columns of an object table: those that `wanted` chooses from the names of all.

    Raises
    ------
    SourceError
        It cannot be read; `name` is that of the repository.
    """
    import pyarrow as pa

    try:
        with _quiet_converters():
            # The names first, from the footer of the Parquet file; then only the columns that are used.
            names = list(butler.get(ref.makeComponentRef("columns")))
            parameters = {"columns": wanted([str(n) for n in names])}
            return butler.get(ref, storageClass="ArrowTable", parameters=parameters)
    except (OSError, ValueError, RuntimeError, LookupError, pa.ArrowException) as err:
        where = f"{ref.datasetType.name} {ref.dataId}"
        raise SourceError(f"{name}: {where}: {' '.join(str(err).split())[:300]}") from None


@contextmanager
def open_repository(repo: str, collections: Iterable[str]) -> Iterator[Repository]:
    """Open a repository read-only.

    Parameters
    ----------
    repo
        Path, label of the repository index, or URL.
    collections
        Names, globs or chains, in search order; the repository's defaults when there are none.

    Raises
    ------
    SourceError
        No repository there, or its registry stays locked.
    InputError
        A collection that does not exist; those that do are listed.
    """
    root = _root(repo)
    parts = urlsplit(root)
    # The Butler client sends the token with every request.
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise SourceError(
            f"{repo}: without https an access token could be read on the way", hint="use https://"
        )
    # Before the Butler is imported, which takes seconds: a locked registry is named within the first.
    if (usual := Path(root) / "gen3.sqlite3").is_file():
        _wait_until_free(repo, usual)
    from lsst.daf.butler import Butler, ButlerConfig
    from sqlalchemy.exc import SQLAlchemyError

    check_token(repo)
    with of_the_source(repo, "no Butler repository"):
        config = ButlerConfig(root)
    registry = _registry_file(repo, config)
    if registry is not None:
        _wait_until_free(repo, registry)
    # From here on the Butler itself waits for the lock; the watch only tells the user.
    with nullcontext() if registry is None else _lock_watch(repo, registry):
        with of_the_source(repo, "cannot be opened"):
            butler = Butler.from_config(config, writeable=False)
        try:
            with of_the_network(repo), butler:
                yield Repository(repo, butler, _expand_collections(butler, repo, tuple(collections)))
        except SQLAlchemyError as err:
            raise SourceError(f"{repo}: the registry failed: {' '.join(str(err).split())[:300]}") from None


@contextmanager
def _quiet_converters() -> Iterator[None]:
    """Silence the Butler's warnings about pandas, which is not needed for what we read."""

    def useful(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Unable to import type pandas")

    logger = logging.getLogger("lsst.daf.butler._storage_class")
    logger.addFilter(useful)
    try:
        yield
    finally:
        logger.removeFilter(useful)


def _root(repo: str) -> str:
    """The address behind a path, label or URL."""
    if not repo:
        raise ConfigError("no repository given", hint="give --repo a path, a label or a URL")
    if urlsplit(repo).scheme in ("http", "https", "s3", "gs", "file") or Path(repo).exists():
        return repo
    from lsst.daf.butler import Butler

    labels = sorted(Butler.get_known_repos())
    if repo in labels:
        return str(Butler.get_repo_uri(repo))
    raise SourceError(
        f"{repo}: neither a directory nor a label of the repository index{suggest(repo, labels)}",
        hint=f"labels: {', '.join(labels) or 'none, DAF_BUTLER_REPOSITORY_INDEX is not set'}",
    )


def _registry_file(repo: str, config: Any) -> Path | None:
    """The file of a SQLite registry, wherever the configuration puts it."""
    database = str(config["registry", "db"]) if ("registry", "db") in config else ""
    # The configuration of a remote Butler still carries the default registry, which it does not use.
    if not database.startswith("sqlite") or str(config.get("cls", "")).endswith("RemoteButler"):
        return None
    from lsst.daf.butler.registry import RegistryConfig

    # As the Butler does it: `<butlerRoot>` in the address stands for the directory of the repository.
    registry = RegistryConfig(config)
    registry.replaceRoot(config.get("root", config.configDir))
    text = str(registry.connectionString.database or "")
    if not text or text == ":memory:":
        return None
    path = Path(text)
    if not path.is_file():
        raise SourceError(f"{repo}: the registry {path.name} is missing", hint="is the repository complete?")
    return path


def _wait_until_free(repo: str, path: Path) -> None:
    """Wait for a bounded time, and say so, while another process holds a SQLite file.

    The Butler itself waits five minutes and says nothing.
    """
    for attempt in range(LOCK_TRIES):
        start = time.monotonic()
        problem = _probe(path, LOCK_SECONDS if attempt else FIRST_LOCK_SECONDS)
        if problem is None:
            return
        if "locked" not in problem and "busy" not in problem:
            raise SourceError(f"{repo}: the registry {path.name} cannot be read: {problem}")
        sys.stderr.write(f"ripple: {repo}: the registry is locked, waiting ({attempt + 1}/{LOCK_TRIES})\n")
        time.sleep(max(0.0, LOCK_SECONDS - (time.monotonic() - start)))
    raise SourceError(
        f"{repo}: the registry has been locked for {LOCK_TRIES * LOCK_SECONDS:.0f} s",
        hint="another process is writing to the repository; try again when it is done",
    )


@contextmanager
def _lock_watch(repo: str, path: Path) -> Iterator[None]:
    """Tell the user when another process locks the file, for which the Butler may be waiting in the body."""
    over = threading.Event()

    def watch() -> None:
        found = 0
        while not over.wait(LOCK_SECONDS / 2):
            # One line per LOCK_TRIES probes in a row: enough to know, not enough to scroll.
            found = found + 1 if "locked" in (_probe(path, FIRST_LOCK_SECONDS) or "") else 0
            if found % LOCK_TRIES == 1:
                sys.stderr.write(f"ripple: {repo}: the registry is locked, waiting\n")

    # A daemon: it must not keep the program alive when the Butler never returns.
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _probe(path: Path, patience: float) -> str | None:
    """What is wrong with reading a SQLite file, None when nothing is."""
    try:
        # Read-only, so that probing never creates a journal or takes a write lock.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=patience)
        try:
            connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
        finally:
            connection.close()
    except sqlite3.Error as err:
        return str(err)
    return None


def _expand_collections(butler: Butler, repo: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Collections with globs expanded (in name order), all of them existing."""
    there = sorted(butler.collections.query("*", flatten_chains=False))
    wanted = names or tuple(butler.collections.defaults)
    if not wanted:
        raise InputError(
            f"{repo}: no collection given", hint=f"--collections takes one of: {', '.join(there)}"
        )
    found: list[str] = []
    for name in wanted:
        # A name without wildcards must exist; a glob must match something.
        matches = [name]
        if any(c in name for c in "*?["):
            matches = sorted(butler.collections.query(name, flatten_chains=False))
        if not matches or any(m not in there for m in matches):
            raise InputError(
                f"{repo}: no collection {name!r}{suggest(name, there)}", hint=f"it has {', '.join(there)}"
            )
        found += [m for m in matches if m not in found]
    return tuple(found)


def corners(region: Region) -> tuple[tuple[float, float], ...]:
    """Vertices of a convex polygon, `(ra, dec)` deg."""
    from lsst.sphgeom import ConvexPolygon, LonLat

    if not isinstance(region, ConvexPolygon):
        raise SkyMapError(f"a registered region is a {type(region).__name__}, not a convex polygon")
    points = (LonLat(vertex) for vertex in region.getVertices())
    return tuple((p.getLon().asDegrees() % 360.0, p.getLat().asDegrees()) for p in points)


def dataset_of(ref: DatasetRef, uri: str, size: int, checksum: str) -> Dataset:
    """The coadd behind a reference, with what is known about its file."""
    return Dataset(
        str(ref.id),
        ref.run,
        ref.datasetType.name,
        ref.datasetType.storageClass_name,
        int(ref.dataId["tract"]),
        int(ref.dataId["patch"]),
        str(ref.dataId["band"]),
        uri,
        size,
        checksum,
    )


def without_query(uri: str) -> str:
    """An address without user, query string and fragment, where secrets stand."""
    parts = urlsplit(uri)
    # `user:password@` in front of the host is a secret as well.
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def local_path(uri: str) -> Path | None:
    """The path of a local address, None for remote ones."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path else None


def in_order(bands: Iterable[str]) -> tuple[str, ...]:
    """Bands by wavelength where their names are those of LSST, the others behind them by name."""
    # `find` gives -1 for other names; modulo 99 that is 98, behind all of ugrizy.
    return tuple(sorted(set(bands), key=lambda b: ("ugrizy".find(b) % 99, b)))


def file_facts(records: Any) -> dict[Any, tuple[int, str]]:
    """Dataset id -> (bytes, checksum) of datasets stored in one file."""
    facts: dict[Any, tuple[int, str]] = {}
    for dataset, tables in records.items():
        rows = [row for table in tables.values() for row in table]
        # A dataset stored as several files has no one size to check.
        if len(rows) == 1 and hasattr(rows[0], "file_size"):
            facts[dataset] = (int(rows[0].file_size), str(rows[0].checksum or ""))
    return facts


def _chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (list(chunk) for chunk in itertools.batched(values, size))


@contextmanager
def readable(dataset: Dataset) -> Iterator[None]:
    """Reading a dataset's file: what the system says of it becomes `UnreadableError` with its name."""
    try:
        yield
    except OSError as err:
        raise UnreadableError(f"{label(dataset)}: {err.strerror or type(err).__name__}") from None


def label(dataset: Dataset) -> str:
    """What messages call a dataset: type, data ID and file name, never a query string."""
    file = Path(unquote(urlsplit(dataset.uri).path)).name or dataset.uuid
    return f"{dataset.dataset_type} {dataset.tract}/{dataset.patch}/{dataset.band} ({file})"
