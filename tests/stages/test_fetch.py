"""Fetch: every pixel where it belongs, every target accounted for, the same bytes however it was run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dask_clusters import losing_a_worker

from ripple.cli import run as command_line
from ripple.errors import ConfigError, Reason, SourceError
from ripple.imaging.batch import CutoutBatch
from ripple.rubin.open import open_coadd
from ripple.sky.geometry import Box
from ripple.sky.skymap import known
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.digests import merge_digests
from ripple.stages.fetch.fetch import fetch
from ripple.stages.fetch.judge import mark_no_data
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.outcomes import Outcome, Outcomes
from ripple.storage.shard_reader import unpack_cutouts


def run(sky: Path, out: Path, **options: object) -> FetchConfig:
    values = {
        "repo": str(sky / "repo"),
        "collections": ["mini"],
        "targets": str(sky / "truth.parquet"),
        "bands": ["g", "r", "i"],
        "size": 48,
        "margin": 0,
        "output": str(out),
        "workers": 0,
    }
    config = FetchConfig.make({**values, **options})
    fetch(config)
    return config


def rows(out: Path) -> tuple[pa.Table, list[CutoutBatch]]:
    artefact = open_artefact(out, "cutouts")
    return artefact.index(), [unpack_cutouts(artefact.read(k)) for k in range(len(artefact.shards))]


def contents(out: Path) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes()
        for p in out.iterdir()
        if p.suffix in (".h5", ".parquet") or p.name == "manifest.json"
    }


@pytest.fixture(scope="module")
def fetched(sky: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fetched") / "cutouts"
    run(sky, out)
    return out


def test_every_target_is_in_the_index_once_and_in_input_order(sky: Path, fetched: Path) -> None:
    index, batches = rows(fetched)
    truth = pq.read_table(sky / "truth.parquet")
    assert index.num_rows == truth.num_rows
    assert index["index"].to_pylist() == list(range(truth.num_rows))
    ids = "objectId" if "objectId" in truth.column_names else "id"
    assert index["id"].to_pylist() == truth[ids].to_pylist()
    for shard, row, ident in zip(*(index[c].to_pylist() for c in ("shard", "row", "id")), strict=True):
        if shard >= 0:
            assert batches[shard].catalog["id"][row] == ident
    assert verify(fetched) == []


def lacking(sky: Path, band: str) -> set[int]:
    """Patches without this band: the simulation leaves one out on purpose."""
    from lsst.daf.butler import Butler

    with Butler.from_config(str(sky / "repo"), collections="mini") as butler:
        refs = butler.query_datasets("deep_coadd")
    patches = {int(r.dataId["patch"]) for r in refs}
    return patches - {int(r.dataId["patch"]) for r in refs if r.dataId["band"] == band}


def test_stamps_equal_the_butler_bit_for_bit(sky: Path, fetched: Path) -> None:
    from lsst.daf.butler import Butler
    from lsst.images import Box as LsstBox
    from lsst.images import Interval

    _, batches = rows(fetched)
    batch = batches[0]
    with Butler.from_config(str(sky / "repo"), collections="mini") as butler:
        for row in range(0, len(batch), max(1, len(batch) // 6)):
            x0, y0 = int(batch.catalog["x0"][row]), int(batch.catalog["y0"][row])
            box = LsstBox(x=Interval(start=x0, stop=x0 + 48), y=Interval(start=y0, stop=y0 + 48))
            for k, band in enumerate(batch.bands):
                if batch.catalog["patch"][row] in lacking(sky, band):
                    continue
                coadd = butler.get(
                    "deep_coadd", skymap="ripple_mini_v1", tract=int(batch.catalog["tract"][row]),
                    patch=int(batch.catalog["patch"][row]), band=band, parameters={"bbox": box},
                )  # fmt: skip
                np.testing.assert_array_equal(batch.image[row, k], coadd.image.array)
                np.testing.assert_array_equal(batch.variance[row, k], coadd.variance.array)
                no_data = batch.mask[row, k] & batch.bits("NO_DATA") != 0
                np.testing.assert_array_equal(no_data, coadd.mask.get("NO_DATA"))


def test_the_share_of_pixels_without_data_is_in_the_index(sky: Path, fetched: Path) -> None:
    found = open_artefact(fetched)
    index = found.index()
    share = index["no_data"].to_numpy()
    batches = [unpack_cutouts(found.read(k)) for k in range(len(found.shards))]
    for k, (shard, row) in enumerate(zip(index["shard"].to_pylist(), index["row"].to_pylist(), strict=True)):
        if shard < 0:
            assert np.isnan(share[k])
            continue
        batch, margin = batches[shard], found.attributes["margin"]
        side = batch.mask.shape[-1]
        inner = (
            batch.mask[row, :, margin : side - margin, margin : side - margin] & batch.bits("NO_DATA") != 0
        )
        assert share[k] == pytest.approx(inner.mean(axis=(1, 2)).max(), abs=1e-4)


def test_missing_pixels_are_not_silently_ok() -> None:
    outcomes = Outcomes(5)
    share = np.array([[0, 0, 0], [0.25, 0.25, 0.01], [0.04, 0, 0], [0, 1, 0], [0, 1, 0]], np.float32)
    outcomes.add([4], Outcome("partial", Reason.MISSING_BAND, "no r"))
    mark_no_data(outcomes, ("g", "r", "i"), share)
    columns = outcomes.columns()
    assert [str(v) for v in columns["status"]] == ["ok", "partial", "ok", "partial", "partial"]
    assert [str(v) for v in columns["reason"]][1:] == ["no_data", "", "no_data", "missing_band"]
    assert str(columns["detail"][1]) == "no data: 0.25 in g, 0.25 in r"


def test_positions_psfs_and_projection(sky: Path, fetched: Path) -> None:
    _, batches = rows(fetched)
    skymap = known("ripple_mini_v1")
    for batch in batches:
        c = batch.catalog
        tan = batch.wcs[int(c["tract"][0])]
        assert tan.separation(skymap.tan(int(c["tract"][0])), Box(0, 0, 30000, 30000)) < 1e-3
        x, y = tan.sky_to_pixel(c["ra"], c["dec"])
        np.testing.assert_allclose(c["x0"] + 24 + c["dx"], x, atol=2e-3)
        np.testing.assert_allclose(c["y0"] + 24 + c["dy"], y, atol=2e-3)
        used = batch.psf[np.unique(batch.psf_index[batch.psf_index >= 0])]
        np.testing.assert_allclose(used.sum(axis=(1, 2)), 1, atol=1e-3)
        assert (batch.psf_index >= 0).mean() > 0.8  # a patch lacks band i


def test_columns_of_the_user_arrive_exactly(sky: Path, tmp_path: Path) -> None:
    """Ids and integers beyond int64, empty cells, labels that are names."""
    truth = pq.read_table(sky / "truth.parquet").slice(0, 6)
    ids = [12547118600189071360 + k for k in range(6)]
    lines = ["# object_id,ra,dec,label,parent,big,flag"]
    for k, (ra, dec) in enumerate(zip(truth["ra"].to_pylist(), truth["dec"].to_pylist(), strict=True)):
        parent, flag = "" if k == 3 else 10**17 + k, "" if k == 2 else "true"
        word = ("lens", "nonlens", "")[k % 3]
        lines.append(f"{ids[k]},{ra!r},{dec!r},{word},{parent},{2**64 - 9 + k},{flag}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    run(sky, tmp_path / "out", targets=str(tmp_path / "t.csv"))
    index, batches = rows(tmp_path / "out")
    assert index["id"].to_pylist() == ids
    want = {
        "label": [1, 0, -1, 1, 0, -1], "parent": [-1 if k == 3 else 10**17 + k for k in range(6)],
        "big": [2**64 - 9 + k for k in range(6)], "flag": [1, 1, -1, 1, 1, 1],
    }  # fmt: skip
    for name, values in want.items():
        assert index[name].to_pylist() == values, name
        stored = {
            int(i): v for b in batches for i, v in zip(b.catalog["index"], b.catalog[name], strict=True)
        }
        assert [int(stored[k]) for k in sorted(stored)] == [values[k] for k in sorted(stored)], name
    assert open_artefact(tmp_path / "out").attributes["class_map"] == {"0": "nonlens", "1": "lens"}


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_do_not_depend_on_workers(sky: Path, fetched: Path, tmp_path: Path, workers: int) -> None:
    run(sky, tmp_path / "out", workers=workers)
    assert contents(tmp_path / "out") == contents(fetched)


def test_a_finished_output_is_left_alone_and_another_config_refused(sky: Path, fetched: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in fetched.iterdir() if p.name != ".lock"}
    summary = fetch(
        FetchConfig.make({
            "repo": str(sky / "repo"), "collections": ["mini"], "targets": str(sky / "truth.parquet"),
            "bands": ["g", "r", "i"], "size": 48, "margin": 0, "output": str(fetched), "workers": 2,
        })
    )  # fmt: skip
    assert summary.done_before
    assert {p: p.stat().st_mtime_ns for p in fetched.iterdir() if p.name != ".lock"} == before
    with pytest.raises(ConfigError, match="size"):
        run(sky, fetched, size=50)


def test_an_interrupted_run_resumes_to_the_same_bytes(sky: Path, fetched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(fetched, out)
    (out / "manifest.json").unlink()
    for shard in sorted(out.glob("shard-*.h5"))[::2]:
        shard.write_bytes(shard.read_bytes()[:-5])
    (out / ".tmp-shard-00000.h5-1-00").write_bytes(b"left behind")
    run(sky, out)
    assert contents(out) == contents(fetched)
    assert not list(out.glob(".tmp-*"))


def copy_of(sky: Path, tmp_path: Path) -> tuple[Path, Callable[[str], list[Path]]]:
    root = tmp_path / "sky"
    shutil.copytree(sky, root)

    def files(band: str) -> list[Path]:
        return sorted(p for p in (root / "repo").rglob("*.fits") if f"_{band}_" in p.name)

    return root, files


def test_a_missing_file_and_a_damaged_file_touch_only_their_rows(
    sky: Path, fetched: Path, tmp_path: Path
) -> None:
    root, files = copy_of(sky, tmp_path)
    files("r")[0].unlink()
    page = files("i")[0]
    page.write_bytes(b"<html>sign in</html>".ljust(page.stat().st_size, b" "))
    run(root, tmp_path / "out")
    index, batches = rows(tmp_path / "out")
    _, before = rows(fetched)
    assert set(index["reason"].to_pylist()) >= {"unreadable_source"}
    partial = index.filter(pa.compute.equal(index["reason"], "unreadable_source"))
    assert set(partial["status"].to_pylist()) == {"partial"}
    assert all(len(bands) < 3 for bands in partial["bands"].to_pylist())
    reference = {int(i): (b, k) for b in before for k, i in enumerate(b.catalog["index"])}
    for batch in batches:
        for row, i in enumerate(batch.catalog["index"]):
            other, k = reference[int(i)]
            for b in range(3):
                if batch.catalog["band_mask"][row] >> b & 1:
                    np.testing.assert_array_equal(batch.image[row, b], other.image[k, b])
                else:
                    assert np.isnan(batch.image[row, b]).all()
    notes = open_artefact(tmp_path / "out").manifest["attributes"]["notes"]
    assert len([n for n in notes if "deep_coadd" in n]) >= 2


def test_every_row_that_a_damaged_coadd_touches_names_its_file(sky: Path, tmp_path: Path) -> None:
    """Cutouts of 420 px reach into neighbouring patches: what they lack there has a name, too."""
    root, files = copy_of(sky, tmp_path)
    victim = files("r")[0]
    run(root, tmp_path / "whole", size=420)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2].ljust(victim.stat().st_size, b"\0"))
    run(root, tmp_path / "out", size=420)
    before, after = (rows(tmp_path / name)[0].to_pylist() for name in ("whole", "out"))
    known = ("status", "reason", "detail", "bands")
    pairs = zip(before, after, strict=True)
    touched = [now for was, now in pairs if any(was[name] != now[name] for name in known)]
    assert {row["reason"] for row in touched} > {
        "unreadable_source"
    }  # and neighbours that reach into the patch
    assert all(victim.name in row["detail"] for row in touched)
    assert all(row["detail"] for row in after if row["status"] != "ok")
    quiet = [row for row in after if victim.name not in row["detail"]]
    assert [row["status"] for row in quiet] == [before[row["index"]]["status"] for row in quiet]


def test_boxes_larger_than_the_overlap_are_stitched_exactly(sky: Path, tmp_path: Path) -> None:
    """A 420 px box at the border of two patches equals the crop of the mosaic of all files."""
    run(sky, tmp_path / "out", size=420)
    _, batches = rows(tmp_path / "out")
    planes = {}
    for path in sorted((sky / "repo").rglob("*.fits")):
        coadd = open_coadd(path.read_bytes(), name=path.name)
        planes[coadd.band, coadd.box] = coadd.image()
    stitched = 0
    for batch in batches:
        for row in np.flatnonzero(batch.catalog["n_patches"] > 1)[:10]:
            x0, y0 = int(batch.catalog["x0"][row]), int(batch.catalog["y0"][row])
            stamp = Box(x0, y0, x0 + 420, y0 + 420)
            for k, band in enumerate(batch.bands):
                expected = np.full(stamp.shape, np.nan, np.float32)
                for (name, box), plane in planes.items():
                    common = stamp & box
                    if name == band and not common.empty:
                        expected[stamp.slices(common)] = plane[box.slices(common)]
                if batch.catalog["band_mask"][row] >> k & 1:
                    np.testing.assert_array_equal(batch.image[row, k], expected)
            assert batch.catalog["seam_difference"][row] == 0
            stitched += 1
    assert stitched > 3


def test_policies_pad_or_reject(sky: Path, tmp_path: Path) -> None:
    run(sky, tmp_path / "pad", size=600)
    run(sky, tmp_path / "reject", size=600, edge="reject")
    pad, _ = rows(tmp_path / "pad")
    rejected, _ = rows(tmp_path / "reject")
    outside = {k for k, r in enumerate(pad["reason"].to_pylist()) if r == "outside"}
    assert outside
    refused = {k for k, r in enumerate(rejected["reason"].to_pylist()) if r == "outside"}
    assert refused >= outside  # a row that also lacks a band is `missing_band` when padded
    assert {rejected["status"][k].as_py() for k in refused} == {"rejected"}


def cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from ripple.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=280
    )


BAD: list[tuple[list[str], int, str]] = [
    (["--repo", "nowhere", "--collections", "mini", "--region", "CIRCLE 53 -28 0.1"], 5, "nowhere"),
    (["--repo", "REPO", "--collections", "minni", "--region", "CIRCLE 53 -28 0.1"], 3, "mini"),
    (["--repo", "REPO", "--collections", "mini", "--region", "CIRCLE 10 60 0.01"], 3, ""),
    (["--repo", "REPO", "--collections", "mini", "--region", "SQUARE 1 2 3"], 3, "CIRCLE"),
    (["--repo", "REPO", "--collections", "mini", "--targets", "TRUTH", "--bands", "g,K"], 3, "'K'"),
    (["--repo", "REPO", "--collections", "mini", "--targets", "absent.csv"], 3, "absent.csv"),
    (
        ["--repo", "REPO", "--collections", "mini", "--targets", "TRUTH", "--skymap", "lsst_cells_v9"],
        3,
        "ripple_mini_v1",
    ),
    (["-c", "bad.yaml"], 2, "did you mean 'bands'"),
    (["--repo", "REPO", "--collections", "mini", "--targets", "TRUTH", "--size", "0"], 2, "pixels"),
]


@pytest.mark.parametrize(("arguments", "code", "text"), BAD, ids=[" ".join(a[-2:]) for a, _, _ in BAD])
def test_bad_input_is_one_clear_line(
    sky: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("fetch: {bnads: gri}\n")
    names = {"REPO": str(sky / "repo"), "TRUTH": str(sky / "truth.parquet")}
    found = command_line(["fetch", *(names.get(a, a) for a in arguments), "-o", "out"])
    said = capsys.readouterr().err
    assert found == code, said
    assert "Traceback" not in said
    assert text in said
    assert len(said.strip().splitlines()) == 1, said


def test_json_summary_is_on_stdout(sky: Path, fetched: Path) -> None:
    options = ["--repo", str(sky / "repo"), "--collections", "mini", "--bands", "gri", "--size", "48"]
    options += ["--targets", str(sky / "truth.parquet"), "--margin", "0", "--workers", "0"]
    options += ["-o", str(fetched), "--json"]
    result = cli("fetch", *options, cwd=fetched.parent)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["done_before"]
    assert summary["facts"]["targets"] == rows(fetched)[0].num_rows


def test_trusted_digests_refuse_a_file_that_reads_well_but_differs(
    sky: Path, fetched: Path, tmp_path: Path
) -> None:
    recorded = open_artefact(fetched).manifest["attributes"]["source_sha256"]
    root, files = copy_of(sky, tmp_path)
    other, victim = files("g")
    victim.write_bytes(other.read_bytes()[: victim.stat().st_size].ljust(victim.stat().st_size, b"\0"))
    run(root, tmp_path / "out", digests=str(fetched))
    notes = open_artefact(tmp_path / "out").manifest["attributes"]["notes"]
    said = [n for n in notes if "trusted digest" in n]
    assert len(said) == 1
    uuid, digest = next((u, d) for u, d in recorded.items() if u in said[0])
    assert digest in said[0]
    index, _ = rows(tmp_path / "out")
    touched = index.filter(pa.compute.equal(index["reason"], "unreadable_source"))
    assert touched.num_rows
    assert all("g" not in bands for bands in touched["bands"].to_pylist())
    assert uuid not in open_artefact(tmp_path / "out").manifest["attributes"]["source_sha256"]
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(recorded | {uuid: "0" * 64}))
    with pytest.raises(ConfigError, match=r"digests"):
        run(root, tmp_path / "out", digests=str(listed))


def test_two_versions_of_a_file_are_not_mixed() -> None:
    a, b, ranges = "a" * 64, "b" * 64, "ranges:" + "c" * 64
    assert merge_digests([{"u": ranges}, {"u": a}, {"u": a}]) == {"u": a}
    assert merge_digests([{"u": ranges}])["u"] == ranges
    with pytest.raises(SourceError, match=f"u changed while it was read: SHA-256 {a}, then {b}"):
        merge_digests([{"u": a}, {"u": b}])


def test_dask_cluster_that_loses_a_worker_gives_the_same_bytes(
    sky: Path, fetched: Path, tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    out = tmp_path / "dask"
    with losing_a_worker() as address:
        run(sky, out, dask=address)
    assert contents(out) == contents(fetched)
