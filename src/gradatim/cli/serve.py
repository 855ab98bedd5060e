"""`gradatim serve`: the search page."""

from __future__ import annotations

import socket
import threading
from typing import Annotated

import typer

from gradatim.cli import _options as o
from gradatim.cli.errors import UsageError
from gradatim.cli.search import IndexFolder


def serve(
    index: IndexFolder,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8765,
    rerank: Annotated[
        str | None,
        typer.Option("--rerank", help="Offer a re-ranker: own, or a CrossEncoder's folder or name."),
    ] = None,
    engine: o.EngineName = "local",
    ray_address: o.RayAddress = None,
    device: o.ModelDevice = "cpu",
) -> None:
    """Serve a search page: methods side by side, for this machine alone unless told otherwise."""
    import uvicorn

    from gradatim.inference.search import FolderIndex
    from gradatim.serve.app import LOOPBACK, make_app, warm

    opened = FolderIndex(index, o.engine(engine), ray_address, None if device == "auto" else device)
    listening = _listen(host, port)
    alone = host in ("127.0.0.1", "localhost", "::1")
    app = make_app(opened, LOOPBACK if alone else ("*",), rerank)
    threading.Thread(target=warm(opened, rerank), daemon=True).start()
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"http://{shown}:{listening.getsockname()[1]}/  (Ctrl-C ends it)")
    if not alone:
        typer.echo("note: whoever reaches this address can read every passage of the index", err=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, workers=1)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host} port {port} ({error}); give another --port") from error
