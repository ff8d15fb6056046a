"""The server's routes in one application."""

import time

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import chat, page, transcriptions
from .gate import Gate
from .metrics import Metrics
from .problems import Problem, failed
from .service import Service, Settings
from .worker import Worker


def build_app(worker: Worker, settings: Settings) -> FastAPI:
    """Return the application of a model that a worker has."""
    metrics = Metrics(worker)
    service = Service(worker, metrics, settings, int(time.time()))
    forms = transcriptions.router(service)
    gate = Middleware(
        Gate, worker=worker, metrics=metrics, api_key=settings.api_key, most_upload_bytes=settings.most_upload_bytes,
        upload_paths=frozenset(route.path for route in forms.routes if isinstance(route, Route)),
    )  # fmt: skip
    app = FastAPI(title="fastslm serve", middleware=[gate], docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(ClientDisconnect, lambda _request, _error: Response(status_code=499))
    app.add_exception_handler(Exception, lambda _request, _error: failed().response())
    routers = [forms, chat.router(service), page.router()]
    for router in routers:
        app.include_router(router)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_card(service, name) for name in settings.names]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> JSONResponse:
        service.check_model(name)
        return JSONResponse(_card(service, name))

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> JSONResponse:
        status = "ended" if not worker.alive else "ok" if worker.ready else "loading"
        facts = {
            "status": status,
            "waiting": worker.num_waiting,
            "running": worker.num_running,
            "model": settings.names[0],
        }
        return JSONResponse(facts, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    metrics.paths = frozenset(route.path for route in routes if isinstance(route, Route))
    return app


def _card(service: Service, name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": service.created, "owned_by": "fastslm"}


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {
        404: f"There is nothing at {request.url.path}; the API begins at /v1.",
        405: f"{request.method} is not done at {request.url.path}.",
    }
    response = Problem(
        error.status_code, said.get(error.status_code, f"The request is malformed: {error.detail}")
    ).response()
    response.headers.update(error.headers or {})
    return response
