"""Whether the process answers, and whether requests should come: two questions."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from xlnet_fast.serve.options import ServeOptions
from xlnet_fast.serve.protocols.described import UNREADY
from xlnet_fast.serve.service import ModelService

FREE_PATHS = ("/healthz", "/readyz")


def router(service: ModelService, options: ServeOptions) -> APIRouter:
    """``/healthz`` and ``/readyz``."""
    routes = APIRouter()

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        """200 as long as the process answers, whatever its models do."""
        return {"status": "alive"}

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", summary="Whether requests are taken", responses=UNREADY)
    async def readyz() -> JSONResponse:
        """200 when every model is ready and no end is near, else 503."""
        states = {f"{one.name}/{one.version}": one.state for one in service.models() if one.default}
        status = "ending" if service.draining else "ready" if service.ready else "not ready"
        return JSONResponse({"status": status, "models": states}, 200 if service.ready else 503)

    return routes
