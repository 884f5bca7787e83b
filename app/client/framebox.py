"""A client of the service: send a video, read the answer as it arrives, whatever its size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ijson
import requests

_CONNECT_SECONDS = 10.0
_CHUNK_BYTES = 1024 * 1024
_REPORT_SECONDS = 60.0
_ASK_EVERY_SECONDS = 1.0
_RENDERING_OPTIONS = ("format", "times")  # that a request for a job's result takes too


class Refused(Exception):
    """The service answered with a problem document (RFC 9457); `problem` holds it."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return str(self.problem.get("detail", self.problem))


@dataclass(frozen=True, slots=True)
class Box:
    """A detected object, in pixels of the frame as displayed; `score` in [0, 1]."""

    box_xyxy: tuple[float, float, float, float]
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Frame:
    id: int
    boxes: tuple[Box, ...]  # best score first
    pts_seconds: float | None = None  # from the container's own zero; None unless asked for by ``times``


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body has not been read yet."""

    job_id: str
    complete: bool  # it has every frame that was requested
    frame_count: int
    response: requests.Response

    def frames(self) -> Iterator[Frame]:
        """Read the frames in order, once, in constant memory. Only for ``format=pairs``."""
        for record in ijson.items(ijson.from_iter(self.chunks()), "item", use_float=True):
            frame_id, boxes, *times = record
            yield Frame(
                frame_id,
                tuple(Box(tuple(box["box"]), box["label"], box["score"]) for box in boxes),
                times[0]["pts_seconds"] if times else None,
            )

    def chunks(self) -> Iterator[bytes]:
        """Read the raw body, once."""
        return cast(Iterator[bytes], self.response.iter_content(_CHUNK_BYTES))


class Framebox:
    """The service at `url`. As thread-safe as a session of requests."""

    def __init__(self, url: str = "http://localhost:8080") -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()

    @contextmanager
    def detect(self, video: Path, **options: str | float | bool) -> Iterator[Answer]:
        """Send `video`, wait until all its frames are analysed, and yield the answer.

        `options` are those of ``POST /v1/detections``. The file is streamed, and so is the answer.
        Raises Refused if the service refuses the request, OSError (as requests' errors are) if it is down.
        """
        query = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in options.items()
        }
        with (
            video.open("rb") as body,
            self._session.post(
                f"{self._url}/v1/detections",
                params=query,
                data=body,
                headers={"Content-Type": "application/octet-stream"},
                stream=True,
                timeout=(_CONNECT_SECONDS, None),  # the answer may take hours
            ) as response,
        ):
            if response.status_code != requests.codes.accepted:
                yield _answer(response)
                return
            report = response.json()
        address = f"{self._url}{report['links']['self']}"
        while report["state"] in ("queued", "running"):
            time.sleep(_ASK_EVERY_SECONDS)
            asked = self._session.get(address, timeout=(_CONNECT_SECONDS, _REPORT_SECONDS))
            if not asked.ok:
                raise Refused(_problem(asked))
            report = asked.json()
        rendering = {name: query[name] for name in _RENDERING_OPTIONS if name in query}
        with self._session.get(
            f"{address}/result", params=rendering, stream=True, timeout=(_CONNECT_SECONDS, None)
        ) as response:
            yield _answer(response)


def _answer(response: requests.Response) -> Answer:
    if not response.ok:
        raise Refused(_problem(response))
    return Answer(
        job_id=response.headers["Framebox-Job"],
        complete=response.headers["Framebox-Complete"] == "true",
        frame_count=int(response.headers["Framebox-Frames"]),
        response=response,
    )


def _problem(response: requests.Response) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], response.json())
    except requests.JSONDecodeError:
        return {"status": response.status_code, "detail": f"HTTP {response.status_code} {response.reason}"}
