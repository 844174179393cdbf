"""HDF5 files made to harm their reader."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ripple.imaging.batch import MASK_PLANES, CutoutBatch, TensorBatch
from ripple.sky.geometry import Tan
from ripple.storage.shard_writer import pack_cutouts, pack_tensors

KINDS = {
    "tensors": ("image", "valid", "catalog/label", "catalog/id"),
    "cutouts": ("image", "variance", "mask", "psf", "psf_index", "wcs/cd", "catalog/label"),
}


def good(kind: str) -> bytes:
    """A whole shard."""
    rng = np.random.default_rng(0)
    shape = (6, 2, 8, 8)
    catalog: dict[str, Any] = {"label": np.arange(6), "id": np.array([f"id{k}" for k in range(6)])}
    image = rng.normal(size=shape).astype(np.float32)
    if kind == "tensors":
        valid = np.ones(shape, np.uint8)
        return pack_tensors(TensorBatch(("g", "r"), image, valid, catalog, 0.2, 1.0, {}), {})
    mask, which = np.zeros(shape, np.uint32), np.zeros((6, 2), np.int32)
    kernels, wcs = np.ones((1, 3, 3), np.float32), {5: Tan(1.0, 2.0, 3.0, 4.0, (-5e-5, 0.0, 0.0, 5e-5))}
    batch = CutoutBatch(("g", "r"), image, image, mask, MASK_PLANES, kernels, which, catalog, wcs)
    return pack_cutouts(batch, {})


def edited(kind: str, edit: Callable[[Any], None]) -> bytes:
    """A good shard after HDF5 itself has changed it."""
    memory = io.BytesIO(good(kind))
    with h5py.File(memory, "r+") as file:
        edit(file)
    return memory.getvalue()


def cases(directory: Path, secret: Path) -> list[tuple[str, bytes, str]]:
    """`(name, bytes, kind)` of every attack; all must be refused."""
    other = directory / "other.h5"
    with h5py.File(other, "w") as file:
        file["image"] = np.zeros((6, 2, 8, 8), np.float32)
    found = []
    for kind, names in KINDS.items():
        for name in names:
            for label, edit in _attacks(name, secret, other):
                found.append((f"{kind} {name} {label}", edited(kind, edit), kind))
        for label, edit in _whole_file_attacks():
            found.append((f"{kind} {label}", edited(kind, edit), kind))
    return found


def _attacks(name: str, secret: Path, other: Path) -> list[tuple[str, Callable[[Any], None]]]:
    def replace(make: Callable[[Any], Any]) -> Callable[[Any], None]:
        def edit(file: Any) -> None:
            shape, dtype = file[name].shape, file[name].dtype
            del file[name]
            make((file, shape, dtype))

        return edit

    def external(args: Any) -> None:
        file, shape, dtype = args
        file.create_dataset(name, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    def virtual(args: Any) -> None:
        file, shape, dtype = args
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(str(other), "image", shape)
        file.create_virtual_dataset(name, layout)

    def huge(args: Any) -> None:
        file, shape, dtype = args
        file.create_dataset(name, (10**5, *shape[1:-1], 10**6) if len(shape) > 1 else (10**12,), dtype)

    def late(args: Any) -> None:
        file, shape, dtype = args
        file.create_dataset(name, shape, dtype)  # allocated on first write, which never comes

    simple = [
        ("external storage", external),
        ("virtual", virtual),
        ("claims 10^11 values and more", huge),
        ("never allocated", late),
        (
            "gzip",
            lambda a: a[0].create_dataset(name, data=np.zeros(a[1], a[2]), chunks=a[1], compression="gzip"),
        ),
        ("chunked", lambda a: a[0].create_dataset(name, data=np.zeros(a[1], a[2]), chunks=a[1])),
        ("external link", lambda a: a[0].__setitem__(name, h5py.ExternalLink(str(other), "/image"))),
        ("soft link loop", lambda a: a[0].__setitem__(name, h5py.SoftLink("/" + name))),
        ("is a group", lambda a: a[0].create_group(name)),
        ("vlen text", lambda a: a[0].create_dataset(name, data=["x"] * a[1][0], dtype=h5py.string_dtype())),
        ("scalar", lambda a: a[0].create_dataset(name, data=1.0)),
    ]
    return [(label, replace(make)) for label, make in simple]


def _whole_file_attacks() -> list[tuple[str, Callable[[Any], None]]]:
    def cycle(file: Any) -> None:
        file["catalog/loop"] = file["/"]

    def unknown(file: Any) -> None:
        file["surprise"] = np.zeros(3)

    def crowd(file: Any) -> None:
        for k in range(5000):
            file["catalog"][f"c{k}"] = h5py.SoftLink("/image")

    def short(file: Any) -> None:
        file["catalog/short"] = np.zeros(2)

    def compound(file: Any) -> None:
        file["catalog/mixed"] = np.zeros(6, [("a", "i4"), ("b", "f8")])

    def reference(file: Any) -> None:
        file["catalog"].create_dataset("ref", (6,), h5py.ref_dtype)

    def bands(file: Any) -> None:
        file.attrs["bands"] = np.array([b"g", b"r", b"i"])

    def schema(file: Any) -> None:
        file.attrs["schema"] = 99

    def kindless(file: Any) -> None:
        del file.attrs["kind"]

    def scale(file: Any) -> None:
        file.attrs["pixel_scale"] = "wide"

    return [
        (f.__name__, f)
        for f in (cycle, unknown, crowd, short, compound, reference, bands, schema, kindless, scale)
    ]


def read(data: bytes, kind: str, limit: int) -> str:
    """What our reader says; in this process, whose memory may grow by `limit` at most."""
    from ripple.errors import DataError
    from ripple.storage import shard_writer as shard

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        batch = getattr(shard, f"unpack_{kind}")(data)
    except DataError as err:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        return f"DataError {err}" if grown < limit else f"used {grown} bytes"
    return f"read {batch.image.shape}"
