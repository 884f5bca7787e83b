"""The Flask application: routes, errors, and one log line a request."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from flask import Flask, Response, g, request
from structlog.contextvars import bind_contextvars, clear_contextvars

from app.metrics import Metrics
from app.web.problems import register_error_handlers
from app.web.routes import all_routes
from app.web.service import Service

_log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[0-9A-Za-z._-]{1,128}")
_QUIET = ("is_alive", "is_ready", "get_metrics", "admit_upload")  # asked every few seconds, or twice


def create_web_app(service: Service) -> Flask:
    """Return the WSGI application over `service`; it starts nothing and opens nothing by itself."""
    app = Flask("framebox", static_folder=None)
    app.extensions["framebox"] = service
    for route in all_routes(service):
        app.add_url_rule(route.rule, endpoint=route.name, view_func=route.view, methods=[route.method])
    register_error_handlers(app)
    app.before_request(_begin)
    app.after_request(_Finish(service.metrics))
    return app


def _begin() -> None:
    """Name the request: by nginx's id, which it sets itself, or by our own."""
    g.began = time.perf_counter()
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    clear_contextvars()
    bind_contextvars(request_id=g.request_id)


class _Finish:
    """After each request: its id in the answer, its line in the log, its place in the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __call__(self, response: Response) -> Response:
        seconds = time.perf_counter() - g.began
        route = request.url_rule.rule if request.url_rule else "none"
        response.headers["X-Request-ID"] = g.request_id
        self._metrics.http_requests.labels(request.method, route, str(response.status_code)).inc()
        self._metrics.http_request_seconds.labels(request.method, route).observe(seconds)
        fields = {
            "method": request.method,
            "route": route,
            "status": response.status_code,
            "seconds": round(seconds, 4),
            "received_bytes": request.content_length,
        }
        if "problem_code" in g:
            fields["code"] = g.problem_code
        quiet = request.endpoint in _QUIET and response.status_code in (200, 204, 403)
        (_log.debug if quiet else _log.info)("request", **fields)
        return response
