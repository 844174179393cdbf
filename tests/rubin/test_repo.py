"""Repositories: collections, locks, dataset types, and the geometry of unknown sky maps."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from pathlib import Path

import pytest
from repos import add_chain, add_coadds, make_repo

from ripple.errors import InputError, SkyMapError, SourceError
from ripple.rubin import repository as module
from ripple.rubin.repository import Dataset, local_path, open_repository, without_query
from ripple.rubin.skymap import _observe, resolve_skymap
from ripple.sky.skymap import CellPatches, LegacyPatches, RingsSkyMap, known

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="the afw repository is not beside the checkout")
TRUTH = SHARED / "afw_repo"
V2 = known("lsst_cells_v2")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two runs of coadds and a chain of both."""
    root = tmp_path_factory.mktemp("repo") / "small"
    make_repo(root, V2, [(5063, 33), (5063, 34)], digest=V2.sha1())
    add_coadds(root, V2.name, "u/new", [(5063, 34, "i")])
    add_coadds(root, V2.name, "u/old", [(5063, p, b) for p in (33, 34) for b in "ri"])
    add_chain(root, "both", ["u/new", "u/old"])
    return root


def test_the_first_collection_that_has_a_dataset_wins(small: Path) -> None:
    def runs(*collections: str) -> dict[tuple[int, str], str]:
        with open_repository(str(small), collections) as repository:
            found = repository.datasets("deep_coadd", V2.name, [5063], "ri", None)
        return {(d.patch, d.band): d.run for d in found}

    old = {(33, "i"): "u/old", (33, "r"): "u/old", (34, "i"): "u/old", (34, "r"): "u/old"}
    new = old | {(34, "i"): "u/new"}
    assert runs("both") == runs("u/new", "u/old") == runs("u/*") == new
    assert runs("u/old", "u/new") == old
    assert runs("u/new") == {(34, "i"): "u/new"}


def test_where_is_the_butlers_own_language(small: Path) -> None:
    with open_repository(str(small), ["both"]) as repository:
        found = repository.datasets("deep_coadd", V2.name, [5063], "ri", "patch = 33 OR band = 'r'")
        assert {(d.patch, d.band) for d in found} == {(33, "r"), (33, "i"), (34, "r")}
        for wrong in ("patch =", "colour = 'red'", "patch = 33) OR (patch = 34"):
            with pytest.raises(InputError, match="--where"):
                repository.datasets("deep_coadd", V2.name, [5063], "ri", wrong)


def test_what_is_missing_is_named_with_what_there_is(small: Path) -> None:
    wrong = pytest.raises(InputError, match=r"no collection 'bot'; did you mean 'both'.*both, u/new, u/old")
    with wrong, open_repository(str(small), ["bot"]):
        pass
    with pytest.raises(InputError, match="one of: both"), open_repository(str(small), []):
        pass
    with pytest.raises(InputError, match="no collection 'x/\\*'"), open_repository(str(small), ["x/*"]):
        pass
    with open_repository(str(small), ["both"]) as repository:
        with pytest.raises(InputError, match="did you mean 'deep_coadd'"):
            repository.coadd_type("deep_coad")
        with pytest.raises(InputError, match="object table"):
            repository.object_type(None)
        with pytest.raises(SkyMapError, match="did you mean 'lsst_cells_v2'"):
            repository.skymap_name("deep_coadd", "lsst_cells_v1")
        assert repository.coadd_type(None) == "deep_coadd"
        assert repository.bands("deep_coadd", V2.name) == ("r", "i")
        assert repository.tracts("deep_coadd", V2.name) == (5063,)


def test_labels_of_the_repository_index(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAF_BUTLER_REPOSITORIES", json.dumps({"dp99": str(small)}))
    with open_repository("dp99", ["both"]) as repository:
        assert repository.name == "dp99"
    with pytest.raises(SourceError, match="did you mean 'dp99'"), open_repository("dp9", ["both"]):
        pass
    with pytest.raises(SourceError, match="no Butler repository"), open_repository(str(tmp_path), ["both"]):
        pass


def test_a_locked_registry_is_waited_for_aloud_and_not_for_ever(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LOCK_TRIES", 2)
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    lock = sqlite3.connect(small / "gen3.sqlite3", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(SourceError, match="locked"), open_repository(str(small), ["both"]):
            pass
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert capsys.readouterr().err.count("the registry is locked, waiting") == 2
    with open_repository(str(small), ["both"]):
        pass


def test_a_lock_that_is_taken_after_the_opening_is_told(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_repository(str(small), ["both"]) as repository:
        holder = sqlite3.connect(small / "gen3.sqlite3", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(3.0, holder.execute, ["ROLLBACK"])
        timer.start()
        assert repository.tracts("deep_coadd", V2.name) == (5063,)
        timer.join()
        holder.close()
    assert capsys.readouterr().err.count("the registry is locked, waiting") == 1


def test_a_registry_that_is_no_database(small: Path, tmp_path: Path) -> None:
    (tmp_path / "butler.yaml").write_bytes((small / "butler.yaml").read_bytes())
    with pytest.raises(SourceError, match="sqlite3 is missing"), open_repository(str(tmp_path), ["both"]):
        pass
    (tmp_path / "gen3.sqlite3").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(SourceError, match="cannot be read"), open_repository(str(tmp_path), ["both"]):
        pass


def test_names_with_signs_of_addresses_are_names(tmp_path: Path) -> None:
    """SQLite takes addresses: `#` would cut the name off, and make a new file of the rest."""
    path = tmp_path / "a#b?c%41" / "gen3.sqlite3"
    path.parent.mkdir()
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE t (x)")
    assert module._probe(path, 0.1) is None
    assert [p.name for p in tmp_path.iterdir()] == ["a#b?c%41"]


def test_a_token_does_not_travel_in_the_clear() -> None:
    with (
        pytest.raises(SourceError, match="without https"),
        open_repository("http://data.example.org/api/butler/repo/dp2", ()),
    ):
        pass


def test_addresses_lose_their_secrets() -> None:
    signed = "https://user:pw@host.org/a/b.fits?X-Amz-Signature=SECRET#frag"
    assert without_query(signed) == "https://host.org/a/b.fits"
    assert local_path("file:///a/b%20c.fits") == Path("/a/b c.fits")
    assert local_path(signed) is None


@needs_data
def test_sizes_and_addresses_are_those_of_the_files() -> None:
    with open_repository(str(TRUTH), ["truth/all"]) as repository:
        found = repository.datasets("deepCoadd_calexp", "truth_rings_v1", [3828], "griz", None)
    assert len(found) == 15
    for dataset in found:
        path = local_path(dataset.uri)
        assert path is not None
        assert path.stat().st_size == dataset.size
    assert found == sorted(found, key=lambda d: (d.tract, d.patch, d.band))
    assert isinstance(found[0], Dataset)


@needs_data
@pytest.mark.parametrize(
    ("name", "dataset_type", "layout"),
    [
        ("truth_rings_v1", "deepCoadd_calexp", LegacyPatches(360, 360, 20)),
        ("truth_cells_v1", "deep_coadd_cell", CellPatches(100, 0, 3, 1)),
        ("truth_cells_v1", "deepCoadd_cell", CellPatches(100, 0, 3, 1)),
    ],
)
def test_unknown_sky_maps_are_inferred_and_proven_by_their_hash(
    name: str, dataset_type: str, layout: LegacyPatches | CellPatches
) -> None:
    truth = json.loads((SHARED / "afw_truth.json").read_text())
    with open_repository(str(TRUTH), ["truth/all"]) as repository:
        skymap, source = resolve_skymap(repository, name, dataset_type)
        assert isinstance(skymap, RingsSkyMap)
        assert source == "hash"
        assert skymap.patches == layout
        assert skymap.sha1() == repository.skymaps()[name][0]
        observed = _observe(repository, name, dataset_type, [3828])
    assert skymap.tan(3828).separation(observed.tan(3828), skymap.tract_box(3828)) < 1e-6
    if name == "truth_rings_v1":
        for geometry in (skymap, observed):
            for patch, boxes in truth["patches"].items():
                for kind, box in (
                    ("inner", geometry.patch_inner(3828, int(patch))),
                    ("outer", geometry.patch_outer(3828, int(patch))),
                ):
                    edges = [box.x0, box.y0, box.x1 - 1, box.y1 - 1]
                    assert edges == boxes[f"{kind}_bbox_inclusive"]


@needs_data
def test_a_wrong_hash_leaves_the_observed_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_repository(str(TRUTH), ["truth/all"]) as repository:
        kind = type(repository)
        monkeypatch.setattr(kind, "skymaps", lambda self: {"truth_rings_v1": (b"?", 18938)})
        skymap, source = resolve_skymap(repository, "truth_rings_v1", "deepCoadd_calexp")
    assert source == "repository"
    np_tract = int(skymap.find_tract([56.6], [-36.5])[0])
    assert np_tract == 3828


@needs_data
def test_known_geometry_is_recognised_by_hash_under_any_name(tmp_path: Path) -> None:
    renamed = RingsSkyMap("survey_x", V2.patches)
    make_repo(tmp_path / "r", renamed, [(5063, 33)], digest=V2.sha1())
    add_coadds(tmp_path / "r", "survey_x", "run", [(5063, 33, "i")])
    with open_repository(str(tmp_path / "r"), ["run"]) as repository:
        skymap, source = resolve_skymap(repository, "survey_x", "deep_coadd")
    assert source == "known"
    assert skymap == renamed


def fingerprint(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def test_reading_leaves_the_repository_as_it_was(small: Path) -> None:
    before = fingerprint(small)
    with open_repository(str(small), ["both"]) as repository:
        repository.datasets("deep_coadd", V2.name, [5063], "ri", None)
        repository.registered_patches(V2.name, [5063])
        repository.tract_regions(V2.name)
    assert fingerprint(small) == before
