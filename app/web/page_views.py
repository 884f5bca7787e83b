"""HTML pages without scripts: the routes, the errors, the jobs; and the OpenAPI document."""

from __future__ import annotations

import time

from flask import Response, g, render_template

from app.errors import FrameboxError, error_classes
from app.web.openapi import detection_parameters, openapi_document, openapi_path
from app.web.options import describe_values
from app.web.report import public_report
from app.web.results import json_response
from app.web.routes import ROUTES
from app.web.service import Service

DASHBOARD_JOBS = 50
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


class PageViews:
    def __init__(self, service: Service) -> None:
        self._service = service

    def get_openapi(self) -> Response:
        return json_response(openapi_document(self._service.limits.version))

    def show_docs(self) -> Response:
        routes = [(openapi_path(route.rule), route) for route in ROUTES if route.is_public]
        options = [(option, describe_values(option.name)) for option in detection_parameters()]
        return _page("docs.html", routes=routes, options=options)

    def show_errors(self) -> Response:
        return _page("errors.html", errors=error_entries())

    def show_dashboard(self) -> Response:
        now, store = time.time(), self._service.store
        jobs = [public_report(job, now=now) for job in store.list(owner=g.owner, limit=DASHBOARD_JOBS)]
        counts = {state.value: count for state, count in store.counts(owner=g.owner).items()}
        return _page("dashboard.html", jobs=jobs, counts=counts)


def error_entries() -> list[tuple[type[FrameboxError], str]]:
    """Return every error that a client can get, sorted by status and code, and its meaning in words."""
    found = sorted(error_classes().values(), key=lambda error: (error.status, error.code))
    return [(error, " ".join((error.__dict__.get("__doc__") or "").split())) for error in found]


def _page(template: str, **values: object) -> Response:
    response = Response(render_template(template, **values), mimetype="text/html")
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Cache-Control"] = "no-store"
    return response
