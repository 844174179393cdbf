"""A real Butler server on loopback: `python butler_server.py REPO PORT`.

The one stand-in is the object store: files of the repository are served by this process, at addresses that
are signed as a store would sign them, and that end in 403 without their signature.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import uvicorn
from fastapi import Request
from fastapi.responses import FileResponse, Response
from lsst.daf.butler.remote_butler.server import create_app
from lsst.daf.butler.remote_butler.server._config import ButlerServerConfig, RepositoryConfig, mock_config
from lsst.resources.file import FileResourcePath

REPO, PORT = Path(sys.argv[1]).resolve(), int(sys.argv[2])


def signature(path: str) -> str:
    return hashlib.sha256(f"key of the store {path}".encode()).hexdigest()


def sign(self: FileResourcePath, *, expiration_time_seconds: int) -> str:
    path = Path(self.ospath).resolve().relative_to(REPO).as_posix()
    return f"http://127.0.0.1:{PORT}/store/{path}?sig={signature(path)}"


FileResourcePath.generate_presigned_get_url = sign
config = ButlerServerConfig(
    repositories={"mini": RepositoryConfig(config_uri=str(REPO), authorized_groups=["*"])},
    gafaelfawr_url="DISABLED",
    authentication="rubin_science_platform",
)
with mock_config(config):
    app = create_app()

    @app.get("/store/{path:path}")
    def store(path: str, request: Request) -> Response:
        if request.query_params.get("sig") != signature(path):
            return Response(status_code=403)
        if "authorization" in request.headers:
            return Response(status_code=400)  # as S3 does with two credentials
        return FileResponse(REPO / path)

    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
