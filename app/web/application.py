"""The Flask application: the views at their routes, the error handlers, and one log line per request."""

from __future__ import annotations

import re
import uuid
from functools import partial

import structlog
from flask import Flask, Response, g, request
from structlog.contextvars import bind_contextvars, clear_contextvars

from app.errors import NotReady
from app.jobs.job import OWNER
from app.metrics import Metrics
from app.web.detection_views import DetectionViews
from app.web.job_views import JobViews
from app.web.page_views import PageViews
from app.web.problems import register_error_handlers
from app.web.routes import ROUTES
from app.web.service import Service
from app.web.status_views import StatusViews
from app.web.upload_views import UploadViews
from app.web.waiting import RequestTimes, TimedBody

_log = structlog.get_logger()

_VIEWS = (DetectionViews, UploadViews, JobViews, StatusViews, PageViews)
_REQUEST_ID = re.compile(r"[0-9A-Za-z._-]{1,128}")
# Requested every few seconds, or in addition to the client's own request.
_QUIET = ("is_alive", "is_ready", "get_metrics", "admit_upload", "admit_upload_body")
_FOR_DETECTIONS = ("create_from_body", "answer_again", "explain_unspooled")  # how nginx forwards that request


def create_web_app(service: Service) -> Flask:
    """Return the WSGI application over `service`, without starting or opening anything.

    A route is served by the view method that has the route's name.
    """
    app = Flask(__name__, static_folder=None)
    app.extensions["framebox"] = service
    views = {
        name: getattr(group, name)
        for group in [views_class(service) for views_class in _VIEWS]
        for name in dir(group)
        if not name.startswith("_")
    }
    answers_options = {route.rule for route in ROUTES if route.method == "OPTIONS"}
    for route in ROUTES:
        app.add_url_rule(
            route.rule,
            endpoint=route.name,
            view_func=views[route.name],
            methods=[route.method],
            provide_automatic_options=route.rule not in answers_options,
        )
    register_error_handlers(app)
    app.before_request(_begin)
    app.after_request(partial(_finish, service.metrics))
    return app


def _begin() -> None:
    """Give the request an id: nginx's, which it sets itself, or a new one."""
    g.times, g.owner = RequestTimes(), OWNER
    request.environ["wsgi.input"] = TimedBody(request.environ["wsgi.input"], g.times)
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    clear_contextvars()
    bind_contextvars(request_id=g.request_id)


def _finish(metrics: Metrics, response: Response) -> Response:
    """Add the request's id to the answer, count the request and log it."""
    times: RequestTimes = g.times
    method, route = request.method, request.url_rule.rule if request.url_rule else "none"
    if request.endpoint in _FOR_DETECTIONS:  # name the route that the client requested
        method, route = "POST", "/v1/detections"
    response.headers["X-Request-ID"] = g.request_id
    metrics.http_requests.labels(method, route, str(response.status_code)).inc()
    metrics.http_request_seconds.labels(method, route).observe(times.serving_seconds)
    for wait, seconds in times.waits.items():
        metrics.http_wait_seconds.labels(wait).observe(seconds)
    fields = {
        "method": method,
        "route": route,
        "path": request.headers.get("Framebox-Request-Path", request.path),
        "client": request.headers.get("X-Forwarded-For", request.remote_addr),
        "status": response.status_code,
        "seconds": round(times.total_seconds, 4),
        "waited_seconds": round(sum(times.waits.values()), 4),
        "received_bytes": request.content_length,
    }
    if "problem_code" in g:
        fields["code"] = g.problem_code
    is_usual = response.status_code in (200, 204, 403) or g.get("problem_code") == NotReady.code
    is_quiet = request.endpoint in _QUIET and is_usual
    (_log.debug if is_quiet else _log.info)("request", **fields)
    return response
