"""Row 3: power loss. What a commit asks of the file system is recorded, and states it may leave are replayed.

The model is that of POSIX, at its worst: bytes not followed by an fsync of their file, and names (created,
renamed, removed) not followed by an fsync of their directory, are each on disk or not.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import victim
from faultlib import Tally, contents
from rows import judge, reference, row, trials_in_time

from ripple.errors import InputError
from ripple.storage.artefact import open_artefact, verify

UNITS, SIZE = 3, 2000


@dataclass(frozen=True)
class Call:
    """One request: `kind` is create, write, cut, sync, rename, unlink or sync-names."""

    kind: str
    file: int = -1
    name: str = ""
    new: str = ""
    data: bytes = b""
    offset: int = 0


class Recorder:
    """What happens below one directory, as a list of calls; files are numbered as inodes are."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[Call]()
        self._inodes: dict[str, int] = {}
        self._open: dict[int, list[int]] = {}  # descriptor -> inode (-1: the directory), position
        self._count = 0

    def _name(self, path: Any) -> str | None:
        where = Path(os.fspath(path))
        return where.name if where.parent == self.root else "" if where == self.root else None

    def opened(self, handle: int, path: Any, flags: int) -> None:
        name = self._name(path)
        if name == "":
            self._open[handle] = [-1, 0]
        elif name is not None:
            if name not in self._inodes:
                self._inodes[name] = self._count
                self._count += 1
                self.calls.append(Call("create", self._inodes[name], name))
            start = os.fstat(handle).st_size if flags & os.O_APPEND else 0
            self._open[handle] = [self._inodes[name], start]

    def written(self, handle: int, data: bytes, offset: int | None = None) -> None:
        if handle in self._open:
            state = self._open[handle]
            at = state[1] if offset is None else offset
            self.calls.append(Call("write", state[0], data=data, offset=at))
            if offset is None:
                state[1] += len(data)

    def synced(self, handle: int) -> None:
        if handle in self._open:
            inode = self._open[handle][0]
            self.calls.append(Call("sync-names") if inode < 0 else Call("sync", inode))

    def cut(self, handle: int, size: int) -> None:
        if handle in self._open:
            self.calls.append(Call("cut", self._open[handle][0], offset=size))

    def renamed(self, old: Any, new: Any) -> None:
        a, b = self._name(old), self._name(new)
        if a and b:
            self._inodes[b] = self._inodes.pop(a)
            self.calls.append(Call("rename", name=a, new=b))

    def removed(self, path: Any) -> None:
        if name := self._name(path):
            self._inodes.pop(name, None)
            self.calls.append(Call("unlink", name=name))


@contextmanager
def recorded(root: Path) -> Iterator[list[Call]]:
    """Every call of `os` that changes something in `root`, in order."""
    log = Recorder(root)
    kept: dict[str, Callable[..., Any]] = {
        name: getattr(os, name)
        for name in ("open", "write", "pwrite", "fsync", "ftruncate", "rename", "unlink", "close")
    }

    def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        handle: int = kept["open"](path, flags, *args, **kwargs)
        log.opened(handle, path, flags)
        return handle

    def writing(handle: int, data: Any) -> int:
        done: int = kept["write"](handle, data)
        log.written(handle, bytes(data)[:done])
        return done

    def writing_at(handle: int, data: Any, offset: int) -> int:
        done: int = kept["pwrite"](handle, data, offset)
        log.written(handle, bytes(data)[:done], offset)
        return done

    def after(name: str, note: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = kept[name](*args, **kwargs)
            note(*args)
            return result

        return call

    changed = {
        "open": opening, "write": writing, "pwrite": writing_at, "fsync": after("fsync", log.synced),
        "ftruncate": after("ftruncate", log.cut), "rename": after("rename", log.renamed),
        "unlink": after("unlink", log.removed), "close": after("close", lambda h: log._open.pop(h, None)),
    }  # fmt: skip
    for name, function in changed.items():
        setattr(os, name, function)
    try:
        yield log.calls
    finally:
        for name, function in kept.items():
            setattr(os, name, function)


# Replay -------------------------------------------------------------


def after_power_loss(calls: list[Call], rng: random.Random) -> dict[str, bytes]:
    """Name -> bytes of a state that the calls may leave: what is synced, and any part of the rest."""
    data: dict[int, bytearray] = {}
    names: dict[str, int] = {}
    synced = {c.file: k for k, c in enumerate(calls) if c.kind == "sync"}  # the last one of each file
    firm = max((k for k, c in enumerate(calls) if c.kind == "sync-names"), default=-1)
    chance = rng.choice([0.0, 0.2, 0.5, 0.8, 1.0])
    for k, call in enumerate(calls):
        match call.kind:
            case "write" | "cut":
                if k < synced.get(call.file, -1) or rng.random() < chance:
                    _apply(data.setdefault(call.file, bytearray()), call)
            case "create" | "rename" | "unlink":
                if k < firm or rng.random() < chance:
                    _rename(names, call)
    return {name: bytes(data.get(inode, b"")) for name, inode in names.items()}


def _apply(data: bytearray, call: Call) -> None:
    if call.kind == "cut":
        del data[call.offset :]
        return
    data.extend(bytes(max(0, call.offset - len(data))))  # a hole reads as zeros
    data[call.offset : call.offset + len(call.data)] = call.data


def _rename(names: dict[str, int], call: Call) -> None:
    if call.kind == "create":
        names[call.name] = call.file
    elif call.name in names:
        inode = names.pop(call.name)
        if call.kind == "rename":
            names[call.new] = inode


@row("3", "power loss at any call of a commit, what was not synced partly gone; resume", full=500, gate=15)
def power_loss(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want = reference(directory, units=UNITS, size=SIZE)
    here = directory / "a"
    with recorded(here) as calls:
        victim.build(here, units=UNITS, size=SIZE)
    if contents(here) != want or sum(c.kind == "sync" for c in calls) < UNITS + 3:
        tally.silent += 1
        tally.note(f"the record is not that of a commit: {[c.kind for c in calls]}")
    for trial in trials_in_time(trials):
        tally.trials = trial + 1
        shutil.rmtree(here)
        here.mkdir()
        cut = rng.randrange(len(calls) + 1)
        for name, data in after_power_loss(calls[:cut], rng).items():
            (here / name).write_bytes(data)
        _right_or_unfinished(tally, here, cut, len(calls), want)
        victim.build(here, units=UNITS, size=SIZE)
        judge(tally, here, want, UNITS)


def _right_or_unfinished(tally: Tally, here: Path, cut: int, count: int, want: dict[str, str]) -> None:
    try:
        open_artefact(here)
    except InputError:
        if cut == count:
            tally.lost += 1
            tally.note("a finished artefact is unfinished after power loss")
        return
    found = contents(here)
    found.pop(".journal", None)  # what an unfinished artefact needs may outlive it
    if verify(here) or {k: v for k, v in found.items() if not k.startswith(".tmp-")} != want:
        tally.silent += 1
        tally.note(f"call {cut} of {count}: finished and wrong: {verify(here)} {sorted(found)}")
