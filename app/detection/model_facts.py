"""What is known of the models, as every process tells it. No torch here: engine and web workers read it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

ModelIdentity = tuple[str, str, str, int]


class ModelState(StrEnum):
    """loading → ready ⇄ unloaded, or loading → refused."""

    LOADING = "loading"  # it is being loaded, or waits for its first loading
    READY = "ready"  # a host holds it
    UNLOADED = "unloaded"  # it gave its room to others, and is loaded again when it is asked for
    REFUSED = "refused"  # it cannot be asked for


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrecisionEffect(_Facts):
    """How the boxes of 16 bits differ from those of float32, on drawn scenes.

    Counted are the boxes of either with the model's default score or more. A count of 0 tells nothing.
    """

    boxes: int = Field(description="boxes of the scenes")
    matched: int = Field(description="of these, those of equal label and an overlap (IoU) above 0.95 in both")
    score_difference: float = Field(description="the largest between two boxes of one thing")
    box_difference_pixels: float = Field(description="the largest of a side, at 1280 × 720")


class ModelFacts(_Facts):
    """What a model is, once it has been loaded: all that planning a video and checking a request need."""

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
    runtime: str = Field(
        description="what computes the boxes, beside the model: versions, kind of processor, threads"
    )

    @property
    def identity(self) -> ModelIdentity:
        """All of the model that decides a box: with another, a part is another."""
        return (self.sha256, self.device, self.runtime, self.batch_size)


class Refusal(_Facts):
    """Why a model cannot be asked for."""

    code: str = Field(description="a code of /docs/errors")
    detail: str = Field(description="what is wrong, and what to do")


class ModelStatus(_Facts):
    """One model of this instance, as far as it is known."""

    name: str
    state: ModelState
    facts: ModelFacts | None = Field(description="null until it has been loaded once")
    refusal: Refusal | None = Field(default=None, description="why it is refused")


class NoRoomForModel(Exception):
    """Models in use hold the memory that this one needs; it can be had once they are not used any more."""
