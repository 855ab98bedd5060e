"""The web application: one page, one column of hits per method, and JSON.

| path | what |
| --- | --- |
| `/?q=&m=&k=` | the page; complete without scripts |
| `/column?q=&m=&k=` | one method's column, as the page's script asks for it |
| `/api/search?q=&method=&k=` | `gradatim search --json` |
| `/api/index` | what the index holds |

Nothing is loaded from elsewhere, nothing is written, no file is served but passages of the index.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gradatim.inference.search import FolderIndex, SearchError
from gradatim.serve.headers import SecurityHeaders
from gradatim.serve.page import Asked, Column, render_column, render_page

# An IPv6 address is no name that others could point here.
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
MOST_HITS = 100
LONGEST_QUESTION = 1000
MOST_AT_ONCE = 16


def make_app(index: FolderIndex, hosts: tuple[str, ...] = LOOPBACK, rerank: str | None = None) -> Starlette:
    """The application over an opened index.

    `hosts` are the names it answers to ("*": any): a page elsewhere that points its own name at this machine
    is refused. `rerank` names a re-ranker that the page offers ("own": the one made with the index).
    """
    service = _Service(index, rerank)
    return Starlette(
        routes=[
            Route("/", service.page),
            Route("/column", service.column),
            Route("/api/search", service.api_search),
            Route("/api/index", service.api_index),
            Route("/static/{name}", static),
        ],
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
        exception_handlers={404: _not_found, 500: _failed},
    )


class _Service:
    def __init__(self, index: FolderIndex, rerank: str | None) -> None:
        self.index = index
        self.rerank = rerank
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)

    async def page(self, request: Request) -> Response:
        """The whole page: with a question, every column is filled before it is sent."""
        asked = self._asked(request)
        columns = []
        if asked.question:
            for method in asked.methods:
                columns.append(await run_in_threadpool(self._column, asked, method))
        status = max((c.status for c in columns), default=200) if len(columns) == 1 else 200
        return HTMLResponse(render_page(self.index, asked, columns, self.rerank), status)

    async def column(self, request: Request) -> Response:
        """One method's hits as a piece of HTML."""
        asked = self._asked(request)
        column = await run_in_threadpool(self._column, asked, asked.methods[0])
        return HTMLResponse(render_column(column), column.status)

    async def api_search(self, request: Request) -> Response:
        """The answer of one method; errors as {"error": ...}."""
        query = request.query_params
        try:
            k = int(query.get("k", "10"))
        except ValueError:
            return JSONResponse({"error": f"k={query['k'][:20]!r} is no number"}, 400)
        method = query.get("method") or None
        rerank = self.rerank if query.get("rerank") else None
        if query.get("rerank") and not self.rerank:
            return JSONResponse({"error": "this server has no re-ranker; start it with --rerank"}, 400)
        status, found = await run_in_threadpool(self._search, query.get("q", ""), k, method, rerank)
        return JSONResponse({"error": found} if isinstance(found, str) else found.to_json(), status)

    async def api_index(self, request: Request) -> Response:
        """Counts, methods and when the index was made; no path of this machine."""
        m = self.index.manifest
        return JSONResponse(
            {
                "files": m.files, "passages": m.passages, "created": m.created,
                "methods": self.index.methods, "rerank": bool(self.rerank),
            }
        )  # fmt: skip

    def _asked(self, request: Request) -> Asked:
        """What the address asks for; what makes no sense falls back to the page's defaults."""
        query = request.query_params
        methods = tuple(m for m in dict.fromkeys(query.getlist("m")) if m in self.index.methods)
        k = query.get("k", "")
        return Asked(
            question=query.get("q", "").strip(),
            methods=methods or self._first_columns(),
            k=min(max(int(k), 1), MOST_HITS) if k.isdecimal() and len(k) < 6 else 10,
            rerank=bool(query.get("r")) and self.rerank is not None,
        )

    def _first_columns(self) -> tuple[str, ...]:
        """Words beside meaning where there are vectors."""
        return tuple(m for m in ("bm25", "dense", "hybrid") if m in self.index.methods)

    def _column(self, asked: Asked, method: str) -> Column:
        status, found = self._search(asked.question, asked.k, method, self.rerank if asked.rerank else None)
        return (
            Column(method, status, None, found) if isinstance(found, str) else Column(method, status, found)
        )

    def _search(self, question: str, k: int, method: str | None, rerank: str | None) -> tuple[int, Any]:
        """HTTP status with an Answer, or with the one line that says what is wrong."""
        if len(question) > LONGEST_QUESTION:
            return (
                413,
                f"the question has {len(question):,} characters; at most {LONGEST_QUESTION:,} are read",
            )
        if not 1 <= k <= MOST_HITS:
            return 400, f"k is {k}; ask for 1 to {MOST_HITS} hits"
        if not self._slots.acquire(timeout=10):
            return 503, "too many questions at once; ask again in a moment"
        try:
            return 200, self.index.search(question, k, method, rerank)
        except SearchError as error:
            return 400, str(error)
        finally:
            self._slots.release()


async def static(request: Request) -> Response:
    """The page's own style and script."""
    name = request.path_params["name"]
    kinds = {"style.css": "text/css", "search.js": "text/javascript"}
    if name not in kinds:
        return await _not_found(request, None)
    text = (resources.files("gradatim.serve") / "static" / name).read_text(encoding="utf-8")
    return Response(text, media_type=kinds[name], headers={"Cache-Control": "no-cache"})


async def _not_found(request: Request, error: Any) -> Response:
    return Response("nothing here; the search page is at /\n", 404, media_type="text/plain")


async def _failed(request: Request, error: Any) -> Response:
    return Response("this server failed; its terminal says why\n", 500, media_type="text/plain")


def warm(index: FolderIndex, rerank: str | None = None) -> Callable[[], None]:
    """A call that loads every method's model, so that the first question does not wait for it."""

    def go() -> None:
        for method in index.methods:
            try:
                index.search("warm", 1, method, rerank)
            except SearchError:
                continue  # the question that needs it will be told

    return go
