"""Facts about models that all processes share. Imports no torch: the engine and the web workers load it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

FAST_ENOUGH = 1000.0  # frames a second, with which decoding cannot keep up

ModelIdentity = tuple[str, str, str, int]


class ModelState(StrEnum):
    """loading → unloaded ⇄ ready, or loading → refused; loading again when its files change."""

    LOADING = "loading"  # it is on trial, or waits for that
    READY = "ready"  # a host holds it
    UNLOADED = "unloaded"  # it passed its trial, and is loaded on demand
    REFUSED = "refused"  # requests cannot use it


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrecisionEffect(_Facts):
    """How boxes computed in 16 bits differ from those in float32, on drawn scenes.

    Counts the boxes of both that reach the model's default score. A count of 0 says nothing.
    """

    boxes: int = Field(description="boxes of the scenes")
    matched: int = Field(description="of these, those of equal label and an overlap (IoU) above 0.95 in both")
    score_difference: float = Field(description="the largest between two boxes of one thing")
    box_difference_pixels: float = Field(description="the largest of a side, at 1280 × 720")


class ModelFacts(_Facts):
    """Facts about a model that was loaded: all that planning a video and checking a request need."""

    name: str = Field(description="what a request's `model` calls it")
    sha256: str = Field(description="of all that decides what it finds: weights, parameters, the code")
    labels: tuple[str, ...] = Field(description="all that it can find, in its own order")
    input_size: tuple[int, int] = Field(
        description="width and height, in pixels: larger frames are scaled down to fit"
    )
    default_min_score: float = Field(
        description="boxes below it are dropped unless `min_score` says otherwise"
    )
    device: str = Field(description="the kind of device that runs it: cpu or cuda")
    precision: str = Field(description="what it computes in, such as float32")
    precision_effect: PrecisionEffect | None = Field(
        description="what 16 bits do to its boxes, where it was given them here"
    )
    batch_size: int = Field(description="frames that go to the device together")
    frames_per_second: float = Field(description="of 1280 × 720 video in such batches, decoding apart")
    memory_bytes: int = Field(description="of the host, at its peak")
    device_memory_bytes: int = Field(description="of the device, if that has memory of its own")
    run_by: str = Field(
        default="", description="what runs the network: torch or onnxruntime; empty for Python code"
    )
    left_out: tuple[str, ...] = Field(
        default=(), description="what the network also finds and the answer does not have, such as masks"
    )
    assumed: tuple[str, ...] = Field(
        default=(), description="what its file does not say, and was taken from what is usual"
    )
    runtime: str = Field(
        description="what computes the boxes, beside the model: versions, kind of processor, threads"
    )

    @property
    def is_convertible(self) -> bool:
        """Whether the model may be faster when it is converted to ONNX."""
        is_slow = self.frames_per_second < FAST_ENOUGH
        return self.run_by == "torch" and self.device == "cpu" and is_slow

    @property
    def identity(self) -> ModelIdentity:
        """Everything of the model that decides a box: a part made with another identity is made again."""
        return (self.sha256, self.device, f"{self.runtime} {self.run_by}".strip(), self.batch_size)


class Refusal(_Facts):
    """Why requests cannot use a model."""

    code: str = Field(description="a code of /docs/errors")
    detail: str = Field(description="what is wrong, and what to do")


class ModelStatus(_Facts):
    """The state of one model of this instance."""

    name: str
    state: ModelState
    facts: ModelFacts | None = Field(description="null until it has passed its trial")
    refusal: Refusal | None = Field(default=None, description="why it is refused")


class Verdict(_Facts):
    """What a trial found out about a model file: all that a host needs to load it, or why it is refused."""

    name: str
    content: str = ""  # ModelContent.fingerprint(0) of the files that were tried
    facts: ModelFacts | None = None
    profile: dict[str, Any] | None = None  # detection.measuring.ModelProfile
    declaration: dict[str, Any] = Field(default_factory=dict)  # how a network is read, as it was recognised
    converted: str | None = None  # the SHA-256 of the ONNX file that is run instead of the model's own
    refusal: Refusal | None = None
    # A refusal for lack of memory or time holds while there is no more of either.
    room_bytes: int | None = None
    deadline_seconds: float | None = None


class NoRoomForModel(Exception):
    """Models in use hold the memory that this one needs; it can be loaded when they are no longer in use."""


class UntriedModel(Exception):
    """A model's files have passed no trial with the software of this host: it does not load them."""
