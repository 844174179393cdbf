"""The report: right numbers, hostile text stays text, and a real browser filters, sorts and grades."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from browser import Browser, started
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorsets import make_scores, make_tensors

from ripple.cli import run
from ripple.errors import ConfigError, InputError, IntegrityError, WriteError
from ripple.imaging import colour
from ripple.report import cards, plots
from ripple.stages.report.config import ReportConfig
from ripple.stages.report.report import report
from ripple.storage.artefact import verify

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'><svg/onload=alert(1)>",
    "</style><b>x</b>", "{{ 7*7 }}", "=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "a\u202eb",
    "javascript:alert(1)", "&lt;i&gt;",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("report")
    tensors = make_tensors(root / "tensors", (30, 50), size=24, dtype=np.float32, ids=HOSTILE)
    scores = make_scores(root / "scores", tensors)
    report(ReportConfig.make({"source": scores, "output": root / "report", "top": 80, "missed": 5}))
    return {"tensors": tensors, "scores": scores, "report": root / "report"}


class Elements(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_page_is_self_contained_and_hostile_ids_stay_text(made: dict[str, Path]) -> None:
    page = (made["report"] / "index.html").read_text()
    parser = Elements()
    parser.feed(page)
    assert {t for t, _ in parser.tags} <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "div", "main", "footer",
        "svg", "text", "path", "table", "caption", "thead", "tbody", "tr", "th", "td", "label", "select",
        "option", "input", "output", "button", "span", "article", "img", "i", "kbd", "a", "script",
    }  # fmt: skip
    assert not any(name.startswith("on") for _, attrs in parser.tags for name in attrs)
    sources = [attrs["src"] for tag, attrs in parser.tags if tag == "img"]
    assert sources
    assert all(src is not None and src.startswith("data:image/png;base64,") for src in sources)
    assert [a["href"] for t, a in parser.tags if t == "a"] == ["candidates.csv"]
    assert sum(t == "script" for t, _ in parser.tags) == 1
    ids = {a["data-id"] for t, a in parser.tags if t == "article"}
    assert set(HOSTILE) & ids


def test_csp_allows_exactly_our_script(made: dict[str, Path]) -> None:
    import base64
    import hashlib

    page = (made["report"] / "index.html").read_text()
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_csv_has_all_rows_and_no_formula(made: dict[str, Path]) -> None:
    rows = list(csv.DictReader(io.StringIO((made["report"] / "candidates.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 80
    assert [int(r["rank"]) for r in rows] == list(range(1, 81))
    score = [float(r["score"]) for r in rows]
    assert score == sorted(score, reverse=True)
    assert {"'=cmd|' /C calc'!A0", "'+1+1", "'-2+3", "'@SUM(A1)"} <= {r["id"] for r in rows}
    assert all(float(r["dec"]) < 0 for r in rows)  # numbers keep their sign


def test_metrics_of_the_page_are_those_of_the_scores(made: dict[str, Path]) -> None:
    page = (made["report"] / "index.html").read_text()
    evaluation = json.loads((made["scores"] / "evaluation.json").read_text())["evaluation"]
    auroc = evaluation["metrics"]["auroc"]
    assert f"{auroc['value']:.3f}" in page
    assert f"{auroc['low']:.3f} to {auroc['high']:.3f}" in page
    assert "AUROC" in page


def test_lowest_ranked_lenses_are_shown_too(made: dict[str, Path]) -> None:
    from ripple.stages.report.report import chosen_rows, ranked_table
    from ripple.storage.artefact import open_artefact

    table = ranked_table(open_artefact(made["scores"]))
    config = ReportConfig.make({"source": made["scores"], "output": "x", "top": 10, "missed": 3})
    shown = chosen_rows(table, config)
    lenses = np.flatnonzero(table["label"].to_numpy() == 1)
    assert shown[:10].tolist() == list(range(10))
    assert shown[10:].tolist() == lenses[-3:].tolist()


def test_again_is_done_and_other_options_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    base = {"source": made["scores"], "output": made["report"], "top": 80, "missed": 5}
    before = (made["report"] / "index.html").stat().st_mtime_ns
    assert report(ReportConfig.make(base)).done_before
    assert (made["report"] / "index.html").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="top: 80 -> 41"):
        report(ReportConfig.make({**base, "top": 41}))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(WriteError, match="did not write"):
        report(ReportConfig.make({**base, "output": tmp_path}))


def test_same_scores_give_the_same_bytes(made: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        report(ReportConfig.make({"source": made["scores"], "output": tmp_path / name}))
    for file in ("index.html", "candidates.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_damage_and_wrong_kind_are_named(made: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "scores"
    shutil.copytree(made["scores"], copy)
    data = bytearray((copy / "scores.parquet").read_bytes())
    data[50] ^= 1
    (copy / "scores.parquet").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"scores\.parquet"):
        report(ReportConfig.make({"source": copy, "output": tmp_path / "r"}))
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "r.partial").exists()
    manifest = made["tensors"] / "manifest.json"
    moved = manifest.rename(tmp_path / "gone.json")
    try:
        with pytest.raises(Exception, match="tensors"):
            report(ReportConfig.make({"source": made["scores"], "output": tmp_path / "r"}))
    finally:
        moved.rename(manifest)


def test_tensor_page_shows_every_verdict(made: dict[str, Path], tmp_path: Path) -> None:
    report(ReportConfig.make({"source": made["tensors"], "output": tmp_path / "t", "top": 20}))
    page = (tmp_path / "t" / "index.html").read_text()
    assert 'data-reason="quality"' in page
    assert 'data-reason="accepted"' in page
    assert page.count("<article") == 20


def test_reports_on_models_are_refused(tmp_path: Path, one_of_each: dict[str, Path]) -> None:
    with pytest.raises(InputError):
        report(ReportConfig.make({"source": one_of_each["model"], "output": tmp_path / "r"}))


# Pieces ---------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 360, exclude_max=True), st.floats(-90, 90))
def test_sexagesimal_agrees_with_astropy(ra: float, dec: float) -> None:
    from astropy.coordinates import Angle

    text = cards.sexagesimal(ra, dec)
    hours, degrees = text.split()
    back_ra, back_dec = Angle(hours, unit="hourangle").deg, Angle(degrees, unit="deg").deg
    assert abs((back_ra - ra + 180) % 360 - 180) <= 0.0050001 * 15 / 3600
    assert abs(back_dec - dec) <= 0.050001 / 3600
    assert ":60" not in text


def test_lupton_agrees_with_astropy() -> None:
    from astropy.visualization import make_lupton_rgb

    rng = np.random.default_rng(0)
    image = rng.gamma(0.5, 30.0, (1, 3, 20, 20)).astype(np.float32)
    w = colour.WEIGHTS
    mine = colour.lupton_rgb(image, ("g", "r", "i"), stretch=20.0, q=8.0)[0]
    # astropy's stretch carries a factor that puts its range on 0..1; ours is the formula of the paper.
    i, r, g = image[0, 2] * w[0], image[0, 1] * w[1], image[0, 0] * w[2]
    scale = 0.1 / np.arcsinh(0.1 * 8.0) * 8.0
    theirs = make_lupton_rgb(i, r, g, stretch=20.0 * scale, Q=8.0)
    ratio = mine.astype(float).max(axis=-1), theirs.astype(float).max(axis=-1)
    assert np.corrcoef(ratio[0].ravel(), ratio[1].ravel())[0, 1] > 0.98
    bright = (mine.max(axis=-1) > 60) & (mine.max(axis=-1) < 250)
    truth = np.stack([i, r, g], axis=-1)[bright]
    got = mine[bright].astype(float)
    np.testing.assert_allclose(
        got / got.sum(axis=1, keepdims=True), truth / truth.sum(axis=1, keepdims=True), atol=0.02
    )


def test_png_is_a_png_with_row_zero_at_the_bottom() -> None:
    rgb = np.zeros((3, 2, 3), np.uint8)
    rgb[0, :, 0] = 255  # the bottom row is red
    data = colour.png(rgb)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    drawn = np.asarray(Image.open(io.BytesIO(data)))
    assert drawn.shape == (3, 2, 3)
    np.testing.assert_array_equal(drawn, rgb[::-1])
    assert colour.png(rgb) == data


def test_bands_of_any_survey_make_a_colour() -> None:
    assert colour.rgb_bands(("g", "r", "i")) == ((2,), (1,), (0,))
    assert colour.rgb_bands(("u", "g", "r", "i", "z", "y")) == ((3,), (2,), (1,))
    assert colour.rgb_bands(("r", "i")) == ((1,), (0, 1), (0,))
    assert colour.rgb_bands(("mono",)) == ((0,), (0, 0), (0,))
    grey = colour.lupton_rgb(np.ones((1, 1, 4, 4), np.float32), ("mono",), stretch=1.0)
    assert (grey[..., 0] == grey[..., 2]).all()
    blank = colour.lupton_rgb(np.full((1, 3, 4, 4), np.nan, np.float32), ("g", "r", "i"), stretch=1.0)
    assert (blank == 0).all()


def test_plot_text_is_escaped_and_numbers_stay_inside() -> None:
    line = plots.Line([0, 0.5, 2, np.nan], [0, 1, 5, 1], "<b>", "c1")
    svg = plots.line_plot("<t>", "x&y", "y", [line], x_range=(0, 1), y_range=(0, 1))
    assert "<b>" not in svg
    assert "<t>" not in svg
    assert "x&amp;y" in svg
    assert "nan" not in svg
    empty = plots.histogram_plot("h", "x", [("none", np.zeros(0))])
    assert "<svg" in empty


def test_numbers_come_back_from_csv_to_the_last_bit() -> None:
    rng = np.random.default_rng(3)
    ra = np.concatenate([rng.uniform(0, 360, 1000), [53.15780820131061, 1e-300, 0.1]])
    flux = (rng.normal(size=len(ra)) * 10 ** rng.uniform(-8, 8, len(ra))).astype(np.float32)
    table = pa.table({"ra": ra, "flux": flux})
    lines = cards.csv_bytes(table).decode().splitlines()[1:]
    cells = [line.split(",") for line in lines]
    np.testing.assert_array_equal([float(a) for a, _ in cells], ra)
    np.testing.assert_array_equal(np.array([b for _, b in cells]).astype(np.float32), flux)


def test_csv_keeps_numbers_and_quotes_formulas() -> None:
    table = pa.table(
        {"=a": ["=1", "-x", "ok", None], "n": [-1.5, float("nan"), 3.0, None], "k": [-1, 2, 3, 4]}
    )
    assert cards.csv_bytes(table).decode().splitlines() == [
        "'=a,n,k",
        "'=1,-1.5,-1",
        "'-x,,2",
        "ok,3,3",
        ",,4",
    ]


# A real browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("browser")) as made:
        yield made


def test_browser_filters_sorts_and_grades(browser: Browser, made: dict[str, Path]) -> None:
    browser.open(made["report"] / "index.html")
    assert browser.log() == []  # no script refused, no image missing
    ranks = [int(r) for r in browser.shown("rank")]
    assert ranks == sorted(ranks)
    assert ranks == list(range(1, 81))
    loaded = browser.run("return [...document.images].every(i => !i.complete || i.naturalWidth === 24)")
    assert loaded is True

    browser.set("sort", "spread")
    spread = [float(s) for s in browser.shown("spread")]
    assert spread == sorted(spread, reverse=True)
    browser.set("sort", "rank")

    browser.set("least", "0.5")
    assert browser.shown("probability")
    assert all(float(p) >= 0.5 for p in browser.shown("probability"))
    browser.set("least", "0")
    browser.set("truth", "lens")
    assert set(browser.shown("truth")) == {"lens"}
    browser.set("truth", "all")
    browser.set("find", "onerror")
    assert browser.shown("id") == ['"><img src=x onerror=alert(1)>']
    browser.set("find", "nothing like it")
    assert browser.shown("id") == []
    assert browser.run("return !document.getElementById('empty').hidden")
    browser.set("find", "")

    first, second = browser.shown("id")[:2]
    browser.run("document.querySelector('.card .grades button[data-grade=A]').click()")
    browser.run(
        "const c = document.querySelectorAll('.card')[1]; c.focus();"
        "c.dispatchEvent(new KeyboardEvent('keydown', {key: 'b', bubbles: true}));"
    )
    browser.set("grade", "A")
    assert browser.shown("id") == [first]
    browser.open(made["report"] / "index.html")  # grades survive a reload
    browser.set("grade", "B")
    assert browser.shown("id") == [second]
    browser.set("grade", "all")

    browser.run("document.getElementById('download').click()")
    target = browser.downloads / "grades.csv"  # type: ignore[attr-defined]
    for _ in range(50):
        if target.exists():
            break
        time.sleep(0.1)
    rows = list(csv.DictReader(io.StringIO(target.read_text(encoding="utf-8"))))
    assert [r["grade"] for r in rows] == ["A", "B"]
    assert [r["id"].lstrip("'") for r in rows] == [first.lstrip("'"), second.lstrip("'")]


def test_browser_refuses_foreign_script(browser: Browser, made: dict[str, Path], tmp_path: Path) -> None:
    page = (made["report"] / "index.html").read_text()
    hacked = tmp_path / "hacked.html"
    hacked.write_text(page.replace("</main>", "<script>window.pwned = 1</script></main>"))
    browser.open(hacked)
    assert browser.run("return window.pwned === undefined")


def test_browser_shows_tensors(browser: Browser, made: dict[str, Path], tmp_path: Path) -> None:
    report(ReportConfig.make({"source": made["tensors"], "output": tmp_path / "t"}))
    browser.open(tmp_path / "t" / "index.html")
    browser.set("reason", "quality")
    assert set(browser.shown("reason")) == {"quality"}


def named(browser: Browser, css: str) -> dict[str, str]:
    """Accessible name -> role of the elements, as the browser tells a screen reader."""
    base = f"/session/{browser.session}"
    found = browser.call("POST", f"{base}/elements", {"using": "css selector", "value": css})
    names = {}
    for element in (next(iter(thing.values())) for thing in found):
        name = browser.call("GET", f"{base}/element/{element}/computedlabel")
        names[name] = browser.call("GET", f"{base}/element/{element}/computedrole")
    assert "" not in names, css
    return names


def tabbed(browser: Browser, times: int) -> list[str]:
    """What has the focus after each press of the tab key: the id, else the tag."""
    keys = [{"type": kind, "value": "\ue004"} for kind in ("keyDown", "keyUp")]
    reached = []
    for _ in range(times):
        browser.call(
            "POST", f"/session/{browser.session}/actions",
            {"actions": [{"type": "key", "id": "k", "actions": keys}]},
        )  # fmt: skip
        reached.append(browser.run("const e = document.activeElement; return e.id || e.localName;"))
    return reached


def test_every_control_has_a_name_and_is_reached_by_keyboard(
    browser: Browser, made: dict[str, Path], tmp_path: Path
) -> None:
    browser.open(made["report"] / "index.html")
    tools = named(browser, ".tools select, .tools input, .tools button")
    assert {"Sort", "Truth", "Grade", "Least probability", "Size", "Brightness", "Find"} <= tools.keys()
    assert {"hide truth", "no quality flags", "Download grades"} <= tools.keys()
    card = named(browser, ".card[data-rank='1'], .card[data-rank='1'] button, .card[data-rank='1'] img")
    assert {"A, certain lens", "B, probable lens", "C, possible lens", "X, not a lens"} <= card.keys()
    assert any(name.startswith("Rank 1, id ") for name in card)
    assert sum(role in ("image", "img") for role in card.values()) == 1
    assert set(named(browser, ".plots svg").values()) <= {"image", "img"}
    assert set(named(browser, ".scroll").values()) == {"region"}  # scrolls by keyboard, too
    assert browser.run("return [...document.querySelectorAll('header, main, footer')].length") == 3
    assert browser.run("return [...document.querySelectorAll('h1')].length") == 1

    controls = browser.run(
        "return [...document.querySelectorAll('main a[href], main input, main select, main button,"
        " main [tabindex]')].slice(0, 20).map(e => e.id || e.localName)"
    )
    assert tabbed(browser, len(controls)) == controls
    report(ReportConfig.make({"source": made["tensors"], "output": tmp_path / "t", "top": 6}))
    browser.open(tmp_path / "t" / "index.html")
    assert {"Sort", "Verdict", "Find"} <= named(browser, ".tools select, .tools input").keys()
    assert len(named(browser, ".card")) == 6


def test_a_page_about_cutouts(one_of_each: dict[str, Path], tmp_path: Path) -> None:
    """Verdicts with their reasons, and a picture of each row, before anything is preprocessed."""
    assert run(["report", str(one_of_each["cutouts"]), "--top", "12", "-o", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Quality of cutouts" in page
    assert page.count("<article") == 12
    assert verify(tmp_path / "page") == []
