"""The service as an ASGI application: routes by protocol, and what stands before them all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.responses import Response

from xlnet_fast._version import __version__
from xlnet_fast.serve import failures
from xlnet_fast.serve.auth import Authentication, Tokens
from xlnet_fast.serve.limits import RequestLimits
from xlnet_fast.serve.notes import of_protocol
from xlnet_fast.serve.options import ServeOptions
from xlnet_fast.serve.protocols import PROTOCOLS
from xlnet_fast.serve.protocols.described import refused, without_422
from xlnet_fast.serve.service import ModelService
from xlnet_fast.serve.tracking import Tracking

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def free_paths() -> set[str]:
    """Health checks and the page: answered without a token, however busy the service is."""
    return {path for module in PROTOCOLS.values() for path in getattr(module, "FREE_PATHS", ())}


def create_app(options: ServeOptions, service: ModelService | None = None) -> FastAPI:
    """The application, ``app.state.service`` being its service.

    Its models are loaded as the application starts, and let go as it ends, by whatever runs it.

    Args:
        options: checked.
        service: one that is started and stopped by the caller.

    Raises:
        ArgumentError: an option that cannot be used.
    """
    options.check()
    own = service is None
    service = service or ModelService(options)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        try:
            if own:
                await service.start()
            yield
        finally:
            if own:
                await service.stop()

    app = FastAPI(
        title="xlnet_fast", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
        summary="Answers of trained XLNet models",
    )  # fmt: skip
    app.state.service = service
    failures.install(app)
    free = free_paths()
    app.add_middleware(RequestLimits, options=options, free_paths=free)
    if options.tokens_file is not None:
        app.add_middleware(Authentication, tokens=Tokens(options.tokens_file), free_paths=free)
    app.add_middleware(Tracking, service=service, free_paths=free)  # the last is the outermost
    for name, module in PROTOCOLS.items():
        app.include_router(
            module.router(service, options), tags=[name], dependencies=[Depends(of_protocol(name))]
        )

    without_422(app)

    @app.get(
        "/metrics", tags=["metrics"], response_class=Response, responses=refused((401, 429, 503))
    )
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.page(), media_type=METRICS_TYPE)

    return app
