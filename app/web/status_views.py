"""Probes, metrics and models: the service's own state."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.detection.model_facts import ModelFacts, ModelState
from app.errors import NotReady
from app.jobs.heartbeats import SILENT_SECONDS, why_not_ready
from app.jobs.queue import JobQueue
from app.web import schemas
from app.web.options import usable_models
from app.web.results import json_response
from app.web.service import Service

_HOST_GAUGES = {
    "ready": "1 while it accepts work.",
    "memory_bytes": "Resident memory of the process, without its decoder processes.",
    "segments": "Segments in progress.",
    "frames": "Frames analysed since its start.",
    "busy_seconds": "Seconds inside its models since its start.",
    "out_of_memory_count": "Batches halved because the device ran out of memory, since its start.",
    "model_fault_count": "Batches on which a model failed, since its start.",
    "dropped_box_count": "Boxes without area inside their frame, left out, since its start.",
    "restarts": "Times that it was replaced since the engine's start.",
}


class StatusViews:
    def __init__(self, service: Service) -> None:
        self._service = service

    def is_alive(self) -> Response:
        return json_response(schemas.Alive(alive=True))

    def is_ready(self) -> Response:
        """Answer 200 if a job posted now would be run, else a problem document with the reasons."""
        service = self._service
        engine, available = service.heartbeats.engine(), service.space.available_bytes()
        courier_age = _heartbeat_age(service.heartbeats.courier_at())
        checks = schemas.ReadinessChecks(
            engine=schemas.EngineCheck(
                ready=engine.ready, heartbeat_age_seconds=_heartbeat_age(engine.heartbeat_at)
            ),
            # Uploads are accepted without the courier: jobs that need it wait for it.
            courier=schemas.CourierCheck(
                ready=courier_age is not None and courier_age <= SILENT_SECONDS,
                heartbeat_age_seconds=courier_age,
            ),
            disk=schemas.DiskCheck(available_bytes=max(available, 0)),
            sandbox=engine.sandbox,
            models=usable_models(engine.models),
            hosts=list(engine.hosts),
        )
        reasons = []
        default = service.limits.default_model
        if (reason := why_not_ready(engine, now=time.time(), default_model=default)) is not None:
            reasons.append(reason)
        if available <= 0:
            reasons.append("the data folder's disk is full: less than FRAMEBOX_MIN_FREE_BYTES is left on it")
        if service.stopping.is_set():
            reasons.append("this HTTP worker is stopping")
        if reasons:
            extensions = {"reasons": reasons, "checks": checks.model_dump(mode="json")}
            raise NotReady(f"Not ready: {'; '.join(reasons)}.", extensions)
        return json_response(schemas.Readiness(ready=True, checks=checks))

    def get_metrics(self) -> Response:
        body = self._service.metrics.expose([_InstanceCollector(self._service)])
        return Response(body, content_type=CONTENT_TYPE_LATEST)

    def list_models(self) -> Response:
        usable, refused = [], []
        for model in self._service.heartbeats.engine().models:
            if model.state is not ModelState.REFUSED:
                facts = dict.fromkeys(ModelFacts.model_fields) if model.facts is None else dict(model.facts)
                del facts["runtime"]  # only the engine uses it
                state = {"name": model.name, "loaded": model.state is ModelState.READY, "state": model.state}
                usable.append(schemas.Model.model_validate(facts | state))
            if model.refusal is not None:
                refused.append(schemas.RefusedModel(name=model.name, refused=model.refusal))
        default = self._service.limits.default_model
        return json_response(schemas.ModelList(default=default, models=usable, refused=refused))


def _heartbeat_age(heartbeat_at: float) -> float | None:
    """Return the seconds since a program's last heartbeat; None if there was none."""
    return round(max(0.0, time.time() - heartbeat_at), 1) if heartbeat_at else None


class _InstanceCollector(Collector):
    """Metrics that are read from the store on request, instead of being counted by every process."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("framebox_jobs", "Jobs that are kept, by state.", labels=["state"])
        for state, count in JobQueue(self._service.database).counts().items():
            jobs.add_metric([state], count)
        yield jobs
        engine = self._service.heartbeats.engine()
        is_ready = float(why_not_ready(engine, now=time.time()) is None)
        yield GaugeMetricFamily("framebox_engine_ready", "1 while the engine takes jobs.", is_ready)
        for name, text in _HOST_GAUGES.items():
            help_text = f"Of a host, by its number and device: {text}"
            gauge = GaugeMetricFamily(f"framebox_host_{name}", help_text, labels=["host", "device"])
            for number, host in enumerate(engine.hosts):  # several hosts may share a device
                gauge.add_metric([str(number), host.device], float(getattr(host, name)))
            yield gauge
        age = _heartbeat_age(self._service.heartbeats.courier_at())
        is_alive = float(age is not None and age <= SILENT_SECONDS)
        yield GaugeMetricFamily("framebox_courier_ready", "1 while the courier lives.", is_alive)
        available = float(self._service.space.available_bytes())
        yield GaugeMetricFamily("framebox_disk_available_bytes", "Room left for uploads.", available)
