"""A page at ``/`` to try the models in a browser: one document with its style and its script.

All that it shows comes from this server: the policy that is sent with it lets a browser load and
ask nothing else. It can be fetched without a token, for it holds nothing of a model.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response

from xlnet_fast.serve.contract import Service
from xlnet_fast.serve.options import ServeOptions

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/show.js": ("show.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
FREE_PATHS = tuple(_FILES)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def router(service: Service, options: ServeOptions) -> APIRouter:
    """``/`` and the files that it needs."""
    routes = APIRouter(tags=["Page"], include_in_schema=False)
    for path, (name, kind) in _FILES.items():
        _add(routes, path, (files(__package__) / "page" / name).read_bytes(), kind)
    return routes


def _add(routes: APIRouter, path: str, content: bytes, kind: str) -> None:
    @routes.api_route(path, methods=["GET", "HEAD"])
    async def file() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)
