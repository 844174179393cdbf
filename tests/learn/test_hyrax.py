"""Tensors as a Hyrax dataset; needs Hyrax, which nothing here installs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorsets import make_tensors

from ripple.errors import ConfigError
from ripple.learn.data.dataset import TensorDataset

pytest.importorskip("hyrax", reason="Hyrax is not installed")


def test_hyrax_finds_and_reads_every_field(tmp_path: Path) -> None:
    from hyrax.datasets.dataset_registry import fetch_dataset_class

    cls = fetch_dataset_class("ripple.learn.data.hyrax.RippleTensors")
    directory = make_tensors(tmp_path / "t")
    data, plain = cls({}, data_location=directory), TensorDataset(directory)
    assert len(data) == len(plain)
    fields = {name[4:] for name in dir(data) if name.startswith("get_")}
    assert {"image", "valid", "label", "object_id", "ra", "dec", "theta_E"} <= fields
    for row in (0, 3, len(data) - 1):
        np.testing.assert_array_equal(data.get_image(row), plain[row]["image"].numpy())
        assert data.get_valid(row).shape == plain.shape
        assert data.get_label(row) == int(plain[row]["label"])
        assert data.get_ra(row) == plain.column("ra")[plain.rows[row]]
        assert data.get_object_id(row).startswith("obj")
    assert not hasattr(data, "collate")
    with pytest.raises(ConfigError, match="data_location"):
        cls({})


def test_hyrax_batches(tmp_path: Path) -> None:
    from hyrax.config_utils import ConfigManager
    from hyrax.datasets.data_provider import DataProvider

    request = {
        "ripple": {
            "dataset_class": "ripple.learn.data.hyrax.RippleTensors",
            "data_location": str(make_tensors(tmp_path / "t")),
            "fields": ["image", "label", "object_id"],
            "primary_id_field": "object_id",
        }
    }
    provider = DataProvider(ConfigManager().config, request)
    batch = provider.collate([provider[k] for k in range(5)])
    assert np.asarray(batch["ripple"]["image"]).shape == (5, 3, 16, 16)
    assert np.asarray(batch["ripple"]["image"]).dtype == np.float32
