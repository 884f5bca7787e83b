"""The options of a detection, validated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class OnDamage(StrEnum):
    REPORT = "report"
    FAIL = "fail"


class DocumentFormat(StrEnum):
    """The formats of a result; all are made from `PAIRS`."""

    PAIRS = "pairs"
    BOXES = "boxes"
    NDJSON = "ndjson"
    CSV = "csv"
    COCO = "coco"
    MOT = "mot"


TIMED_FORMATS = (DocumentFormat.PAIRS, DocumentFormat.NDJSON, DocumentFormat.CSV, DocumentFormat.COCO)


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a document is written. ValueError for times in a format that has no place for them."""

    format: DocumentFormat = DocumentFormat.PAIRS
    times: bool = False  # with each frame's time

    def __post_init__(self) -> None:
        if self.times and self.format not in TIMED_FORMATS:
            raise ValueError(f"{self.format} has no place for times")

    @property
    def name(self) -> str:
        """The name among a document's renderings."""
        return f"{self.format}-times" if self.times else str(self.format)

    @property
    def is_document(self) -> bool:
        """Whether this is the document itself, which needs no conversion."""
        return self == Rendering()


RENDERINGS = (*map(Rendering, DocumentFormat), *(Rendering(each, times=True) for each in TIMED_FORMATS))


class DetectionOptions(BaseModel):
    """The options that decide a result, so part of its identity. The query string's names and units.

    ``format`` and ``times`` are not among them: they change how a result is written, not what it says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, max_length=200, description="Name of a model of /v1/models.")
    min_score: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Drop boxes below this score; the default is the model's own.",
    )
    labels: tuple[str, ...] | None = Field(
        default=None, min_length=1, max_length=1000, description="Keep only these labels; comma-separated."
    )
    stride: int | None = Field(default=None, ge=1, le=1_000_000, description="Analyse every n-th frame.")
    fps: float | None = Field(
        default=None, gt=0, le=1000, description="Analyse at most this many frames of each second."
    )
    start: float | None = Field(default=None, ge=0, le=1e9, description="Begin here, seconds into the video.")
    end: float | None = Field(default=None, gt=0, le=1e9, description="End before this second of the video.")
    max_side: int | None = Field(
        default=None, ge=16, le=16384, description="Analyse pictures of at most this many pixels a side."
    )
    on_damage: OnDamage = Field(
        default=OnDamage.REPORT,
        description="What undecodable frames do: stand in the report, or fail the job.",
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _split_labels(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(label.strip() for label in value.split(",") if label.strip())
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stride is not None and self.fps is not None:
            raise ValueError("stride and fps exclude each other")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError("end must be greater than start")
        return self
