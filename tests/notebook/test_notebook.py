"""What one sees and does in a notebook: one line, one picture, and no library that was not asked for."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import QTable
from matplotlib.figure import Figure
from models import SMALL
from PIL import Image

import ripple
from ripple.errors import ConfigError, InputError, RippleError
from ripple.imaging.aperture import circle, circle_flux
from ripple.imaging.batch import concatenate
from ripple.notebook.drawing import bar_length, directions
from ripple.storage.shard_reader import unpack_cutouts, unpack_tensors

OBJECTS = ("survey", "cutout", "cutouts", "cutout artefact", "tensors", "tensor", "scores", "model")


@pytest.fixture(scope="module")
def survey(sky: Path) -> Iterator[ripple.Survey]:
    with ripple.open_survey(str(sky / "repo"), collections="mini") as opened:
        yield opened


@pytest.fixture(scope="module")
def truth(sky: Path) -> QTable:
    table = pq.read_table(sky / "truth.parquet")
    columns = {name: table[name].to_numpy() for name in ("objectId", "ra", "dec", "label")}
    return QTable(
        {
            "id": columns["objectId"],
            "label": columns["label"],
            "ra": columns["ra"] * u.deg,
            "dec": columns["dec"] * u.deg,
        }
    )


@pytest.fixture(scope="module")
def many(survey: ripple.Survey, truth: QTable) -> ripple.Cutouts:
    return survey.cutouts(truth, size=40, bands="gri")


@pytest.fixture(scope="module")
def objects(
    survey: ripple.Survey,
    many: ripple.Cutouts,
    one_of_each: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    model = tmp_path_factory.mktemp("trained") / "model"
    tensors = ripple.open(one_of_each["tensors"])
    ids = tensors.table()["id"]
    return {
        "survey": survey, "cutout": many[0], "cutouts": many, "tensors": tensors, "tensor": tensors[ids[0]],
        "cutout artefact": ripple.open(one_of_each["cutouts"]), "scores": ripple.open(one_of_each["scores"]),
        "model": ripple.train(one_of_each["toys"], output=model, **SMALL),
    }  # fmt: skip


# Every object ---------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_one_line_and_one_picture(objects: dict[str, Any], name: str) -> None:
    thing = objects[name]
    assert re.fullmatch(r"<[^\n]{10,200}>", repr(thing))
    html = thing._repr_html_()
    # Less than a screen: at most twelve lines of facts beside one picture of limited height.
    assert html.count("<tr>") <= 12
    assert html.count("<img") == 1
    assert "max-height:380px" in html
    assert re.search(r'alt="[^"]{10,}"', html)  # for screen readers
    found = re.search(r"base64,([A-Za-z0-9+/=]+)", html)
    assert found is not None
    picture = Image.open(io.BytesIO(base64.b64decode(found[1])))
    assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    assert len(html) < 1_000_000


@pytest.mark.parametrize("name", OBJECTS)
def test_plots_are_drawn_on_given_axes(objects: dict[str, Any], name: str) -> None:
    thing = objects[name]
    many = name in ("cutouts", "cutout artefact", "tensors", "scores")
    figure = Figure()
    axes = figure.subplots(1, 2) if many else figure.subplots()
    given = {"n": 2} if many else {}
    assert thing.plot(ax=axes, **given) is figure
    assert all(axis.images or axis.lines or axis.patches for axis in np.ravel(np.asarray(axes, object)))
    if many:
        with pytest.raises(ConfigError, match=r"3 panels .* 2 axes"):
            thing.plot(n=3, ax=axes)


def test_drawing_leaves_pyplot_alone() -> None:
    code = (
        "import sys, numpy as np\n"
        "from ripple.notebook import drawing\n"
        "figure, axes = drawing.panels(None, 4, columns=2)\n"
        "assert figure._repr_png_()[:4] == b'\\x89PNG' and len(axes) == 4\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_the_public_names_are_listed_and_there() -> None:
    names = dir(ripple)
    assert {
        "open",
        "open_survey",
        "Cutout",
        "Cutouts",
        "Survey",
        "Artefact",
        "Model",
        "Scores",
        "train",
    } <= set(names)
    assert all(getattr(ripple, name) is not None for name in names)
    assert not [name for name in names if name.startswith("_") and name != "__version__"]


def test_batches_are_one_line(many: ripple.Cutouts) -> None:
    side = 40 + 2 * many.margin
    assert repr(many.batch) == f"<CutoutBatch {len(many)} rows, g r i, {side} x {side} px>"
    assert repr(many[:2].to_tensors(psf="none")) == "<TensorBatch 2 rows, g r i, 40 x 40 px, asinh>"


# Asking ----------------------------------------------------------------


def test_a_position_may_be_written_in_many_ways(survey: ripple.Survey, truth: QTable) -> None:
    ra, dec, identifier = truth["ra"][0], truth["dec"][0], int(truth["id"][0])
    wanted = survey.cutout(ra=ra.value, dec=dec.value, size=64, bands="gr")
    ways = [
        survey.cutout(SkyCoord(ra, dec), size=12.8 * u.arcsec, bands=["g", "r"]),
        survey.cutout(SkyCoord(ra, dec).galactic, size="12.8arcsec", bands="gr"),
        survey.cutout(ra.value, dec.value, size=64 * u.pix, bands="gr"),
        survey.cutout(identifier, bands="gr"),
        survey.cutout(np.int64(identifier), bands="gr"),
    ]
    for found in ways:
        np.testing.assert_array_equal(found.image, wanted.image)
        assert found.box == wanted.box
    assert ways[3].id == identifier
    for wrong in ((), (1.0, 2.0, 3.0), (None,), (SkyCoord([1, 2], [3, 4], unit="deg"),)):
        with pytest.raises(RippleError, match="position"):
            survey.cutout(*wrong)
    with pytest.raises(InputError, match="no object 17"):
        survey.cutout(17)
    with pytest.raises(ConfigError, match="not an angle"):
        survey.cutout(ra.value, dec.value, size=3 * u.nJy)


def test_a_table_may_be_of_many_kinds(survey: ripple.Survey, truth: QTable, sky: Path) -> None:
    wanted = survey.cutouts(truth, size=24, bands="r")
    sky_positions = survey.cutouts(SkyCoord(truth["ra"], truth["dec"]), size=24, bands="r")
    path = survey.cutouts(sky / "truth.parquet", size=24, bands="r")
    for found in (sky_positions, path):
        np.testing.assert_array_equal(found.batch.image, wanted.batch.image)
    assert path.table["id"].tolist() == wanted.table["id"].tolist() == truth["id"].tolist()


def test_objects_are_those_of_the_object_table(survey: ripple.Survey, truth: QTable) -> None:
    ra, dec = truth["ra"][0].value, truth["dec"][0].value
    near = survey.objects(f"CIRCLE {ra} {dec} 0.01")
    apart = SkyCoord(near["ra"], near["dec"], unit="deg").separation(SkyCoord(ra, dec, unit="deg"))
    assert 0 < len(near) < len(survey.objects())
    assert apart.max() <= 0.01 * u.deg
    bright = survey.objects(select="i_cModelMag < 22")
    assert 0 < len(bright) < len(survey.objects())
    assert near["ra"].unit == u.deg
    assert len(survey.cutouts(near, size=16, bands="r").outcomes) == len(near)


def test_a_plan_says_what_cutouts_will_do(survey: ripple.Survey, truth: QTable) -> None:
    away = {"ra": [truth["ra"][0].value, 10.0], "dec": [truth["dec"][0].value, 60.0]}
    plan, found = survey.plan(away, bands="gri"), survey.cutouts(away, size=32, bands="gri")
    assert plan["status"].tolist() == found.table["status"].tolist() == ["ok", "rejected"]
    assert plan["reason"][1] == "no_patch"
    assert plan.meta["read_bytes"] > 0
    assert len(found) == 1
    assert found.table["cutout"].mask.tolist() == [False, True]


def test_nothing_but_rejected_rows_is_no_error(survey: ripple.Survey) -> None:
    found = survey.cutouts({"ra": [10.0, 11.0], "dec": [60.0, 60.0]})
    assert len(found) == 0
    assert list(found) == []
    assert found.table["status"].tolist() == ["rejected", "rejected"]
    assert "2 rejected" in repr(found)
    assert "<img" not in found._repr_html_()
    with pytest.raises(ConfigError, match="no cutout to draw"):
        found.plot()


# A sequence ------------------------------------------------------------


def test_cutouts_are_a_sequence(many: ripple.Cutouts, truth: QTable) -> None:
    table = many.table
    assert table["id"].tolist() == truth["id"].tolist()
    delivered = table[~table["cutout"].mask]
    ids = delivered["id"].tolist()
    assert len(many) == len(list(many)) == len(ids) == len(truth) - many.outcomes.count("rejected")
    assert [c.id for c in many] == ids
    assert many[-1].id == ids[-1]
    assert [c.id for c in many[3:5]] == ids[3:5]
    assert [c.id for c in many[[5, 1]]] == [ids[1], ids[5]]  # in the order of the rows
    lenses = many[delivered["label"] == 1]
    assert [c.id for c in lenses] == delivered["id"][delivered["label"] == 1].tolist()
    assert lenses.table["label"].tolist() == [1] * len(lenses)
    statuses = delivered["status"][delivered["label"] == 1].tolist()
    assert [c.outcome.status for c in lenses] == lenses.table["status"].tolist() == statuses
    # A mask over the requested rows means the same cutouts.
    assert [c.id for c in many[table["label"] == 1]] == [c.id for c in lenses]
    with pytest.raises(IndexError, match=f"cutout {len(many)} of {len(many)}"):
        many[len(many)]
    with pytest.raises(IndexError, match="a mask of 3 values"):
        many[np.array([True, False, True])]


def test_a_mask_over_the_table_skips_rejected_rows(survey: ripple.Survey, truth: QTable) -> None:
    ra, dec = [10.0, *truth["ra"][:3].value], [60.0, *truth["dec"][:3].value]
    found = survey.cutouts({"ra": ra, "dec": dec}, size=24)
    table = found.table
    assert [c.ra for c in found[table["ra"] > 50]] == pytest.approx(ra[1:])
    assert [c.ra for c in found[table["ra"] == ra[2]]] == pytest.approx([ra[2]])


def test_the_table_has_units_and_reasons(many: ripple.Cutouts) -> None:
    table = many.table
    assert table["ra"].unit == table["dec"].unit == u.deg
    assert table["status"].description
    partial = table["status"] == "partial"
    assert set(table["reason"][partial]) == {"missing_band"}
    assert partial.sum() == many.outcomes.count("partial")


def test_cutouts_are_labelled(many: ripple.Cutouts) -> None:
    for labels, first in (("id", str(many[0].id)), ("label", str(many.table["label"][0])), (["a", "b"], "a")):
        assert many.plot(n=2, labels=labels).axes[0].get_title() == first
    with pytest.raises(ConfigError, match="no column 'score'"):
        many.plot(labels="score")
    with pytest.raises(ConfigError, match="1 labels for 2"):
        many.plot(n=2, labels=["a"])
    with pytest.raises(ConfigError, match="no band 'K'"):
        many.plot(rgb="riK")


# One cutout --------------------------------------------------------------


def test_every_kind_of_plot(many: ripple.Cutouts) -> None:
    for kind, panels in (("rgb", 1), ("seams", 1), ("bands", 3), ("psf", 3), ("mask", 3), ("variance", 3)):
        assert len(many[0].plot(kind).axes) == panels
    assert len(many[0].plot("bands", bands="gr").axes) == 2
    with pytest.raises(ConfigError, match=r"no plot 'cut.png'; there are rgb, .*savefig"):
        many[0].plot("cut.png")


def test_north_is_up_and_east_is_left(many: ripple.Cutouts) -> None:
    projection = many[0].projection
    assert projection is not None
    north, east = directions(many[0].box, projection)
    assert np.hypot(*north) == pytest.approx(1)
    assert north[1] > 0.99
    assert east[0] < -0.99


def test_scale_bars_are_round() -> None:
    assert [bar_length(w) for w in (12.8, 6.0, 64.0, 200.0)] == [2.0, 2.0, 20.0, 60.0]


def test_a_circle_has_its_area_and_its_error() -> None:
    weight = circle((41, 41), 20.3, 19.8, 5.0)
    assert weight.sum() == pytest.approx(np.pi * 25, rel=2e-3)
    image = np.full((2, 41, 41), 3.0, np.float32)
    variance = np.full(image.shape, 4.0, np.float32)
    image[1, 20, 20] = np.nan
    flux, error = circle_flux(image, variance, weight)
    assert flux[0] == pytest.approx(3 * np.pi * 25, rel=2e-3)
    assert np.isnan(flux[1])
    # Independent pixels: 2 nJy times the square root of their number, less a little at the edge.
    assert error[0] == pytest.approx(2 * np.sqrt(np.pi * 25), rel=0.05)


def test_fluxes_of_stars_are_those_of_the_object_table(survey: ripple.Survey) -> None:
    # Brighter ones are saturated.
    stars = survey.objects(select="refExtendedness == 0 and i_psfMag > 17.5 and i_psfMag < 21")
    ratios = []
    for cut in survey.cutouts(stars, size=64, bands="i"):
        found = cut.flux(1.0 * u.arcsec)
        # The share of a star's light within the circle is that of its PSF.
        side = cut.psf.shape[1]
        share = float((cut.psf[0] * circle((side, side), side // 2, side // 2, 5.0)).sum())
        ratios.append(found["flux"][0].value / (share * stars[stars["id"] == cut.id]["i_psfFlux"][0]))
    assert len(ratios) > 5
    assert np.median(ratios) == pytest.approx(1, abs=0.005)
    assert found["flux"].unit == found["error"].unit == u.nJy
    assert cut.flux(1.0)["error"][0] == found["error"][0]
    with pytest.raises(ConfigError, match="not within its cutout"):
        cut.flux(10)


def test_as_nddata(many: ripple.Cutouts) -> None:
    cut = many[0]
    data = cut.to_nddata()
    assert list(data) == ["g", "r", "i"]
    r = data["r"]
    np.testing.assert_array_equal(r.data, cut.image[1])
    np.testing.assert_array_equal(r.uncertainty.array, cut.variance[1])
    np.testing.assert_array_equal(r.mask, ~cut.good[1])
    assert r.unit == u.nJy
    x, y = r.wcs.world_to_pixel_values(cut.ra, cut.dec)
    assert (x, y) == pytest.approx(cut.centre, abs=1e-6)
    assert r.meta["FILTER"] == "r"
    assert r.psf.sum() == pytest.approx(1, abs=1e-5)


def test_as_lsst_images(many: ripple.Cutouts) -> None:
    cut = many[0]
    found = cut.to_lsst()["g"]
    np.testing.assert_array_equal(found.image.array, cut.image[0])
    np.testing.assert_array_equal(found.variance.array, cut.variance[0])
    assert (found.bbox.x.start, found.bbox.y.start) == (cut.box.x0, cut.box.y0)
    detected = cut.mask[0] >> cut.mask_planes.index("DETECTED") & 1
    np.testing.assert_array_equal(found.mask.get("DETECTED"), detected.astype(bool))
    sky = found.sky_projection.pixel_to_sky(x=cut.centre[0] + cut.box.x0, y=cut.centre[1] + cut.box.y0)
    assert sky.ra.deg == pytest.approx(cut.ra, abs=1e-8)
    assert sky.dec.deg == pytest.approx(cut.dec, abs=1e-8)


def test_as_fits(many: ripple.Cutouts, tmp_path: Path) -> None:
    path = many[0].to_fits(tmp_path / "one.fits")
    with fits.open(path) as file:
        images = [hdu for hdu in file[1:] if hdu.name.startswith("IMAGE")]
        np.testing.assert_array_equal(images[1].data, many[0].image[1])
        assert file[0].header["BANDS"] == "g,r,i"
        # Cards of other software: flux in nJy is 10^((MAGZERO - mag) / 2.5).
        header = images[1].header
        assert (header["FILTER"], header["OBJECT"], header["BUNIT"]) == ("r", str(many[0].id), "nJy")
        assert 10 ** ((header["MAGZERO"] - 22.5) / 2.5) == pytest.approx((22.5 * u.ABmag).to_value(u.nJy))
    with pytest.raises(ConfigError, match="exists"):
        many[0].to_fits(path)
    assert many[0].to_fits(path, overwrite=True) == path
    folder = many[:3].to_fits(tmp_path / "fits")
    names = [f"{cut.id}.fits" for cut in many[:3]]
    assert sorted(p.name for p in folder.glob("*.fits")) == sorted(names)
    with fits.open(folder / names[0]) as file, fits.open(path) as one:
        assert [hdu.name for hdu in file] == [hdu.name for hdu in one]
        assert file[1].header["LABEL"] in (0, 1)  # a single cutout has no columns of the user
        for a, b in zip(file[1:], one[1:], strict=True):
            np.testing.assert_array_equal(a.data, b.data)
            assert a.header.get("CRPIX1") == b.header.get("CRPIX1")


# To and from directories --------------------------------------------------


def test_written_cutouts_come_back(many: ripple.Cutouts, tmp_path: Path) -> None:
    many.write(tmp_path / "cutouts")
    opened = ripple.open(tmp_path / "cutouts")
    assert opened.verify() == []
    assert opened.summary()["asked"] == len(many)
    json.dumps(opened.summary())
    assert opened.summary()["on_disk_bytes"] > many.batch.image.nbytes
    whole = concatenate([unpack_cutouts(opened.read(k)) for k in range(len(opened.shards))])
    np.testing.assert_array_equal(whole.psf_cells, many.batch.psf_cells)
    assert len(whole.psf_cells) > 0
    for k in (0, 7, len(many) - 1):
        found = opened[many[k].id]
        assert opened[str(many[k].id)].id == found.id
        for name in ("image", "variance", "mask"):
            np.testing.assert_array_equal(getattr(found, name), getattr(many[k], name))
        np.testing.assert_allclose(found.psf, many[k].psf, rtol=1e-6)
        assert (found.box, found.tract, found.patch) == (many[k].box, many[k].tract, many[k].patch)
        assert found.outcome.status == many[k].outcome.status
    with pytest.raises(InputError, match="no id 17"):
        opened[17]
    with pytest.raises(InputError, match="does not say which patches"):
        opened[many[0].id].plot("seams")


def test_rows_by_id_are_without_the_margin(one_of_each: dict[str, Path], survey: ripple.Survey) -> None:
    opened = ripple.open(one_of_each["cutouts"])
    assert opened.attributes["margin"] == 4
    first = opened.table()[0]
    found, wanted = opened[first["id"]], survey.cutout(first["ra"], first["dec"], size=32, bands="gri")
    np.testing.assert_array_equal(found.image, wanted.image)
    assert found.box == wanted.box
    assert found.centre == pytest.approx(wanted.centre)


def test_to_tensors_is_the_verb(many: ripple.Cutouts, tmp_path: Path) -> None:
    many.write(tmp_path / "cutouts")
    made = ripple.preprocess(tmp_path / "cutouts", output=tmp_path / "tensors", psf="match", workers=0)
    theirs = unpack_tensors(made.read(0))
    ours = many.to_tensors(psf="match")
    # The verb rounds the noise correlation that it measures; nothing else differs.
    np.testing.assert_allclose(ours.image, theirs.image, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(ours.valid, theirs.valid)
    np.testing.assert_array_equal(ours.catalog["qc"], theirs.catalog["qc"])
    with pytest.raises(ConfigError, match=r"unknown key 'pfs'.*'psf'"):
        many.to_tensors(pfs="match")


def test_a_tensor_row_gives_its_fluxes_back(one_of_each: dict[str, Path]) -> None:
    tensors, cutouts = ripple.open(one_of_each["tensors"]), ripple.open(one_of_each["cutouts"])
    identifier = tensors.table()["id"][0]
    row, cut = tensors[identifier], cutouts[identifier]
    assert row.unit == "nJy"
    good = row.valid == 1
    np.testing.assert_allclose(row.flux[good], cut.image[good], rtol=2e-3, atol=2e-2)


def test_what_a_dataset_gives_becomes_fluxes_again(one_of_each: dict[str, Path], tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    # Two artefacts with constants of their own, and rows in any order.
    other = ripple.preprocess(
        one_of_each["cutouts"],
        output=tmp_path / "other",
        psf="none",
        normalize="zscore",
        scope="band",
        workers=0,
    )
    dataset = ripple.TensorDataset([one_of_each["tensors"], other.directory], accepted=False)
    wanted = np.concatenate([
        ripple.denormalize(unpack_tensors(artefact.read(0)))
        for artefact in (ripple.open(one_of_each["tensors"]), other)
    ])  # fmt: skip
    one = ripple.denormalize(dataset[60], dataset)
    np.testing.assert_array_equal(one, wanted[dataset.rows[60]])
    batch = next(iter(DataLoader(dataset, batch_size=16, shuffle=True)))
    np.testing.assert_array_equal(ripple.denormalize(batch, dataset), wanted[batch["row"].numpy()])
    with pytest.raises(ConfigError, match="give the dataset too"):
        ripple.denormalize(batch)


def test_scores_are_ranked(one_of_each: dict[str, Path]) -> None:
    scores = ripple.open(one_of_each["scores"])
    assert isinstance(scores, ripple.Scores)
    table = scores.table()
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    assert (np.diff(table["score"]) <= 0).all()
    assert scores[table["id"][3]]["rank"] == 4
    assert len(scores.index()) == len(table)  # what storage offers is there, too
    with pytest.raises(InputError, match="no row with id 'none'"):
        scores["none"]


def test_a_model_shows_what_it_takes(objects: dict[str, Any], one_of_each: dict[str, Path]) -> None:
    model = objects["model"]
    assert isinstance(model, ripple.Model)
    assert model.bands == ("g", "r", "i")
    assert model.verify() == []
    assert model.table()["epoch"].max() <= SMALL["epochs"]
    html = model._repr_html_()
    assert "32 x 32 px" in html
    with pytest.raises(InputError, match="not trained here"):
        ripple.open(one_of_each["model"]).table()


def test_what_is_no_artefact_is_named(one_of_each: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="open_survey"):
        ripple.open(one_of_each["sky"])
    with pytest.raises(RippleError):
        ripple.open(tmp_path)


# Verbs ---------------------------------------------------------------------


def test_verbs_take_the_keywords_of_the_yaml(one_of_each: dict[str, Path], tmp_path: Path) -> None:
    tensors = ripple.preprocess(
        ripple.open(one_of_each["cutouts"]), output=tmp_path / "t", psf="none", workers=0
    )
    assert isinstance(tensors, ripple.Artefact)
    assert tensors.digest == ripple.open(one_of_each["tensors"]).digest
    page = ripple.write_report(tensors, output=tmp_path / "page")
    assert (page / "index.html").is_file()
    with pytest.raises(ConfigError, match=r"unknown key 'normalise'.*'normalize'"):
        ripple.preprocess(tensors, output=tmp_path / "u", normalise="asinh")
    with pytest.raises(ConfigError, match="2 positional"):
        ripple.preprocess(tensors, tmp_path / "u")
    with pytest.raises(ConfigError, match="given twice"):
        ripple.preprocess(tensors, cutouts=tensors, output=tmp_path / "u")


def test_every_stage_of_the_command_line_is_a_function() -> None:
    from ripple.cli.verbs import STAGES
    from ripple.notebook.verbs import verb_of

    assert sorted(verb_of(name) for name in ripple._VERBS) == sorted(STAGES)


def test_help_names_every_option() -> None:
    from ripple.learn.config import TrainConfig

    text = ripple.train.__doc__ or ""
    assert all(f"\n{name}\n" in text for name in TrainConfig.model_fields)
    assert "Peak learning rate" in text


def test_bands_may_be_letters_and_notes_are_said(
    one_of_each: dict[str, Path], sky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ripple.fetch(
        repo=sky / "repo", collections="mini", targets=sky / "truth.parquet", bands="gri", size=32, margin=4,
        workers=0, output=tmp_path / "cutouts",
    )  # fmt: skip
    assert made.digest == ripple.open(one_of_each["cutouts"]).digest
    said = capsys.readouterr()
    assert "fetch: truth.parquet: ids from objectId" in said.err
    assert said.out == ""
