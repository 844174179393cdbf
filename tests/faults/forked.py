"""Processes that start in milliseconds: a server that has imported everything forks one per request.

The server imports and forks, nothing else: no verb and no computation runs in it, so a child is as a fresh
interpreter that has just finished its imports, in a session of its own. The modules and compiled functions
that a child has loaded beyond those of the server are loaded there for the next ones.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pickle
import pkgutil
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The client ---------------------------------------------------------


class Child:
    """A forked process with the interface of `subprocess.Popen`, as far as it is used here."""

    def __init__(self, talk: socket.socket) -> None:
        self._talk = talk
        self.returncode: int | None = None
        self.pid: int = struct.unpack("i", self._read())[0]

    def _read(self) -> bytes:
        data = self._talk.recv(4)
        if len(data) != 4:
            raise RuntimeError("the fork server is gone")
        return data

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._talk], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            self.returncode = struct.unpack("i", self._read())[0]
            self._talk.close()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Client:
    """Asks a fork server for processes."""

    def __init__(self, talk: socket.socket) -> None:
        self._talk, self._lock = talk, threading.Lock()

    def ripple(self, args: list[str], *, stdout: int, stderr: int, **options: Any) -> Child:
        """The command line `ripple` with these arguments; `patch_bytes`, `env` and `cwd` of the process.

        `fork_workers`: the workers of its pool are forked, too.
        """
        return self._ask({"args": args, "path": None, "fork_workers": False, **options}, [stdout, stderr])

    def worker(self, handle: int) -> Child:
        """In place of `ripple.runtime.pool._spawn`: a worker that serves tasks on the socket `handle`."""
        request = {"args": [str(os.getpid())], "path": sys.path, "env": dict(os.environ)}
        return self._ask(request, [2, 2, handle])

    def _ask(self, request: dict[str, Any], handles: list[int]) -> Child:
        ours, theirs = socket.socketpair()
        request = {"env": None, "cwd": None} | request
        data = json.dumps(request).encode()
        with self._lock, theirs:
            socket.send_fds(self._talk, [struct.pack("i", len(data))], [theirs.fileno(), *handles])
            self._talk.sendall(data)
        return Child(ours)


class Server(Client):
    """A fork server of its own, which ends with this process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        argv = [sys.executable, "-c", "import forked; forked.serve()", str(theirs.fileno())]
        pinned = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
        environment = {**os.environ, **pinned, "PYTHONPATH": paths}
        self.process = subprocess.Popen(argv, pass_fds=(theirs.fileno(),), env=environment)
        theirs.close()
        super().__init__(ours)

    def close(self) -> None:
        self._talk.close()
        self.process.wait()


@contextmanager
def forked_workers(server: Client) -> Iterator[None]:
    """Workers of the pool in this process are forked, too."""
    from ripple.runtime import pool

    kept = pool._spawn
    pool._spawn = server.worker  # type: ignore[assignment]
    try:
        yield
    finally:
        pool._spawn = kept


# The server ---------------------------------------------------------


def load() -> None:
    """Import all of RIPPLe that can be imported here."""
    import ripple

    for module in pkgutil.walk_packages(ripple.__path__, "ripple."):
        _import(module.name)


def _import(name: str) -> None:
    # A verb is imported when it is used: `ripple.cli.run`, the module, would hide the function.
    if not name.startswith("ripple.cli."):
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def serve() -> None:
    """The server: fork on request until the client is gone, and report how each child ended."""
    load()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for the children: as while Python starts
    loop(socket.socket(fileno=int(sys.argv[1])))


def loop(talk: socket.socket) -> None:
    """Serve the requests that come on a socket."""
    children: dict[int, tuple[int, socket.socket, int]] = {}  # pidfd -> pid, connection, pipe of modules
    while True:
        ready, _, _ = select.select([talk, *children], [], [])
        for item in ready:
            if item is not talk:
                _reap(*children.pop(item), item)
            elif not _fork(talk, children):
                for pid, _, _ in children.values():
                    os.kill(pid, signal.SIGKILL)
                return


def _fork(talk: socket.socket, children: dict[int, tuple[int, socket.socket, int]]) -> bool:
    data, handles, _, _ = socket.recv_fds(talk, 4, 8)
    if not data:
        return False
    size, text = struct.unpack("i", data)[0], b""
    while len(text) < size:
        text += talk.recv(size - len(text))
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        talk.close()
        os.close(ours)
        for other, (_, connection, pipe) in children.items():
            os.close(other)
            connection.close()
            os.close(pipe)
        os.close(handles[0])
        _child(json.loads(text), handles[1:], theirs)
    os.close(theirs)
    for other in handles[1:]:
        os.close(other)
    connection = socket.socket(fileno=handles[0])
    connection.sendall(struct.pack("i", pid))
    children[os.pidfd_open(pid)] = (pid, connection, ours)
    return True


def _reap(pid: int, connection: socket.socket, pipe: int, pidfd: int) -> None:
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    with contextlib.suppress(OSError):
        connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
    connection.close()
    with open(pipe, "rb") as file:
        data = file.read()
    modules, compiled = pickle.loads(data) if data else ([], [])
    for name in modules:
        _import(name)
    for module, function, types in compiled:
        getattr(sys.modules[module], function).compile(types)  # from the cache on disk
    gc.freeze()


def _compiled() -> set[tuple[str, str, Any]]:
    """The functions of RIPPLe that numba has loaded: module, name, types of the arguments."""
    from numba.core.registry import CPUDispatcher

    return {
        (module.__name__, name, types)
        for module in list(sys.modules.values())
        if module.__name__.startswith("ripple.")
        for name, value in vars(module).items()
        if isinstance(value, CPUDispatcher) and value.py_func.__module__ == module.__name__
        for types in value.overloads
    }


def _child(request: dict[str, Any], handles: list[int], pipe: int) -> None:
    """The whole life of a child."""
    before = set(sys.modules), _compiled()
    code = 70
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.setsid()
        os.dup2(handles[0], 1)
        os.dup2(handles[1], 2)
        if request["env"] is not None:
            os.environ.clear()
            os.environ.update(request["env"])
        if request["cwd"] is not None:
            os.chdir(request["cwd"])
        code = _run(_worker if request["path"] is not None else _command, request, handles)
    except BaseException:  # noqa: BLE001 - whatever happens, the child must not return into the server
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        more = sorted(set(sys.modules) - before[0]), list(_compiled() - before[1])
        if any(more):
            os.set_blocking(pipe, False)
            data = pickle.dumps(more)
            if len(data) < 60_000:  # the pipe takes all of it, or it is not sent
                os.write(pipe, data)
        os._exit(code)


def _run(function: Callable[[dict[str, Any], list[int]], None], *args: Any) -> int:
    try:
        function(*args)
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else int(err.code is not None)
    return 0


def _command(request: dict[str, Any], handles: list[int]) -> None:
    from ripple.cli import main
    from ripple.runtime import pool
    from ripple.stages.plan import units

    units.PATCH_BYTES = request["patch_bytes"]
    if request["fork_workers"]:
        pool._spawn = _server_of_this_process().worker  # type: ignore[assignment]
    sys.argv = ["ripple", *request["args"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


def _server_of_this_process() -> Client:
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        loop(theirs)
        os._exit(0)
    theirs.close()
    return Client(ours)


def _worker(request: dict[str, Any], handles: list[int]) -> None:
    from ripple.runtime import worker

    parent = int(request["args"][0])
    sys.path[:] = request["path"]
    sys.argv = ["worker", str(handles[2]), str(parent)]
    os.getppid = lambda: parent  # it is the server's child; it dies with its socket
    worker.serve()
