"""The shapes of JSON answers: what the views build them from, and what the OpenAPI document publishes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, RootModel

from app.detection.model_facts import ModelFacts, ModelState, PrecisionEffect, Refusal
from app.jobs.heartbeats import HostStatus
from app.video.sandbox_status import SandboxStatus
from app.web.report import JobReport, Problem, Shape


class Box(Shape):
    """One object in one frame."""

    box: tuple[float, float, float, float] = Field(
        description="x_min, y_min, x_max, y_max in pixels of the frame as displayed"
    )
    label: str = Field(description="what it is, in the model's words")
    score: float = Field(ge=0, le=1, description="how sure the model is")


class FrameTime(Shape):
    """When a frame is shown; with `times=true`."""

    pts_seconds: float = Field(
        description="the time stamp in seconds, 6 decimals, as ffprobe's pts_time: from the container's own "
        "zero, so the first frame's need not be 0"
    )


class Document(RootModel[list[tuple[int, list[Box]] | tuple[int, list[Box], FrameTime]]]):
    """Pairs of frame id (0-based, in presentation order) and boxes, best score first, in frame order.

    With `times=true` each has a third member.
    """


class JobList(Shape):
    """A page of jobs."""

    jobs: list[JobReport] = Field(description="newest first")
    next: str | None = Field(description="address of the next page")


def _fact(name: str) -> Any:
    """A field that says the same of a model as `ModelFacts` does."""
    return Field(description=ModelFacts.model_fields[name].description)


class Model(Shape):
    """A model that can be asked for. What its trial finds out is null until then."""

    name: str = _fact("name")
    sha256: str | None = _fact("sha256")
    labels: tuple[str, ...] | None = _fact("labels")
    input_size: tuple[int, int] | None = _fact("input_size")
    default_min_score: float | None = _fact("default_min_score")
    device: str | None = _fact("device")
    precision: str | None = _fact("precision")
    precision_effect: PrecisionEffect | None = _fact("precision_effect")
    batch_size: int | None = _fact("batch_size")
    frames_per_second: float | None = _fact("frames_per_second")
    memory_bytes: int | None = _fact("memory_bytes")
    device_memory_bytes: int | None = _fact("device_memory_bytes")
    run_by: str | None = _fact("run_by")
    left_out: tuple[str, ...] | None = _fact("left_out")
    assumed: tuple[str, ...] | None = _fact("assumed")
    loaded: bool = Field(description="it is ready; else it is loaded when it is asked for")
    state: ModelState = Field(description="loading, ready, or unloaded: it is loaded when it is asked for")


class RefusedModel(Shape):
    """A model that is there and cannot be asked for."""

    name: str = _fact("name")
    refused: Refusal = Field(description="why it is refused")


class ModelList(Shape):
    """The models of this instance."""

    default: str = Field(description="the model of a request that names none")
    models: list[Model] = Field(description="that can be asked for")
    refused: list[RefusedModel] = Field(description="that cannot")


class Alive(Shape):
    """The HTTP side answers."""

    alive: Literal[True] = Field(description="always")


class EngineCheck(Shape):
    """The program that runs the jobs."""

    ready: bool = Field(description="it takes jobs")
    heartbeat_age_seconds: float | None = Field(description="since it last said so; null: it never did")


class CourierCheck(Shape):
    """The program that fetches videos and delivers callbacks. Jobs that need it wait for it."""

    ready: bool = Field(description="it lives")
    heartbeat_age_seconds: float | None = Field(description="since it last said so; null: it never did")


class DiskCheck(Shape):
    """The disk of the data folder."""

    available_bytes: int = Field(description="room left for uploads")


class ReadinessChecks(Shape):
    """What was looked at, ready or not."""

    engine: EngineCheck = Field(description="the engine")
    courier: CourierCheck = Field(description="the courier")
    disk: DiskCheck = Field(description="the disk")
    sandbox: SandboxStatus | None = Field(description="what locks the decoders down; null: not known yet")
    models: list[str] = Field(description="names of the models that can be asked for")
    hosts: list[HostStatus] = Field(description="the processes that run the models, one a device")


class Readiness(Shape):
    """A job posted now would be run."""

    ready: Literal[True] = Field(description="always; else the answer is a problem document")
    checks: ReadinessChecks = Field(description="what was looked at")


SHAPES: tuple[type[BaseModel], ...] = (Document, JobReport, JobList, ModelList, Alive, Readiness, Problem)
