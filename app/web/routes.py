"""The table of routes. `create_web_app` serves it, `openapi.py` describes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.web.detections import DetectionViews
from app.web.events import EventViews
from app.web.internal import InternalViews
from app.web.jobs import JobViews
from app.web.probes import ProbeViews
from app.web.service import Service


@dataclass(frozen=True, slots=True)
class Route:
    """One method at one address. `rule` is in Flask's notation; `name` is the operation's id."""

    method: str
    rule: str
    name: str
    view: Callable[..., Any]


def all_routes(service: Service) -> list[Route]:
    """Every route of the service, its views bound to their collaborators."""
    detections, jobs, events = DetectionViews(service), JobViews(service), EventViews(service)
    probes, internal = ProbeViews(service), InternalViews(service)
    return [
        Route("POST", "/v1/detections", "create_detection", detections.create),
        Route("GET", "/v1/jobs", "list_jobs", jobs.list),
        Route("GET", "/v1/jobs/<job_id>", "get_job", jobs.report),
        Route("DELETE", "/v1/jobs/<job_id>", "remove_job", jobs.remove),
        Route("GET", "/v1/jobs/<job_id>/result", "get_result", jobs.result),
        Route("GET", "/v1/jobs/<job_id>/events", "follow_job", events.stream),
        Route("GET", "/v1/models", "list_models", probes.models),
        Route("GET", "/livez", "is_alive", probes.alive),
        Route("GET", "/readyz", "is_ready", probes.ready),
        Route("GET", "/metrics", "get_metrics", probes.metrics),
        Route("GET", "/_internal/admit", "admit_upload", internal.admit),
    ]
