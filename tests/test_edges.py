"""What comes from outside and is wrong ends in one line with a name: manifests, outputs, terminals."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import make_model
from toys import write_toys

from ripple.cli import run
from ripple.storage.manifest import content_digest, render

GONE = object()
WRONG: tuple[Any, ...] = (GONE, None, "word", 5, [], ["word"], {}, {"word": 5}, -1, 10**9, True)
#: Keys that readers trust, by kind.
TRUSTED = {
    "cutouts": ("bands", "size", "margin", "class_map", "source_sha256", "notes"),
    "tensors": ("bands", "size", "margin", "class_map"),
    "scores": ("bands", "rows", "sorted", "model", "evaluation", "stress", "visible"),
}
#: What is right among `WRONG`: the key is optional, or the value means something.
RIGHT = {
    ("size", GONE), ("size", None), ("margin", GONE), ("class_map", GONE), ("class_map", "{}"),
    ("source_sha256", GONE), ("source_sha256", "{}"), ("notes", GONE), ("notes", "[]"), ("notes", "['word']"),
    ("rows", 5), ("rows", 10**9), ("evaluation", GONE), ("evaluation", "{}"), ("evaluation", "{'word': 5}"),
    ("stress", GONE), ("stress", None), ("visible", GONE), ("visible", None),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(sky: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One artefact of each kind, by the real verbs, and a model."""
    root = tmp_path_factory.mktemp("edges")
    out = {name: root / name for name in ("sky", "cutouts", "tensors", "toys", "model", "scores")}
    out["sky"] = sky
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--targets", str(sky / "truth.parquet")]
    shape = ["--bands", "gri", "--size", "32", "--margin", "4", "--workers", "0"]
    assert run(["fetch", *where, *shape, "-o", str(out["cutouts"])]) == 0
    argv = ["preprocess", str(out["cutouts"]), "-o", str(out["tensors"]), "--psf", "none", "--workers", "0"]
    assert run(argv) == 0
    write_toys(out["toys"], shards=1, rows=80)
    make_model(out["model"])
    argv = ["score", str(out["model"]), str(out["toys"]), "-o", str(out["scores"]), "--threads", "1"]
    assert run(argv) == 0
    return out


def readers(kind: str, source: Path, made: dict[str, Path], out: Path) -> Iterator[list[str]]:
    """The verbs that read a kind."""
    yield ["show", str(source)]
    yield ["verify", str(source)]
    if kind in ("cutouts", "tensors"):
        yield ["show", str(source), "--picture", str(out / "p.png")]
        yield ["export", str(source), "--format", "webdataset", "-o", str(out / "export")]
    if kind == "cutouts":
        yield ["preprocess", str(source), "--psf", "none", "--workers", "0", "-o", str(out / "tensors")]
        yield ["inject", str(source), "--fraction", "0.1", "--workers", "0", "-o", str(out / "inject")]
    if kind in ("scores", "tensors"):
        yield ["report", str(source), "--top", "3", "-o", str(out / "report")]
    if kind == "scores":
        argv = ["score", str(made["model"]), str(made["toys"]), "--threads", "1"]
        yield [*argv, "-o", str(source)]  # finished: the closing screen reads the attributes


def reseal(path: Path, manifest: dict[str, Any]) -> None:
    manifest = {**manifest, "digest": content_digest(manifest)}
    path.write_bytes(render(manifest))


def trial(
    kind: str, source: Path, made: dict[str, Path], out: Path, capsys: pytest.CaptureFixture[str]
) -> list[int]:
    """Run every reader; an exception that is no error of ours fails the test. Returns the exit codes."""
    codes = []
    for argv in readers(kind, source, made, out):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        code = run(argv)
        said = capsys.readouterr().err
        assert code in (0, 2, 3, 4, 8), (argv, code)
        assert code in (0, 8) or str(source) in said.replace("\n", ""), (argv, said)
        codes.append(code)
    return codes


def copied(made: dict[str, Path], kind: str, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy beside copies of what it was made from, and its manifest."""
    for name in ("cutouts", "tensors", "toys", "scores"):
        shutil.copytree(made[name], tmp_path / name)
    source = tmp_path / kind
    return source, json.loads((source / "manifest.json").read_bytes())


@pytest.mark.parametrize("kind", ["cutouts", "tensors", "scores"])
def test_attributes_of_others_are_refused_by_name(
    kind: str, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, whole = copied(made, kind, tmp_path)
    for key in TRUSTED[kind]:
        for value in WRONG:
            manifest = copy.deepcopy(whole)
            if value is GONE:
                manifest["attributes"].pop(key, None)
            else:
                manifest["attributes"][key] = value
            reseal(source / "manifest.json", manifest)
            known = value if value is GONE or not isinstance(value, list | dict) else repr(value)
            right = (key, known) in RIGHT or (kind == "scores" and (key, value) == ("bands", ["word"]))
            if right and not isinstance(value, bool):
                codes = {run(["show", str(source)])}
                assert codes == {0}, (key, value)
                continue
            codes = set(trial(kind, source, made, tmp_path / "out", capsys))
            assert 4 in codes, (key, value, codes)


@pytest.mark.parametrize("kind", ["cutouts", "tensors", "scores"])
def test_attributes_that_nobody_calculates_with_may_be_anything(
    kind: str, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, whole = copied(made, kind, tmp_path)
    for value in (None, "\x1b[31mred", [[1]], {"a": {"b": []}}, -1):
        manifest = copy.deepcopy(whole)
        for key in {*manifest["attributes"]} - {*TRUSTED[kind]} | {"of a later version"}:
            manifest["attributes"][key] = value
        reseal(source / "manifest.json", manifest)
        assert set(trial(kind, source, made, tmp_path / "out", capsys)) <= {0, 8}


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["cutouts", "tensors", "scores"])
def test_the_rest_of_a_manifest_is_looked_at_when_it_is_opened(
    kind: str, every: int, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, whole = copied(made, kind, tmp_path)
    wanted = [
        "config",
        "inputs",
        "counts",
        "index",
        "shards",
        "attributes",
        "software",
        "verb",
        "kind",
        "suffix",
    ]
    places: list[tuple[Any, ...]] = [(key,) for key in wanted]
    places += [("counts", k) for k in ("asked", "ok", "partial", "rejected")]
    places += [("index", k) for k in ("rows", "bytes", "sha256")]
    places += [("shards", 0, k) for k in ("name", "rows", "bytes", "sha256", "extra")]
    if kind == "scores":
        places += [("inputs", "model"), ("inputs", "tensors"), ("config", "tensors"),
                   ("attributes", "sorted", "name"), ("attributes", "sorted", "sha256"),
                   ("attributes", "model", "origin")]  # fmt: skip
    for at, place in enumerate(places):
        for value in (*WRONG, "../../etc/passwd", 10**400, -(10**30))[at % every :: every]:
            manifest = copy.deepcopy(whole)
            inside = manifest
            for key in place[:-1]:
                inside = inside[key]
            if value is GONE:
                del inside[place[-1]]
            else:
                inside[place[-1]] = value
            reseal(source / "manifest.json", manifest)
            for argv in readers(kind, source, made, tmp_path / "out"):
                shutil.rmtree(tmp_path / "out", ignore_errors=True)
                (tmp_path / "out").mkdir()
                code = run(argv)
                said = capsys.readouterr().err.replace("\n", "")
                assert code in (0, 2, 3, 4, 8), (argv, code)
                named = (str(source), str(made["toys"]), "word: no such directory")  # of `config.tensors`
                assert code in (0, 8) or any(name in said for name in named), (argv, said)
                if code == 4:
                    break  # it is opened in one place


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [("margin", 15, "margin"), ("margin", 0, "size"), ("size", 24, "size"), ("size", [32, 16], "size"),
     ("bands", ["g", "r"], "bands"), ("bands", ["g", "r", "i", "z"], "bands"),
     ("bands", ["g", "g", "r"], "twice"), ("bands", ["i", "r", "g"], "bands")],
)  # fmt: skip
def test_attributes_are_held_against_the_shards(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, word: str
) -> None:
    source, manifest = copied(made, "cutouts", tmp_path)
    manifest["attributes"] |= {key: value} | ({"size": None} if value == 15 else {})
    if value == 15:  # 40 pixels are there
        manifest["attributes"]["margin"] = 20
    reseal(source / "manifest.json", manifest)
    for argv in readers("cutouts", source, made, tmp_path / "out"):
        if argv[0] in ("preprocess", "inject", "export") or "--picture" in argv:
            (tmp_path / "out").mkdir(exist_ok=True)
            assert run(argv) == 4, argv
            said = capsys.readouterr().err
            assert str(source) in said
            assert word in said


# Outputs ------------------------------------------------------------


def writers(made: dict[str, Path], out: Path) -> dict[str, list[str]]:
    """Every verb that takes an output, with inputs that are good."""
    sky, model, toys = made["sky"], str(made["model"]), str(made["toys"])
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--targets", str(sky / "truth.parquet")]
    chain = out.parent.parent / "chain.yaml" if out.parent.is_file() else made["model"].parent / "chain.yaml"
    chain.write_text("simulate: {patches: 2, targets: 4, bands: [g]}\n")
    place = ["--targets", str(sky / "truth.parquet"), "--skymap", "lsst_cells_v2"]
    source = ["--format", "arrays", "--bands", "gri", "--pixel-scale", "0.2", "--into", "tensors"]
    return {
        "simulate": ["simulate", str(out), "--patches", "2", "--targets", "4", "--bands", "g"],
        "locate": ["locate", *place, "-o", f"{out}.csv"],
        "fetch": ["fetch", *where, "--bands", "gri", "--size", "32", "--workers", "0", "-o", str(out)],
        "preprocess": ["preprocess", str(made["cutouts"]), "--workers", "0", "-o", str(out)],
        "inject": ["inject", str(made["cutouts"]), "--workers", "0", "-o", str(out)],
        "train": ["train", toys, "--epochs", "1", "--threads", "1", "--nside", "512", "-o", str(out)],
        "score": ["score", model, toys, "--threads", "1", "-o", str(out)],
        "explain": ["explain", model, toys, "-o", str(out)],
        "report": ["report", str(made["scores"]), "--top", "3", "-o", str(out)],
        "run": ["run", "-c", str(chain), "-o", str(out)],
        "show": ["show", str(made["cutouts"]), "--picture", f"{out}.png"],
        "import": ["import", str(made["model"].parent / "stamps.npz"), *source, "-o", str(out)],
        "export": ["export", toys, "--format", "webdataset", "-o", str(out)],
        "import-model": ["import-model", f"{model}/model.safetensors", "--sidecar", f"{model}/side.yaml",
                         "-o", str(out)],
        "export-model": ["export-model", model, "--format", "torchscript", "-o", f"{out}/net.pt"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def sources(made: dict[str, Path]) -> dict[str, Path]:
    """`made`, with what `import` and `import-model` take."""
    import numpy as np

    np.savez(made["model"].parent / "stamps.npz", image=np.ones((2, 3, 16, 16), np.float32))
    contract = json.loads((made["model"] / "model.json").read_text())["contract"]
    (made["model"] / "side.yaml").write_text(
        json.dumps({k: v for k, v in contract.items() if k != "members"})
    )
    return made


VERBS = (
    "simulate", "locate", "fetch", "preprocess", "inject", "train", "score", "explain", "report", "run",
    "show", "import", "export", "import-model", "export-model",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", ["below a file", "a file", "no permission"])
def test_an_output_that_cannot_be_made_is_refused_by_name(
    verb: str, place: str, sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "closed").mkdir(mode=0o555)
    if place == "no permission":
        # Root may write anywhere but into /sys.
        out = (Path("/sys") if os.geteuid() == 0 else tmp_path / "closed") / "out"
    else:
        out = tmp_path / "file" / "out" if place == "below a file" else tmp_path / "file"
        if place == "a file" and verb in ("locate", "show"):
            pytest.skip("writes a file")
    code = run(writers(sources, out)[verb])
    said = capsys.readouterr().err.replace("\n", "")
    assert code == 6, said
    assert str(out) in said or str(out.parent) in said
    assert (tmp_path / "file").read_text() == "mine"


# The state of a chain, and terminals --------------------------------


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"fetch": 5}', b'{"fetch": {}}', b"\xff", b"[" * 100_000])
def test_damaged_memory_of_a_chain_is_refused_before_it_runs(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chain.yaml").write_text("simulate: {patches: 2, targets: 4, bands: [g]}\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_bytes(data)
    assert run(["run", "-c", str(tmp_path / "chain.yaml"), "-o", str(tmp_path / "out")]) == 4
    assert str(tmp_path / "out" / "run.json") in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_doctor_shows_text_of_the_environment_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ripple.stages import doctor

    hostile = "/srv/[red]x[/] \x1b[31m[/nothing]"
    monkeypatch.setattr(doctor, "environment", lambda: [doctor.Check("[bold]n[/]", "note", hostile)])
    assert run(["doctor"]) == 0
    assert "[bold]n[/] /srv/[red]x[/] \\x1b[31m[/nothing]" in " ".join(capsys.readouterr().err.split())


def test_locate_prints_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = ["a\x1b[31m", "b\nc", "é"]
    pq.write_table(pa.table({"id": ids, "ra": [53.0] * 3, "dec": [-28.0] * 3}), tmp_path / "t.parquet")
    where = ["locate", "--targets", str(tmp_path / "t.parquet"), "--skymap", "lsst_cells_v2"]
    assert run(where) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 4
    assert "\x1b" not in said
    assert "a\\x1b[31m" in said
    assert "é" in said
    assert run([*where, "-o", str(tmp_path / "out.parquet")]) == 0  # a file keeps them
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ids


# Sources that change while they are imported ------------------------


def stamps(root: Path, form: str) -> Path:
    """Sources of eight rows."""
    import h5py
    import numpy as np
    from astropy.io import fits

    image = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
    root.mkdir()
    if form == "arrays":
        with h5py.File(root / "all.h5", "w") as file:
            file["image"] = image
        return root / "all.h5"
    for k in range(8):
        if form == "deeplense":
            np.save(root / f"{k}.npy", image[k])
        else:
            fits.PrimaryHDU(image[k], fits.Header({"BANDS": "gri", "BUNIT": "nJy"})).writeto(
                root / f"{k}.fits"
            )
    return root


def importing(source: Path, form: str, out: Path, *more: str) -> list[str]:
    """A command line that imports `stamps`; the output comes last."""
    facts = [
        "--bands",
        "gri",
        "--pixel-scale",
        "0.2",
        "--into",
        "tensors",
        "--set",
        "rows_per_shard=2",
        *more,
    ]
    return ["import", str(source), "--format", form, *facts, "-o", str(out)]


@pytest.mark.parametrize("form", ["arrays", "deeplense", "fits"])
@pytest.mark.parametrize("how", ["flipped", "replaced"])
def test_import_refuses_a_file_that_changes_between_hash_and_read(
    form: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The change comes after the first shard was committed; a flip by hand leaves size and times alone."""
    from ripple.stages.formats import import_cutouts

    source = stamps(tmp_path / "in", form)
    victim = source if source.is_file() else sorted(source.iterdir())[-1]
    whole = victim.read_bytes()
    argv = importing(source, form, tmp_path / "out")
    write, done = import_cutouts._write_unit, []

    def then(*arguments: Any) -> None:
        write(*arguments)
        if not done:
            damaged = whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]
            if how == "replaced":
                (tmp_path / "other").write_bytes(damaged)
                (tmp_path / "other").rename(victim)
            else:
                victim.write_bytes(damaged)
        done.append(True)

    with monkeypatch.context() as patched:
        patched.setattr(import_cutouts, "_write_unit", then)
        assert run(argv) == 4
    assert str(victim) in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()
    victim.write_bytes(whole)
    assert run(argv) == 0
    assert run([*argv[:-1], str(tmp_path / "again")]) == 0
    names = [f"shard-{k:05d}.h5" for k in range(4)]
    assert all((tmp_path / "out" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)


def test_rot_without_a_trace_in_a_store_is_found_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ripple.storage import files

    source = stamps(tmp_path / "in", "arrays")
    monkeypatch.setattr(files, "_mark", lambda status: (0, 0, status.st_size))  # times tell nothing
    argv = importing(source, "arrays", tmp_path / "out", "--unit", "none")
    from ripple.stages.formats import import_cutouts

    write = import_cutouts._write_unit

    def then(*arguments: Any) -> None:
        write(*arguments)
        data = bytearray(source.read_bytes())
        data[-40] ^= 1 << arguments[1]
        source.write_bytes(data)

    monkeypatch.setattr(import_cutouts, "_write_unit", then)
    assert run(argv) == 4
    assert f"{source}: changed" in capsys.readouterr().err
    assert not (tmp_path / "out" / ".journal").exists()


def test_a_catalogue_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ripple.errors import CatalogueError
    from ripple.stages.plan import tables

    path = tmp_path / "t.csv"
    path.write_text("id,ra,dec\n1,53.0,-28.0\n")
    read = tables._read_file

    def then(*arguments: Any) -> Any:
        found = read(*arguments)
        path.write_text("id,ra,dec\n1,54.0,-28.0\n")
        return found

    monkeypatch.setattr(tables, "_read_file", then)
    with pytest.raises(CatalogueError, match=r"t\.csv: changed while it was read"):
        tables.read_table(path)


def test_a_pipe_is_no_catalogue(tmp_path: Path) -> None:
    from ripple.errors import CatalogueError
    from ripple.stages.plan.tables import read_table

    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(CatalogueError, match="not a regular file"):
        read_table(tmp_path / "pipe.csv")


def test_an_object_table_of_other_content_under_the_same_uuid_is_refused(
    sky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from lsst.daf.butler import Butler

    shutil.copytree(sky, tmp_path / "sky")
    repo = tmp_path / "sky" / "repo"
    argv = [
        "fetch",
        "--repo",
        str(repo),
        "--collections",
        "mini",
        "--bands",
        "g",
        "--size",
        "16",
        "--workers",
        "0",
        "-o",
        str(tmp_path / "out"),
    ]
    assert run(argv) == 0
    assert run(argv) == 0  # the same bytes: finished
    with Butler.from_config(str(repo), collections="mini") as butler:
        (ref,) = butler.query_datasets("object", collections="mini")
        path = Path(butler.getURI(ref).ospath)
        ra = np.asarray(butler.get(ref)["coord_ra"], np.float64)
    data = bytearray(path.read_bytes())
    at = data.find(ra[:4].tobytes())
    assert at > 0
    data[at] ^= 1  # a target moves by less than anybody sees, and no checksum of Parquet tells
    path.write_bytes(data)
    assert run(argv) == 2
    assert f"inputs.targets.datasets.{ref.id}:" in capsys.readouterr().err


def test_the_digest_of_a_table_is_that_of_its_values() -> None:
    import pyarrow as pa

    from ripple.stages.plan.tables import table_digest

    values = {"i": [1, 2, None], "x": [0.5, None, 1.5], "s": ["a", None, "bc"], "b": [True, False, None]}
    whole = pa.table(values)
    parts = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert table_digest(parts) == table_digest(whole.take([0, 1, 2])) == table_digest(whole)
    others = [
        whole.slice(1),
        whole.rename_columns(["i", "y", "s", "b"]),
        pa.table(values | {"s": ["ab", None, "c"]}),
        pa.table(values | {"i": [1, 2, 0]}),
        pa.table(values | {"s": ["a", "", "bc"]}),
        pa.table(values | {"b": [True, False, False]}),
    ]
    assert len({table_digest(t) for t in [whole, *others]}) == 7
