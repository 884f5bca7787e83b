"""The Flask application: routes, errors, and one log line a request."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

import structlog
from flask import Flask, Response, g, request
from structlog.contextvars import bind_contextvars, clear_contextvars

from app.errors import NotReady
from app.jobs.job import OWNER
from app.metrics import Metrics
from app.web.detections import DetectionViews
from app.web.events import EventViews
from app.web.internal import InternalViews
from app.web.jobs import JobViews
from app.web.pages import PageViews
from app.web.probes import ProbeViews
from app.web.problems import register_error_handlers
from app.web.request_times import RequestTimes, TimedBody
from app.web.routes import ROUTES
from app.web.service import Service
from app.web.uploads import UploadViews

_log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[0-9A-Za-z._-]{1,128}")
_QUIET = (
    "is_alive",
    "is_ready",
    "get_metrics",
    "admit_upload",
    "admit_upload_body",
)  # asked every few seconds, or twice
_FOR_DETECTIONS = ("create_from_body", "answer_again", "tell_unspooled")  # how nginx passes that request on


def create_web_app(service: Service) -> Flask:
    """Return the WSGI application over `service`; it starts nothing and opens nothing by itself."""
    app = Flask(__name__, static_folder=None)
    app.extensions["framebox"] = service
    views = _views(service)
    answers_options = {route.rule for route in ROUTES if route.method == "OPTIONS"}
    for route in ROUTES:
        app.add_url_rule(
            route.rule,
            endpoint=route.name,
            view_func=views[route.name],
            methods=[route.method],
            provide_automatic_options=(route.rule not in answers_options),
        )
    register_error_handlers(app)
    app.before_request(_begin)
    app.after_request(_Finish(service.metrics))
    return app


def _views(service: Service) -> dict[str, Callable[..., Response]]:
    """The view of each route, by the route's name."""
    detections, jobs, events = DetectionViews(service), JobViews(service), EventViews(service)
    probes, pages, internal = ProbeViews(service), PageViews(service), InternalViews(service)
    uploads = UploadViews(service)
    return {
        "create_upload": uploads.serve,
        "describe_uploads": uploads.serve,
        "describe_upload": uploads.serve,
        "get_upload": uploads.serve,
        "append_to_upload": uploads.serve,
        "remove_upload": uploads.serve,
        "override_method": uploads.serve,
        "admit_upload_body": internal.admit_upload_body,
        "create_detection": detections.create,
        "list_jobs": jobs.list,
        "get_job": jobs.report,
        "remove_job": jobs.remove,
        "get_result": jobs.result,
        "follow_job": events.stream,
        "list_models": probes.models,
        "is_alive": probes.alive,
        "is_ready": probes.ready,
        "get_metrics": probes.metrics,
        "get_openapi": pages.openapi,
        "show_docs": pages.docs,
        "show_errors": pages.errors,
        "show_dashboard": pages.dashboard,
        "admit_upload": internal.admit,
        "answer_again": detections.attached,
        "create_from_body": detections.create_from_body,
        "tell_unspooled": detections.tell_unspooled,
    }


def _begin() -> None:
    """Name the request: by nginx's id, which it sets itself, or by our own."""
    g.times, g.owner = RequestTimes(), OWNER
    request.environ["wsgi.input"] = TimedBody(request.environ["wsgi.input"], g.times)
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    clear_contextvars()
    bind_contextvars(request_id=g.request_id)


class _Finish:
    """After each request: its id in the answer, its line in the log, its place in the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __call__(self, response: Response) -> Response:
        method, route = _asked_for()
        response.headers["X-Request-ID"] = g.request_id
        self._count(method, route, response.status_code)
        fields = {
            "method": method,
            "route": route,
            "path": request.headers.get("Framebox-Request-Path", request.path),
            "client": request.headers.get("X-Forwarded-For", request.remote_addr),
            "status": response.status_code,
            "seconds": round(g.times.total_seconds, 4),
            "waited_seconds": round(sum(g.times.waits.values()), 4),
            "received_bytes": request.content_length,
        }
        if "problem_code" in g:
            fields["code"] = g.problem_code
        is_usual = response.status_code in (200, 204, 403) or g.get("problem_code") == NotReady.code
        quiet = request.endpoint in _QUIET and is_usual
        (_log.debug if quiet else _log.info)("request", **fields)
        return response

    def _count(self, method: str, route: str, status: int) -> None:
        times: RequestTimes = g.times
        self._metrics.http_requests.labels(method, route, str(status)).inc()
        self._metrics.http_request_seconds.labels(method, route).observe(times.serving_seconds)
        for wait, seconds in times.waits.items():
            self._metrics.http_wait_seconds.labels(wait).observe(seconds)


def _asked_for() -> tuple[str, str]:
    """The method and the route that the client asked for; nginx may have passed the request on otherwise."""
    if request.endpoint in _FOR_DETECTIONS:
        return "POST", "/v1/detections"
    return request.method, request.url_rule.rule if request.url_rule else "none"
