"""A real Butler server on loopback: plan and read through it, and get the bytes that lie on disk.

The server needs `lsst-daf-butler[server]`: either in this environment, or in one whose python is named by
RIPPLE_BUTLER_SERVER_PYTHON.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ripple.errors import SourceError, UnreadableError
from ripple.rubin.formats.fits import Ranges
from ripple.rubin.open import open_coadd
from ripple.rubin.remote import open_remote, read_remote
from ripple.rubin.repository import Dataset, open_repository

REPO = Path(__file__).parents[3] / "shared" / "data" / "afw_repo"
CANARY = "gt-canary-1d5e0b42"


def server_python() -> str:
    named = os.environ.get("RIPPLE_BUTLER_SERVER_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("safir") is None or importlib.util.find_spec("uvicorn") is None:
        pytest.skip(
            "no Butler server here: install lsst-daf-butler[server] or set RIPPLE_BUTLER_SERVER_PYTHON"
        )
    return sys.executable


@pytest.fixture(scope="module")
def remote() -> Iterator[str]:
    """Address of the repository."""
    python = server_python()
    if not REPO.exists():
        pytest.skip(f"no reference repository in {REPO}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parents[1] / "support" / "butler_server.py"
    process = subprocess.Popen([python, str(script), str(REPO), str(port)], stdout=subprocess.DEVNULL)
    old = os.environ.get("BUTLER_RUBIN_ACCESS_TOKEN")
    os.environ["BUTLER_RUBIN_ACCESS_TOKEN"] = CANARY
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}/api/butler/repo/mini"
    finally:
        process.terminate()
        process.wait(10)
        os.environ.pop("BUTLER_RUBIN_ACCESS_TOKEN")
        if old is not None:
            os.environ["BUTLER_RUBIN_ACCESS_TOKEN"] = old


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):  # a loaded machine takes a minute to import the server
        assert process.poll() is None, "the server died"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server does not listen")


@pytest.fixture(scope="module")
def datasets(remote: str) -> list[Dataset]:
    with open_repository(remote, ["truth/all"]) as repository:
        skymap = repository.skymap_name("deepCoadd_calexp", "truth_rings_v1")
        return repository.datasets("deepCoadd_calexp", skymap, [3828], ["g", "r"], None)


def local(dataset: Dataset) -> bytes:
    (path,) = (
        REPO / "truth/coadd" / dataset.dataset_type / "3828" / str(dataset.patch) / dataset.band
    ).iterdir()
    return path.read_bytes()


def test_files_come_whole_and_no_signature_is_kept(remote, datasets):
    assert len(datasets) == 8
    for dataset in datasets[:3]:
        assert "sig=" not in repr(dataset)
        assert read_remote(dataset, repo=remote) == local(dataset)


def test_coadds_open_as_from_disk(remote, datasets):
    coadd = open_coadd(read_remote(datasets[0], repo=remote), name="remote")
    np.testing.assert_array_equal(coadd.image(), open_coadd(local(datasets[0]), name="disk").image())


def test_ranges_of_signed_addresses(remote, datasets):
    file = open_remote(datasets[0], repo=remote)
    data = local(datasets[0])
    ranges = Ranges(file.read_range, "patch")
    assert bytes(ranges(5000, 700)) == data[5000:5700]
    assert "sig=" not in repr(file)


def test_unknown_datasets_and_repositories_are_named(remote, datasets):
    stranger = replace(datasets[0], uuid="01a1f877-0000-7000-8000-000000000000", uri="")
    with pytest.raises(UnreadableError, match="no longer has"):
        read_remote(stranger, repo=remote)
    with pytest.raises(SourceError, match="address") as caught:
        read_remote(replace(datasets[0], uri=""), repo=remote.replace("mini", "other"))
    assert CANARY not in str(caught.value)
