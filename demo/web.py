"""The web site, on asyncio or Trio: each request opens a portal and renders its page in it.

run.py starts it as ``python web.py LIBRARY DATABASE TEMPLATES_URL``. It prints its port as a line
of JSON, serves until its standard input is closed, and then prints what it has done as another.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any, Awaitable, Callable, Dict

import anyio
import anyio.to_thread
import httpx
from clients import Database, TemplateServer
from hypercorn.config import Config
from rendering import PageNotFoundError, Pages

import greenback

Message = Dict[str, Any]


class Site:
    """An ASGI application."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            for _ in ("startup", "shutdown"):
                await send({"type": (await receive())["type"] + ".complete"})
            return
        name = scope["path"].strip("/")[: -len(".html")] or "index"
        try:
            # This is the program's only change: all functions below are sync.
            text = await greenback.with_portal_run_sync(self._pages.render, name)
        except PageNotFoundError:
            status, text = 404, f"no page {name}"
        else:
            status = 200
        body = text.encode()
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def main(library: str, database_path: str, templates_url: str) -> None:
    if library == "trio":
        from hypercorn.trio import serve
    else:
        from hypercorn.asyncio import serve
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    config = Config()
    config.loglevel = "WARNING"
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    config.bind = [f"fd://{listener.detach()}"]
    database = Database(database_path)
    async with httpx.AsyncClient(base_url=templates_url, trust_env=False) as client:
        pages = Pages(TemplateServer(client).get, database.run)
        await serve(Site(pages), config, shutdown_trigger=standard_input_is_closed)
    database.close()
    print(json.dumps({"statements": database.statements}), flush=True)


async def standard_input_is_closed() -> None:
    await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)


if __name__ == "__main__":
    if sys.argv[1] == "trio":
        import trio

        trio.run(main, *sys.argv[1:])
    else:
        import asyncio

        asyncio.run(main(*sys.argv[1:]))
