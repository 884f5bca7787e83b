"""Rows of the table of jobs, as `Job`s."""

from __future__ import annotations

import sqlite3
from dataclasses import fields

import orjson

from app.jobs.job import (
    Delivery,
    DeliveryState,
    Estimate,
    Job,
    JobState,
    Priority,
    Progress,
    SourceKind,
    VideoSource,
    Waiting,
)
from app.pipeline.options import DetectionOptions
from app.pipeline.report import DetectionReport
from app.storage.ingest import FileIdentity

# A job with its callbacks. Most jobs have none.
SELECT_JOB = """
SELECT jobs.*, (
    SELECT json_group_array(
        json_array(id, shown, state, attempts, last_status, last_error, next_at, delivered_at)
    ) FROM deliveries WHERE job_id = jobs.id
) AS deliveries FROM jobs
"""


def job_of_row(row: sqlite3.Row) -> Job:
    """Return the job in a row of `SELECT_JOB`; without its callbacks if the row has no such column."""
    identity = row["source_identity"]
    deliveries = orjson.loads(row["deliveries"]) if "deliveries" in row.keys() else []  # noqa: SIM118 - a Row iterates over its values
    return Job(
        id=row["id"],
        owner=row["owner"],
        state=JobState(row["state"]),
        request_id=row["request_id"],
        model=row["model"],
        options=DetectionOptions.model_validate_json(row["options"]),
        source=VideoSource(
            row["source_bytes"],
            row["source_sha256"],
            row["source_name"],
            SourceKind(row["source_kind"]),
            row["source_address"],
            FileIdentity(**orjson.loads(identity)) if identity else None,
            row["source_received"],
            row["source_address_sha256"],
        ),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        progress=Progress(*(row[member.name] for member in fields(Progress))),
        cancel_requested=bool(row["cancel_requested"]),
        problem=orjson.loads(row["problem"]) if row["problem"] else None,
        report=DetectionReport.model_validate_json(row["report"]) if row["report"] else None,
        priority=Priority(row["priority"]),
        waiting=Waiting(row["waiting"]) if row["waiting"] else None,
        estimate=None if row["seconds_left"] is None else Estimate(row["seconds_left"], row["estimated_at"]),
        deliveries=tuple(
            Delivery(id_, shown, DeliveryState(state), *rest) for id_, shown, state, *rest in deliveries
        ),
        deaths=row["deaths"],
        hangs=row["hangs"],
    )
