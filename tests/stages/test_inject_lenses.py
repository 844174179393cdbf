"""Lenses of the user for `inject`: conventions of others against lenstronomy, and refusals by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from ripple.cli import run
from ripple.errors import CatalogueError
from ripple.imaging.simulation.lensing import deflect
from ripple.imaging.simulation.observing import ZERO_POINT
from ripple.imaging.simulation.profiles import transform
from ripple.stages.inject.lenses import Lenses, read_lenses

#: One lens in the names of RIPPLe; R_source is along the major axis.
LENS: dict[str, float] = {
    "theta_E": 1.3, "q": 0.7, "phi": 30.0, "gamma1": 0.03, "gamma2": -0.02, "slope": 2.1, "x_lens": 0.1,
    "y_lens": -0.05, "x_source": 0.25, "y_source": 0.1, "n_source": 1.2, "R_source": 0.4, "q_source": 0.6,
    "phi_source": -40.0, "mag_g": 24.1, "mag_r": 23.8,
}  # fmt: skip


def lenstronomy_of(lens: dict[str, float]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Mass, shear and source in the parameters of lenstronomy, converted by lenstronomy."""
    util = pytest.importorskip("lenstronomy.Util.param_util")
    e1, e2 = util.phi_q2_ellipticity(np.radians(lens["phi"]), lens["q"])
    s1, s2 = util.phi_q2_ellipticity(np.radians(lens["phi_source"]), lens["q_source"])
    mass = {"theta_E": lens["theta_E"], "gamma": lens["slope"], "e1": float(e1), "e2": float(e2)}
    mass |= {"center_x": lens["x_lens"], "center_y": lens["y_lens"]}
    shear = {"gamma1": lens["gamma1"], "gamma2": lens["gamma2"]}
    source = {
        "R_sersic": lens["R_source"] * np.sqrt(lens["q_source"]), "n_sersic": lens["n_source"],
        "e1": float(s1), "e2": float(s2), "center_x": lens["x_source"], "center_y": lens["y_source"],
    }  # fmt: skip
    return mass, shear, source


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    if path.suffix == ".csv":
        pc.write_csv(table, path)
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        Table({name: table[name].to_numpy() for name in table.column_names}).write(
            path, format="votable" if path.suffix == ".vot" else "fits"
        )
    return path


def lenses_of(path: Path, rows: list[dict[str, Any]]) -> Lenses:
    return read_lenses(written(path, rows), ("g", "r"))


# Conventions ----------------------------------------------------------


@pytest.mark.parametrize("isothermal", [True, False])
def test_deflections_agree_with_lenstronomy(tmp_path: Path, isothermal: bool) -> None:
    """1000 random lenses, off centre and sheared: the source is met at the same places to 1e-4 arcsec."""
    model = pytest.importorskip("lenstronomy.LensModel.lens_model")
    rng = np.random.default_rng(int(isothermal))
    bounds = {
        "theta_E": (0.3, 3.0), "q": (0.3, 0.99), "phi": (-90.0, 90.0), "gamma1": (-0.1, 0.1),
        "gamma2": (-0.1, 0.1), "x_lens": (-0.3, 0.3), "y_lens": (-0.3, 0.3), "x_source": (-1.0, 1.0),
        "y_source": (-1.0, 1.0),
    }  # fmt: skip
    rows = []
    for _ in range(1000):
        row = LENS | {name: float(rng.uniform(*limits)) for name, limits in bounds.items()}
        rows.append(row | {"slope": 2.0 if isothermal else float(rng.uniform(1.5, 2.5))})
    lenses = lenses_of(tmp_path / "lenses.parquet", rows)
    reference = model.LensModel(["SIE" if isothermal else "EPL", "SHEAR"])
    worst = 0.0
    for k, row in enumerate(rows):
        mass, shear, source = lenstronomy_of(row)
        if isothermal:
            mass.pop("gamma")
        x, y = rng.uniform(-4, 4, (2, 20))
        bx, by = reference.ray_shooting(x, y, [mass, shear])
        lensed, dx, dy = lenses.lensed(k, 0.2)
        u, v = x / 0.2 - dx, y / 0.2 - dy
        ax, ay = deflect(lensed.lens, u, v)
        mine = np.stack([u - ax - lensed.source.dx, v - ay - lensed.source.dy]) * 0.2
        worst = max(worst, float(np.abs(mine - [bx - source["center_x"], by - source["center_y"]]).max()))
    assert worst < 1e-4


def test_the_arcs_are_those_of_lenstronomy(tmp_path: Path) -> None:
    """Lensed over unlensed flux of the whole conversion, with the light profile of lenstronomy."""
    model = pytest.importorskip("lenstronomy.LensModel.lens_model")
    light = pytest.importorskip("lenstronomy.LightModel.light_model")
    mass, shear, source = lenstronomy_of(LENS)
    axis = (np.arange(64 * 12) - 64 * 6) / 12 * 0.2
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    bx, by = model.LensModel(["EPL", "SHEAR"]).ray_shooting(x, y, [mass, shear])
    profile = light.LightModel(["SERSIC_ELLIPSE"])
    kwargs = [{"amp": 1.0, **source}]
    total = profile.total_flux(kwargs, norm=False)[0]
    reference = profile.surface_brightness(bx, by, kwargs).sum() * (0.2 / 12) ** 2 / total
    lensed, dx, dy = lenses_of(tmp_path / "lens.csv", [LENS]).lensed(0, 0.2)
    assert transform(lensed, 64, dx, dy)[0, 0].real == pytest.approx(reference, rel=5e-3)
    assert reference > 3.0


def test_names_of_others_mean_the_same(tmp_path: Path) -> None:
    mass, shear, source = lenstronomy_of(LENS)
    mags = {"mag_g": LENS["mag_g"], "mag_r": LENS["mag_r"]}

    def prefixed(lens: str, light: str) -> dict[str, float]:
        out = {lens + name: value for name, value in (mass | shear).items()}
        return out | {light + name: value for name, value in source.items()} | mags

    deep = {}
    for band in "gr":
        deep |= {f"PLANE_1-OBJECT_1-MASS_PROFILE_1-{n}-{band}": v for n, v in mass.items()}
        deep |= {f"PLANE_1-OBJECT_1-SHEAR_PROFILE_1-{n}-{band}": v for n, v in shear.items()}
        shape = source | {"magnitude": LENS[f"mag_{band}"]}
        deep |= {f"PLANE_2-OBJECT_1-LIGHT_PROFILE_1-{n}-{band}": v for n, v in shape.items()}
    others = {
        "lenstronomy.csv": prefixed("lens_", "source_"),
        "slsim.parquet": prefixed("deflector_mass_", "source_light_") | {"deflector_redshift": 0.5},
        "deeplenstronomy.csv": deep,
        "ripple.fits": LENS,
        "ripple.vot": LENS,
    }
    for name, row in others.items():
        found = lenses_of(tmp_path / name, [row])
        for key in LENS.keys() - mags.keys():
            assert found.values[key][0] == pytest.approx(LENS[key], abs=1e-6), (name, key)
        np.testing.assert_allclose(found.mags, [[24.1, 23.8]])


def test_radians_are_recognised_by_their_unit(tmp_path: Path) -> None:
    table = Table([LENS | {"phi": np.radians(30.0)}])
    table["phi"].unit = "rad"
    table.write(tmp_path / "rad.fits")
    assert read_lenses(tmp_path / "rad.fits", ("g", "r")).values["phi"][0] == pytest.approx(30.0)


# Refusals -------------------------------------------------------------


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in LENS.items() if key != name}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (without("theta_E"), "no column 'theta_E'"),
        (without("R_source"), "no column 'R_source'"),
        (without("mag_r"), "no magnitude of the source in band 'r'"),
        (LENS | {"lens_theta_E": 1.0}, "say the same"),
        (LENS | {"R_sersic": 1.0, "source_R_sersic": 1.0}, "say the same"),
        (without("q") | {"lens_e1": 0.1}, "only one of e1 and e2|say the same"),
        (LENS | {"theta_E": -1.0}, "theta_E is -1, not from 0.05 to 30"),
        (LENS | {"theta_E": "wide"}, "no numbers"),
        (LENS | {"PLANE_3-OBJECT_1-LIGHT_PROFILE_1-R_sersic-g": 1.0}, "one lens and one source"),
    ],
)
def test_refused_by_name(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(CatalogueError, match=said):
        lenses_of(tmp_path / "lenses.parquet", [row])


def test_rows_that_cannot_be_painted(tmp_path: Path) -> None:
    odd = [
        LENS, LENS | {"q": 0.0}, LENS | {"mag_g": float("nan")}, LENS | {"z_lens": 1.0, "z_source": 0.5},
        LENS | {"z_lens": 0.4, "z_source": 2.0},
    ]  # fmt: skip
    found = lenses_of(tmp_path / "lenses.parquet", odd)
    assert found.usable.tolist() == [0, 4]
    assert found.refused[1] == "q is 0, not from 0.2 to 1"
    assert found.refused[2].startswith("mag_g is nan")
    assert found.refused[3] == "z_source is not beyond z_lens"
    with pytest.raises(CatalogueError, match="id 7 is there twice"):
        lenses_of(tmp_path / "twice.csv", [LENS | {"id": 7}, LENS | {"id": 7}])


# The verb -------------------------------------------------------------


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated survey, fetched."""
    root = tmp_path_factory.mktemp("lenses")
    sky, out = str(root / "sky"), str(root / "cutouts")
    small = ["--patches", "1", "--bands", "gr", "--targets", "9", "--workers", "0", "-q"]
    assert run(["simulate", sky, *small]) == 0
    fetch = ["--repo", f"{sky}/repo", "--collections", "mini", "--targets", f"{sky}/truth.parquet", "-q"]
    assert run(["fetch", *fetch, "--bands", "gr", "--size", "64", "--workers", "0", "-o", out]) == 0
    return Path(out)


def test_one_lens_for_each_cutout(cutouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = pq.read_table(cutouts / "index.parquet")
    ids = [
        v
        for v, shard in zip(before["id"].to_pylist(), before["shard"].to_pylist(), strict=True)
        if shard >= 0
    ]
    rows = [
        LENS | {"id": ids[2], "theta_E": 1.7, "z_lens": 0.4, "z_source": 2.0},
        LENS | {"id": ids[0]},
        LENS | {"id": ids[1], "q": 0.0},
    ]
    written(tmp_path / "lenses.csv", [*rows, LENS | {"id": 5}])
    argv = ["inject", str(cutouts), "--lenses", str(tmp_path / "lenses.csv"), "--workers", "0"]
    assert run([*argv, "-o", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 lenses cannot be painted, the first in row 3: q is 0" in said
    assert "1 ids have no cutout, such as 5" in said
    index = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()}
    assert [k for k, row in index.items() if row["injected"]] == sorted(ids[k] for k in (0, 2))
    assert (index[ids[2]]["theta_E"], index[ids[2]]["lens_row"]) == (1.7, 0)
    assert (index[ids[2]]["z_lens"], index[ids[2]]["z_source"]) == (0.4, 2.0)
    assert index[ids[1]]["not_injected"] == "lens: q is 0, not from 0.2 to 1"
    assert index[ids[3]]["not_injected"] == "no lens has its id"
    # The arc holds the source's flux times its magnification, but what falls outside the cutout.
    mag = 24.1 - 2.5 * np.log10(index[ids[0]]["magnification"])
    assert index[ids[0]]["arc_mag_g"] == pytest.approx(mag, abs=0.01)
    assert mag < ZERO_POINT
    assert run([*argv, "--fraction", "0.3", "-o", str(tmp_path / "f")]) == 2
    assert run([*argv, "--theta-min", "0.3", "-o", str(tmp_path / "f")]) == 2


def test_a_set_to_draw_from(cutouts: Path, tmp_path: Path) -> None:
    rows = [LENS | {"theta_E": 1.0 + 0.1 * k} for k in range(5)] + [LENS | {"R_source": -1.0}]
    written(tmp_path / "lenses.parquet", rows)
    argv = ["inject", str(cutouts), "--lenses", str(tmp_path / "lenses.parquet"), "--fraction", "0.7", "-q"]
    for name, workers in (("a", "0"), ("b", "1")):
        assert run([*argv, "--workers", workers, "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a/index.parquet").read_bytes() == (tmp_path / "b/index.parquet").read_bytes()
    table = pq.read_table(tmp_path / "a" / "index.parquet").to_pylist()
    drawn = [row for row in table if row["injected"]]
    assert drawn
    assert all(row["theta_E"] == pytest.approx(1.0 + 0.1 * row["lens_row"]) for row in drawn)
    assert all(0 <= row["lens_row"] < 5 for row in drawn)
    assert {row["not_injected"] for row in table if not row["injected"]} <= {
        "not drawn",
        "no pixels",
        "a lens already",
    }


def test_lenses_for_other_cutouts(cutouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "lenses.csv", [LENS | {"id": 5}])
    argv = ["inject", str(cutouts), "--lenses", str(tmp_path / "lenses.csv"), "-o", str(tmp_path / "o")]
    assert run(argv) == 2
    assert "no cutout has one of its ids, such as '5'" in capsys.readouterr().err
