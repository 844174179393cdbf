"""The Python API: the same pixels as fetch, answered from decoded planes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import ripple
from ripple.errors import InputError
from ripple.imaging.quality.flags import Flag
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig


@pytest.fixture(scope="module")
def positions(sky: Path) -> tuple[np.ndarray, np.ndarray]:
    truth = pq.read_table(sky / "truth.parquet")
    return truth["ra"].to_numpy(), truth["dec"].to_numpy()


def test_a_cutout_has_its_target_in_the_middle(
    sky: Path, positions: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    with ripple.open_survey(str(sky / "repo"), collections="mini") as survey:
        cut = survey.cutout(ra=positions[0][0], dec=positions[1][0], size=48, bands="gr")
        assert cut.image.shape == cut.variance.shape == cut.mask.shape == (2, 48, 48)
        x, y = cut.wcs.world_to_pixel_values(positions[0][0], positions[1][0])
        assert abs(x - 24) <= 0.5
        assert abs(y - 24) <= 0.5
        assert abs(cut.psf.sum(axis=(1, 2)) - 1).max() < 1e-3
        cut.plot().savefig(tmp_path / "cut.png")
        assert (tmp_path / "cut.png").stat().st_size > 1000


def test_cutouts_are_those_of_fetch(
    sky: Path, positions: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    from ripple.imaging.batch import concatenate
    from ripple.stages.fetch.config import FetchConfig
    from ripple.stages.fetch.fetch import fetch
    from ripple.storage.artefact import open_artefact
    from ripple.storage.shard_reader import unpack_cutouts

    fetch(
        FetchConfig.make({
            "repo": str(sky / "repo"), "collections": ["mini"], "targets": str(sky / "truth.parquet"),
            "bands": ["g", "r", "i"], "size": 40, "output": str(tmp_path / "out"), "workers": 0,
        })
    )  # fmt: skip
    artefact = open_artefact(tmp_path / "out", "cutouts")
    theirs = concatenate([unpack_cutouts(artefact.read(k)) for k in range(len(artefact.shards))])
    theirs = theirs.take(np.argsort(theirs.catalog["index"]))  # shards are in the order of patches
    with ripple.open_survey(str(sky / "repo"), collections="mini") as survey:
        ours = survey.cutouts({"ra": positions[0], "dec": positions[1]}, size=40, bands="gri")
    np.testing.assert_array_equal(ours.batch.catalog["index"], theirs.catalog["index"])
    for name in ("image", "variance", "mask"):
        np.testing.assert_array_equal(getattr(ours.batch, name), getattr(theirs, name))
    # Both read the margin that PSF matching needs; what is looked at is what was asked for.
    margin = artefact.attributes["margin"]
    assert (ours.margin, artefact.attributes["size"]) == (margin, 40)
    assert ours.batch.image.shape[2:] == (40 + 2 * margin, 40 + 2 * margin)
    np.testing.assert_array_equal(ours[3].image, ours.batch.image[3, :, margin:-margin, margin:-margin])
    opened = ripple.open(tmp_path / "out")
    assert isinstance(opened, ripple.Artefact)
    assert opened[theirs.catalog["id"][3].item()].box == ours[3].box
    edge = np.uint64(1 << Flag.PSF_EDGE)
    tensors = ours.to_tensors(psf="match", registration=False)
    assert tensors.image.shape[2:] == (40, 40)
    assert np.count_nonzero(tensors.catalog["qc"] & edge) <= len(ours) // 20
    ours.write(tmp_path / "written")
    again = preprocess_batch(
        unpack_cutouts(open_artefact(tmp_path / "written").read(0)),
        PreprocessConfig.make({"psf": "match", "registration": False}),
        DataConstants(margin=open_artefact(tmp_path / "written").attributes["margin"]),
    )
    np.testing.assert_array_equal(again.image, tensors.image)
    # Without one, the edge spoils most rows.
    bare = replace(ours, batch=ours.batch.trimmed(margin), margin=0).to_tensors(registration=False)
    assert np.count_nonzero(bare.catalog["qc"] & edge) > len(ours) // 2


def test_repeated_questions_are_answered_from_memory(
    sky: Path, positions: tuple[np.ndarray, np.ndarray]
) -> None:
    rng = np.random.default_rng(5)
    with ripple.open_survey(str(sky / "repo"), collections="mini") as survey:
        survey.cutouts({"ra": positions[0], "dec": positions[1]}, size=40)
        first = survey.counts
        for k in rng.integers(0, len(positions[0]), 40):
            survey.cutouts({"ra": positions[0][k : k + 1], "dec": positions[1][k : k + 1]}, size=40)
        after = survey.counts
    hits, misses = after.hits - first.hits, after.misses - first.misses
    assert hits / (hits + misses) >= 0.95


def test_a_budget_of_one_plane_still_works(sky: Path, positions: tuple[np.ndarray, np.ndarray]) -> None:
    table = {"ra": positions[0][:5], "dec": positions[1][:5]}
    with (
        ripple.open_survey(str(sky / "repo"), collections="mini", cache_bytes=900 * 900 * 4) as small,
        ripple.open_survey(str(sky / "repo"), collections="mini") as large,
    ):
        a, b = small.cutouts(table, size=40), large.cutouts(table, size=40)
        np.testing.assert_array_equal(a.batch.image, b.batch.image)
        assert small.counts.evictions > 0
        assert small.counts.planes <= 1


def test_a_closed_survey_says_so(sky: Path) -> None:
    with ripple.open_survey(str(sky / "repo"), collections="mini") as survey:
        pass
    assert "ripple_mini_v1" in repr(survey)
    assert "<img" not in survey._repr_html_()
    for question in (lambda: survey.cutout(53.0, -27.5), lambda: survey.objects(), lambda: survey.tracts):
        with pytest.raises(InputError, match="is closed"):
            question()


def test_nothing_there_is_said(sky: Path) -> None:
    with ripple.open_survey(str(sky / "repo"), collections="mini") as survey:
        with pytest.raises(InputError, match="no cutout"):
            survey.cutout(ra=10.0, dec=60.0)
        with pytest.raises(InputError, match="no band 'K'"):
            survey.cutout(ra=53.0, dec=-28.0, bands=["K"])
