"""Plans: what exists, what does not and why, units, costs; and the command lines of plan and locate."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from astropy.table import Table
from repos import add_coadds, add_objects, make_repo

from ripple.cli import run
from ripple.errors import CatalogueError, ConfigError, InputError, Reason, RegionError, SkyMapError
from ripple.imaging.batch import MASK_PLANES
from ripple.rubin.coadd import Coadd, NoPsf
from ripple.rubin.repository import Dataset, Repository
from ripple.runtime.profile import Profile
from ripple.sky.geometry import Box
from ripple.sky.skymap import known
from ripple.stages.fetch.open_unit import open_unit
from ripple.stages.fetch.task import unit_task
from ripple.stages.plan import units
from ripple.stages.plan.config import Selection, side_of
from ripple.stages.plan.estimate import facts
from ripple.stages.plan.plan import Plan
from ripple.stages.plan.planner import make_plan
from ripple.storage.outcomes import Outcome, Status

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="the afw repository is not beside the checkout")
MINI = known("ripple_mini_v1")
TRACT = 5063


class FlatFiles:
    """Every coadd is there, without stars, noise or PSF: 1 nJy in all pixels."""

    def open(self, dataset: Dataset, *, sparse: bool) -> Coadd:
        def flat(value: float, kind: type[np.generic]) -> Any:
            return lambda box: np.full(box.shape, value, kind)

        return Coadd(
            f"{dataset.tract}/{dataset.patch}/{dataset.band}",
            MINI.patch_outer(dataset.tract, dataset.patch), MINI.tan(dataset.tract), dataset.band,
            {name: bit for bit, name in enumerate(MASK_PLANES)},
            flat(1.0, np.float32), flat(1.0, np.float32), flat(0, np.uint32),
            lambda _: NoPsf("none"), lambda: "ranges:", lambda: 0,
        )  # fmt: skip


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def ripple(*words: str) -> Done:
    """A command line in this process: starting one for each would take most of the time."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(words))
    return Done(code, out.getvalue(), err.getvalue())


def ripple_process(*words: str) -> Done:
    command = [sys.executable, "-c", "from ripple.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def write(path: Path, **columns: object) -> str:
    Table(columns).write(path, format="ascii.csv", overwrite=True)
    return str(path)


def sky(x: float, y: float, tract: int = TRACT) -> tuple[float, float]:
    ra, dec = MINI.tan(tract).pixel_to_sky(x, y)
    return float(ra), float(dec)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2 x 2 block of patches; the last one has no r band; objects of the tract and its neighbour."""
    root = tmp_path_factory.mktemp("plan") / "repo"
    nx = int(MINI.table.nx[0])
    block = [j * nx + i for j in (22, 23) for i in (22, 23)]
    ring = [j * nx + i for j in (21, 22, 23, 24) for i in (21, 22, 23, 24)]
    make_repo(root, MINI, [(TRACT, p) for p in ring], digest=MINI.sha1())
    coadds = [(TRACT, p, b) for p in block for b in "gri" if (p, b) != (block[-1], "r")]
    add_coadds(root, MINI.name, "mini", coadds)
    rng = np.random.default_rng(2)
    x, y = rng.uniform(22 * 600, 24 * 600, (2, 500))
    ra, dec = MINI.tan(TRACT).pixel_to_sky(x, y)
    add_objects(
        root, MINI.name, "mini",
        {
            TRACT: Table(
                {
                    "objectId": np.arange(500) + 10, "coord_ra": ra, "coord_dec": dec,
                    "i_flux": rng.uniform(0, 1, 500),
                }
            )
        },
    )  # fmt: skip
    return root


def those(found: Plan, *statuses: Status) -> dict[int, Outcome]:
    """The targets with one of these statuses."""
    return {int(row): outcome for rows, outcome in found.outcomes.groups(*statuses) for row in rows}


def plan(repo: Path, **values: object) -> Plan:
    return make_plan(Selection.make({"repo": str(repo), "collections": ["mini"], "margin": 0, **values}))


def check(found: Plan) -> None:
    """What holds for every plan."""
    rows = [int(r) for unit in found.units for r in unit.rows]
    assert sorted([*rows, *those(found, "rejected")]) == list(range(len(found.targets)))
    assert len(set(found.targets.id.tolist())) == len(found.targets) or found.outcomes.count("rejected")
    for number, unit in enumerate(found.units):
        assert unit.number == number
        assert set(found.tract[unit.rows].tolist()) == {unit.tract}
        assert sorted(set(found.patch[unit.rows].tolist())) == list(unit.patches)
        assert len(set(found.size[unit.rows].tolist())) == 1
        order = list(zip(found.patch[unit.rows].tolist(), unit.rows.tolist(), strict=True))
        assert order == sorted(order)
        needed = {(d.patch, d.band) for d in found.unit_datasets(unit)}
        for r in unit.rows.tolist():
            box = Box.around(found.x[r], found.y[r], int(found.reach[r]))
            touching = {
                (p, b) for (t, p, b) in found.datasets
                if t == unit.tract and not (found.patch_boxes[t, p] & box).empty
            }  # fmt: skip
            assert touching <= needed


# ---- the afw repository


@pytest.fixture
def positions(tmp_path: Path) -> str:
    data = np.load(SHARED / "afw_cutouts.npz")
    return write(
        tmp_path / "positions.csv", id=np.arange(len(data["pos_x"])), ra=data["pos_ra_deg"],
        dec=data["pos_dec_deg"], kind=data["pos_kind"],
    )  # fmt: skip


@needs_data
def test_afw_repository(positions: str) -> None:
    data = np.load(SHARED / "afw_cutouts.npz")
    found = make_plan(
        Selection.make(
            {"repo": str(SHARED / "afw_repo"), "collections": ["truth/all"], "targets": positions,
             "dataset_type": "deepCoadd_calexp", "margin": 0}
        )
    )  # fmt: skip
    check(found)
    assert (found.bands, found.skymap, found.skymap_source) == (
        ("g", "r", "i", "z"),
        "truth_rings_v1",
        "hash",
    )
    np.testing.assert_allclose(found.x, data["pos_x"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.y, data["pos_y"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.patch, data["pos_patch"])
    assert found.gaps[3828, 2812] == ("z",)
    kinds = {str(data["pos_kind"][k]): outcome.reason for k, outcome in those(found, "rejected").items()}
    assert kinds == {"no_dataset_in_patch": Reason.NO_DATASET, "patch_not_registered": Reason.NO_PATCH}
    # Partial are those whose box real afw could not cut whole from all bands of the patches that hold it.
    outer = {int(p): found.patch_boxes[3828, int(p)] for p in (2735, 2736, 2812, 2813)}
    for k in set(range(len(found.targets))) - set(those(found, "rejected")):
        box = Box.around(found.x[k], found.y[k], 64)
        whole = True
        for band in found.bands:
            seen = np.zeros((64, 64), bool)
            for patch, area in outer.items():
                piece = area & box
                if (3828, patch, band) in found.datasets and not piece.empty:
                    seen[box.slices(piece)] = True
            whole &= bool(seen.all())
        assert whole == (k not in those(found, "partial"))


@needs_data
def test_geometry_from_the_repository_alone_gives_the_same_plan(
    positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = Selection.make(
        {"repo": str(SHARED / "afw_repo"), "collections": ["truth/all"], "targets": positions,
         "dataset_type": "deepCoadd_calexp"}
    )  # fmt: skip
    known_way = make_plan(selection)
    maps = Repository.skymaps
    monkeypatch.setattr(
        Repository, "skymaps", lambda self: {k: (b"?", n) for k, (_, n) in maps(self).items()}
    )
    found = make_plan(selection)
    assert found.skymap_source == "repository"
    np.testing.assert_allclose(found.x, known_way.x, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.patch, known_way.patch)
    assert (found.outcomes, found.gaps) == (known_way.outcomes, known_way.gaps)
    assert found.datasets == known_way.datasets


@needs_data
def test_command_line_names_the_gap_and_leaves_the_repository_alone(positions: str) -> None:
    root = SHARED / "afw_repo"

    def fingerprint() -> list[str]:
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()]

    before = fingerprint()
    options = ["--repo", str(root), "--collections", "truth/all", "--dataset-type", "deepCoadd_calexp"]
    done = ripple_process("plan", *options, "--targets", positions)
    assert done.returncode == 0
    assert "tract 3828 patch 2812: z" in done.stdout
    assert "patch 2726 is not" in " ".join(done.stdout.split())
    assert done.stderr == ""
    done = ripple("plan", *options, "--targets", positions, "--json")
    found = json.loads(done.stdout)
    assert {"tract": 3828, "patch": 2812, "bands": ["z"]} in found["missing"]
    assert found["targets"] == found["ok"] + found["partial"] + found["rejected"] == 41
    assert found["read_bytes"] == sum(p.stat().st_size for p in root.rglob("deepCoadd_calexp_*.fits"))
    assert fingerprint() == before


# ---- the small repository


def test_objects_of_the_butler_with_select_and_region(repo: Path) -> None:
    everything = plan(repo, bands=["g", "r", "i"])
    check(everything)
    assert len(everything.targets) == 500
    assert everything.targets.id[0] == 10
    assert everything.targets.extra.column_names == ["i_flux"]
    bright = plan(repo, select="i_flux > 0.9")
    assert 20 < len(bright.targets) < 90
    assert (bright.targets.extra["i_flux"].to_numpy() > 0.9).all()
    ra, dec = sky(23 * 600, 23 * 600)
    near = plan(repo, region=f"CIRCLE {ra} {dec} 0.01")
    gap = np.hypot(near.x - 23 * 600, near.y - 23 * 600)
    assert 0 < len(near.targets) < 100
    assert gap.max() < 0.01 * 3600 / 0.2 * 1.001
    patch = int(everything.patch[0])
    one = plan(repo, tract=[TRACT], patch=[patch])
    assert set(one.patch.tolist()) == {patch}
    assert len(one.targets) == (everything.patch == patch).sum()


def test_missing_band_and_edge_policies(repo: Path) -> None:
    inner = MINI.patch_inner(TRACT, 23 * int(MINI.table.nx[0]) + 23)
    lenient = plan(repo, bands=["g", "r", "i"])
    deep = [  # so deep in the patch without r that no neighbour's border reaches it
        k for k in range(500)
        if inner.grown(-200).contains(Box.around(lenient.x[k], lenient.y[k], 1))
    ]  # fmt: skip
    assert deep
    assert all(lenient.outcomes[k] == Outcome("partial", Reason.MISSING_BAND, "no r") for k in deep)
    strict = plan(repo, bands=["g", "r", "i"], require_all_bands=True, edge="reject")
    check(strict)
    assert set(deep) <= set(those(strict, "rejected"))
    assert set(those(strict, "rejected")) == set(those(lenient, "partial", "rejected"))
    assert not those(strict, "partial")
    only = plan(repo, bands=["g", "i"])
    assert "missing_band" not in only.outcomes.reasons("partial")


def test_reasons_for_single_targets(repo: Path, tmp_path: Path) -> None:
    places = {
        "inside": sky(22.5 * 600, 22.5 * 600), "registered": sky(21.5 * 600, 22.5 * 600),
        "unregistered": sky(10 * 600, 10 * 600), "edge": sky(22 * 600 - 149, 22.5 * 600),
        "twin": sky(22.5 * 600 + 0.2, 22.5 * 600), "far": (200.0, 10.0),
    }  # fmt: skip
    table = write(
        tmp_path / "t.csv",
        id=list(places),
        ra=[p[0] for p in places.values()],
        dec=[p[1] for p in places.values()],
    )
    found = plan(repo, targets=table, size=64)
    check(found)
    why = {str(found.targets.id[k]): v for k, v in those(found, "partial", "rejected").items()}
    assert {k: v.reason for k, v in why.items()} == {
        "registered": Reason.NO_DATASET, "unregistered": Reason.NO_PATCH, "edge": Reason.OUTSIDE,
        "twin": Reason.DUPLICATE, "far": Reason.NO_PATCH,
    }  # fmt: skip
    assert why["edge"].detail == "part of the box has no g, r, i"
    assert "0.040 arcsec from row 0 (id inside)" in why["twin"].detail
    apart = plan(repo, targets=table, duplicate_radius=0.0)
    assert "duplicate" not in apart.outcomes.reasons("rejected")


def test_neighbours_are_planned_with_the_margin(repo: Path, tmp_path: Path) -> None:
    ra, dec = sky(23 * 600 - 100, 22.5 * 600)
    table = write(tmp_path / "t.csv", id=[1], ra=[ra], dec=[dec])
    nx = int(MINI.table.nx[0])
    narrow, wide = plan(repo, targets=table), plan(repo, targets=table, size=500)
    assert {p for _, p, _ in narrow.datasets} == {22 * nx + 22, 22 * nx + 23}
    assert {p for _, p, _ in wide.datasets} == {j * nx + i for j in (22, 23) for i in (22, 23)}
    ra, dec = sky(23 * 600 - 190, 22.5 * 600)
    table = write(tmp_path / "t.csv", id=[1], ra=[ra], dec=[dec])
    assert {p for _, p, _ in plan(repo, targets=table).datasets} == {22 * nx + 22}
    margin = plan(repo, targets=table, margin=16)
    assert {p for _, p, _ in margin.datasets} == {22 * nx + 22, 22 * nx + 23}
    assert margin.size.tolist() == [64]
    assert margin.reach.tolist() == [96]


def test_units_are_whole_patches_up_to_the_limit(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_ROWS", 260)
    found = plan(repo)
    check(found)
    assert len(found.units) == 2
    assert max(len(u.rows) for u in found.units) <= 260
    monkeypatch.setattr(units, "PATCH_BYTES", 50 * 3 * 64 * 64 * units.PIXEL_BYTES)
    monkeypatch.setattr(units, "UNIT_ROWS", 50)
    small = plan(repo)
    check(small)
    assert max(len(u.rows) for u in small.units) <= 50
    again = plan(repo)
    assert all((a.rows == b.rows).all() for a, b in zip(small.units, again.units, strict=True))


def test_sizes_per_target_and_in_arcsec(repo: Path, tmp_path: Path) -> None:
    assert plan(repo, size="12.8arcsec").size.tolist() == [64] * 500
    assert plan(repo, size="64").targets.source == plan(repo, size=64).targets.source
    assert Selection.make({"size": "64"}).digest() == Selection.make({"size": 64}).digest()
    xs = [(22 + f) * 600 for f in (0.3, 0.4, 0.5, 0.6)]
    at = [sky(x, 22.5 * 600) for x in xs]
    table = write(
        tmp_path / "t.csv",
        id=[1, 2, 3, 4],
        ra=[p[0] for p in at],
        dec=[p[1] for p in at],
        side=[32, 64, 32, 64],
    )
    found = plan(repo, targets=table, size_column="side")
    check(found)
    assert [u.rows.tolist() for u in found.units] == [[0, 2], [1, 3]]
    for size in ("0", "1.5px", "arcsec", "-3", "99999"):
        with pytest.raises(ConfigError):
            plan(repo, size=size)
    assert side_of("1.01arcsec", 0.2) == 6


def test_blind_windows(repo: Path) -> None:
    ra, dec = sky(23 * 600, 23 * 600)
    found = plan(repo, region=f"CIRCLE {ra} {dec} 0.02", grid=64)
    check(found)
    radius = 0.02 * 3600 / 0.2
    assert len(found.targets) == pytest.approx(np.pi * radius**2 / 64**2, rel=0.1)
    column, row = (found.targets.extra[n].to_numpy() for n in ("grid_column", "grid_row"))
    np.testing.assert_allclose(found.x, column * 64 + 32, atol=1e-6)
    ids = found.targets.id
    assert ((ids >> 40 == TRACT) & (ids >> 20 & 0xFFFFF == row) & (ids & 0xFFFFF == column)).all()
    boxes = {Box.around(x, y, 64) for x, y in zip(found.x, found.y, strict=True)}
    assert {b.x0 % 64 for b in boxes} == {0}  # windows tile
    # Of a tract, only the windows on coadds.
    whole = plan(repo, tract=(TRACT,), grid=64)
    check(whole)
    assert not whole.outcomes.has("rejected").any()
    assert len(whole.targets) >= len(found.targets)
    # A tract without coadds adds none, and all of it is not laid out for that.
    both = plan(repo, tract=(TRACT, TRACT + 1), grid=64)
    assert both.targets.id.tolist() == whole.targets.id.tolist()
    with pytest.raises(RegionError, match="no deep_coadd lies in the selection"):
        plan(repo, tract=(TRACT + 1,), grid=1)


def test_boxes_that_leave_their_tract(tmp_path: Path) -> None:
    """A target near the edge of its tract's pixels, wholly inside the neighbour's."""
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(50, 60, 200_000), rng.uniform(-30, -26, 200_000)
    tract = MINI.find_tract(ra, dec)
    x, y = MINI.sky_to_pixel(tract, ra, dec)
    gap = np.min([x, y, MINI.tract_box(TRACT).x1 - x, MINI.tract_box(TRACT).y1 - y], axis=0)
    k = int(np.argmin(gap))
    size = 2 * int(gap[k] + MINI.patches.border) + 60
    others = MINI.all_tracts(ra[k], dec[k])[1].tolist()
    assert len(others) >= 2
    root = tmp_path / "repo"
    every = [
        (t, j * int(MINI.table.nx[t]) + i)
        for t in others
        for px, py in [[float(v) for v in MINI.sky_to_pixel(t, ra[k], dec[k])]]
        for i in range(max(0, int(px) // 600 - 3), min(int(MINI.table.nx[t]), int(px) // 600 + 4))
        for j in range(max(0, int(py) // 600 - 3), min(int(MINI.table.ny[t]), int(py) // 600 + 4))
    ]
    make_repo(root, MINI, every, digest=MINI.sha1())
    add_coadds(root, MINI.name, "mini", [(t, p, "i") for t, p in every])
    table = write(tmp_path / "t.csv", id=[1], ra=[ra[k]], dec=[dec[k]])
    moved = plan(root, targets=table, size=size)
    check(moved)
    assert moved.tract[0] in set(others) - {int(tract[k])}
    assert not those(moved, "partial")
    np.testing.assert_allclose(
        moved.projections[int(moved.tract[0])].pixel_to_sky(moved.x[0], moved.y[0]), [ra[k], dec[k]]
    )
    stays = plan(root, targets=table, size=size, cross_tract="resample")
    check(stays)
    assert stays.tract[0] == tract[k]
    assert stays.outcomes[0].reason is Reason.OUTSIDE
    assert {t for t, _ in stays.cross[0]} <= set(others) - {int(tract[k])}
    assert {(t, p) for t, p, _ in stays.datasets} >= set(stays.cross[0])
    names = ", ".join(str(t) for t in sorted({t for t, _ in stays.cross[0]}))
    assert stays.outcomes[0].detail == (
        f"part of the box has no i in its own tract; fetch fills it from tract {names} where that has data"
    )
    # What fetch delivers is whole, and its outcome is that of the pixels, not of the plan.
    selection = Selection.make({"repo": str(root), "collections": ["mini"], "targets": str(table)})
    unit = unit_task(selection, stays, stays.units[0])
    read = open_unit(unit, FlatFiles(), {}, Profile())
    assert read.bands[0].resampled[0] > 0.01
    assert read.outcomes[0] == Outcome()
    # Without the other tracts the detail says what is there.
    short = open_unit(dataclasses.replace(unit, cross={}), FlatFiles(), {}, Profile())
    share = float(short.bands[0].coverage[0])
    assert short.outcomes[0] == Outcome("partial", Reason.OUTSIDE, f"pixels in i {share:.0%} of the box")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"patch": [3]}, ConfigError, "exactly one --tract"),
        ({"grid": 64, "region": "CIRCLE 200 60 0.1"}, RegionError, "no deep_coadd lies in the selection"),
        ({"grid": 64}, ConfigError, "--grid needs"),
        ({"grid": 64, "targets": "x.csv"}, ConfigError, "exclude"),
        ({"grid": 64, "region": "CIRCLE 1 2 1", "select": "a < 1"}, ConfigError, "has no columns"),
        ({"bands": ["g", "g"]}, ConfigError, "twice"),
        ({"bands": ["g", "Y"]}, InputError, "no deep_coadd .* has band 'Y'"),
        ({"tract": [99999]}, SkyMapError, "no tract 99999"),
        ({"tract": [TRACT], "patch": [99999]}, SkyMapError, "no patch 99999"),
        ({"region": "CIRCLE 200 60 0.1"}, RegionError, "no object of"),
        ({"region": "CIRCLE 200"}, RegionError, "1 numbers"),
        ({"skymap": "ripple_mini"}, SkyMapError, "did you mean 'ripple_mini_v1'"),
        ({"select": "i_flux > 5"}, CatalogueError, "no rows are left"),
        ({"select": "j_flux > 5"}, CatalogueError, "did you mean 'i_flux'"),
        ({"where": "bogus ="}, InputError, "--where"),
        ({"targets": "absent.csv"}, CatalogueError, "No such file"),
        ({"colections": ["x"]}, ConfigError, "did you mean 'collections'"),
    ],
)
def test_wrong_selections_say_what_is_wrong(
    repo: Path, values: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as err:
        plan(repo, **values)
    assert err.value.exit_code in (2, 3)  # type: ignore[attr-defined]


def test_where_restricts_the_coadds(repo: Path) -> None:
    found = plan(repo, where="band = 'i'")
    assert {b for _, _, b in found.datasets} == {"i"}
    assert facts(found)["reasons"]["partial"].keys() == {"missing_band"} | set(
        facts(found)["reasons"]["partial"].keys()
    )


# ---- locate


def test_locate_one_position() -> None:
    done = ripple("locate", "53.1", "-27.8", "--skymap", "lsst_cells_v2", "--size", "64", "--json")
    found = json.loads(done.stdout)
    assert (found["tract"], found["patch"], found["patch_x"], found["patch_y"]) == (5063, 34, 4, 3)
    x0, y0, x1, y1 = found["box"]["parent"]
    assert (x1 - x0, y1 - y0) == (64, 64)
    assert x0 == int(np.floor(found["x"] + 0.5)) - 32
    assert found["box"]["local"][0] == x0 - found["outer"][0]
    human = ripple("locate", "53.1", "-27.8", "--skymap", "lsst_cells_v2")
    assert "tract    5063" in human.stdout
    hours = ripple("locate", "03:32:24", "-27:48:00", "--skymap", "lsst_cells_v2", "--json")
    assert json.loads(hours.stdout)["x"] == pytest.approx(found["x"], abs=1e-6)


def test_locate_lists_all_holders() -> None:
    skymap = known("lsst_cells_v1")
    tan = skymap.tan(TRACT)
    ra, dec = tan.pixel_to_sky(3000.0, 3000.0)
    done = ripple("locate", repr(float(ra)), repr(float(dec)), "--skymap", "lsst_cells_v1", "--json")
    found = json.loads(done.stdout)
    mine = {o["patch"] for o in found["others"] if o["tract"] == found["tract"]} | {found["patch"]}
    x, y = found["x"], found["y"]
    every = range(100)
    holds = {p for p in every if skymap.patch_outer(found["tract"], p).contains(Box.around(x, y, 1))}
    assert mine == holds


def test_locate_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 300), np.degrees(np.arcsin(rng.uniform(-1, 1, 300)))
    table = write(tmp_path / "t.csv", id=np.arange(300), ra=ra, dec=dec)
    for suffix in ("csv", "parquet"):
        out = tmp_path / f"out.{suffix}"
        assert ripple("locate", "--targets", table, "--skymap", "DC2", "-o", str(out)).returncode == 0
        reader = pyarrow.csv.read_csv if suffix == "csv" else pyarrow.parquet.read_table
        found = reader(out)
        assert found.column_names == ["id", "ra", "dec", "tract", "patch", "patch_x", "patch_y", "x", "y"]
        np.testing.assert_array_equal(found["tract"].to_numpy(), known("DC2").find_tract(ra, dec))
    rows = list(csv.DictReader(ripple("locate", "--targets", table, "--skymap", "DC2").stdout.splitlines()))
    assert len(rows) == 300
    lines = ripple(
        "locate", "--targets", table, "--skymap", "DC2", "--json", "--size", "64"
    ).stdout.splitlines()
    assert json.loads(lines[0])["x1"] - json.loads(lines[0])["x0"] == 64


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["400", "-8", "--skymap", "DC2"], 3, "right ascension"),
        (["nan", "-8", "--skymap", "DC2"], 3, "not a number"),
        (["10", "-91", "--skymap", "DC2"], 3, "declination"),
        (["10", "--skymap", "DC2"], 2, "give RA and DEC"),
        (["10", "-8"], 2, "no sky map"),
        (["10", "-8", "--skymap", "DC3"], 3, "did you mean 'DC2'"),
        (["ten", "-8", "--skymap", "DC2"], 3, "'ten' is neither"),
        (["10", "-8", "--skymap", "DC2", "--size", "x"], 2, "size 'x'"),
    ],
)
def test_locate_refuses(words: list[str], code: int, message: str) -> None:
    done = ripple("locate", *words)
    assert done.returncode == code
    assert message in done.stderr
