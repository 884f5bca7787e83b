"""Probes, metrics and models: what the service says of itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from flask import Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.detection.model_facts import ModelFacts, ModelState, ModelStatus
from app.errors import NotReady
from app.jobs.engine_status import SILENT_SECONDS, EngineStatus, HostStatus, why_not_ready
from app.jobs.queue import JobQueue
from app.web.options import usable_models
from app.web.results import json_response
from app.web.schemas import (
    Alive,
    CourierCheck,
    DiskCheck,
    EngineCheck,
    Model,
    ModelList,
    Readiness,
    ReadinessChecks,
    RefusedModel,
)
from app.web.service import Service


class ProbeViews:
    def __init__(self, service: Service) -> None:
        self._service = service

    def alive(self) -> Response:
        return json_response(Alive(alive=True))

    def ready(self) -> Response:
        """200 if a job posted now would be run; else a problem document that tells why not."""
        engine, available = self._service.heartbeats.engine(), self._service.space.available_bytes()
        courier_age = _heartbeat_age(self._service.heartbeats.courier_at())
        checks = ReadinessChecks(
            engine=EngineCheck(ready=engine.ready, heartbeat_age_seconds=_heartbeat_age(engine.heartbeat_at)),
            # It is no reason to turn uploads away: what needs the courier waits for it.
            courier=CourierCheck(
                ready=courier_age is not None and courier_age <= SILENT_SECONDS,
                heartbeat_age_seconds=courier_age,
            ),
            disk=DiskCheck(available_bytes=max(available, 0)),
            sandbox=engine.sandbox,
            models=usable_models(engine.models),
            hosts=list(engine.hosts),
        )
        if reasons := [*self._reasons(engine, available)]:
            told = {"reasons": reasons, "checks": checks.model_dump(mode="json")}
            raise NotReady(f"Not ready: {'; '.join(reasons)}.", told)
        return json_response(Readiness(ready=True, checks=checks))

    def _reasons(self, engine: EngineStatus, available_bytes: int) -> Iterator[str]:
        """Why a job posted now would not be run."""
        default = self._service.limits.default_model
        if (reason := why_not_ready(engine, now=time.time(), default_model=default)) is not None:
            yield reason
        if available_bytes <= 0:
            yield "the data folder's disk is full: less than FRAMEBOX_MIN_FREE_BYTES is left on it"
        if self._service.stopping.is_set():
            yield "this HTTP worker is stopping"

    def metrics(self) -> Response:
        body = self._service.metrics.expose([_InstanceCollector(self._service)])
        return Response(body, content_type=CONTENT_TYPE_LATEST)

    def models(self) -> Response:
        models = self._service.heartbeats.engine().models
        return json_response(
            ModelList(
                default=self._service.limits.default_model,
                models=[_shown(model) for model in models if model.state is not ModelState.REFUSED],
                refused=[
                    RefusedModel(name=model.name, refused=model.refusal)
                    for model in models
                    if model.refusal is not None
                ],
            )
        )


def _shown(model: ModelStatus) -> Model:
    facts = dict.fromkeys(ModelFacts.model_fields) if model.facts is None else dict(model.facts)
    del facts["runtime"]  # of use to the engine only
    is_loaded = model.state is ModelState.READY
    return Model.model_validate({**facts, "name": model.name, "loaded": is_loaded, "state": model.state})


def _heartbeat_age(heartbeat_at: float) -> float | None:
    """Seconds since a program last said that it lives; None if it never did."""
    return round(max(0.0, time.time() - heartbeat_at), 1) if heartbeat_at else None


class _InstanceCollector(Collector):
    """What is read from the store when somebody asks, instead of being counted by every process."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("framebox_jobs", "Jobs that are kept, by state.", labels=["state"])
        for state, count in JobQueue(self._service.database).counts().items():
            jobs.add_metric([state], count)
        yield jobs
        engine = self._service.heartbeats.engine()
        is_ready = why_not_ready(engine, now=time.time()) is None
        yield _gauge("framebox_engine_ready", "1 while the engine takes jobs.", float(is_ready))
        yield from _host_gauges(engine.hosts)
        age = _heartbeat_age(self._service.heartbeats.courier_at())
        is_alive = age is not None and age <= SILENT_SECONDS
        yield _gauge("framebox_courier_ready", "1 while the courier lives.", float(is_alive))
        available = self._service.space.available_bytes()
        yield _gauge("framebox_disk_available_bytes", "Room left for uploads.", float(available))


def _host_gauges(hosts: Sequence[HostStatus]) -> Iterator[GaugeMetricFamily]:
    """What each host tells of itself; those of one device may be several."""
    told = {
        "ready": "1 while it takes work.",
        "memory_bytes": "Host memory of its own, its decoders apart.",
        "segments": "Segments that it is at.",
        "frames": "Frames analysed since its start.",
        "busy_seconds": "Seconds inside its models since its start.",
        "out_of_memory_count": "Batches halved for want of the device's memory since its start.",
        "model_fault_count": "Batches that a model failed at since its start.",
        "dropped_box_count": "Boxes without area inside their frame, left out since its start.",
        "restarts": "How often it was replaced since the engine's start.",
    }
    for name, text in told.items():
        help_text = f"Of a host, by its number and device: {text}"
        gauge = GaugeMetricFamily(f"framebox_host_{name}", help_text, labels=["host", "device"])
        for number, host in enumerate(hosts):
            gauge.add_metric([str(number), host.device], float(getattr(host, name)))
        yield gauge


def _gauge(name: str, text: str, value: float) -> Any:
    return GaugeMetricFamily(name, text, value=value)
