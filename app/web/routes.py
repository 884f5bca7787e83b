"""The routes as data: `application.py` binds views to them; `openapi.py` and the pages describe them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app import errors
from app.errors import FrameboxError
from app.jobs.job import JobState, SourceKind
from app.pipeline.formats import MEDIA_TYPES
from app.pipeline.options import TIMED_FORMATS, DocumentFormat
from app.web import schemas
from app.web.options import REQUEST_OPTIONS
from app.web.report import JobReport

JSON = "application/json"
HTML = "text/html"
MAX_PAGE_JOBS = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """A route's answer when nothing fails. `shape` is that of its JSON, if it has one."""

    status: int
    text: str
    media_types: tuple[str, ...] = (JSON,)
    shape: type[BaseModel] | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    place: str  # "query", "path" or "header"
    text: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Route:
    """One method at one address. `rule` is in Flask's notation; `name` is the operation's id."""

    method: str
    rule: str
    name: str
    text: str
    answers: tuple[Answer, ...] = ()
    errors: tuple[type[FrameboxError], ...] = ()
    parameters: tuple[Parameter, ...] = ()
    takes_video: bool = False
    takes_chunk: bool = False  # of a resumable upload
    takes_options: bool = False  # those of DetectionOptions, in the query string

    @property
    def is_public(self) -> bool:
        return not self.rule.startswith("/_")


def query_parameter(name: str, text: str, **schema: Any) -> Parameter:
    return Parameter(name, "query", text, schema or {"type": "string"})


def _choice(name: str, text: str, **schema: Any) -> Parameter:
    """Return a query parameter with fixed values."""
    return query_parameter(name, text, type="string", enum=REQUEST_OPTIONS[name], **schema)


def _header(name: str, text: str, **schema: Any) -> Parameter:
    return Parameter(name, "header", text, schema or {"type": "string"})


def _id(name: str, text: str) -> Parameter:
    return Parameter(name, "path", text, {"type": "string", "pattern": "^[0-9a-f]{32}$"})


def _empty(status: int, text: str) -> Answer:
    """Return an answer without a body."""
    return Answer(status, text, media_types=())


# What a JSON body may name in place of the video.
NAMED_KINDS: dict[SourceKind, str] = {
    SourceKind.PATH: "a file in one of the administrator's ingest folders; it is read in place",
    SourceKind.UPLOAD: "the id of a finished resumable upload, which its job takes over",
    SourceKind.URL: "https; the video is fetched, in as many requests as it takes, and the job waits for it",
}

_FORMAT = _choice("format", "The document's format.", default=DocumentFormat.PAIRS)
_TIMES = _choice(
    "times",
    "Whether each frame has the time at which it is shown: `pts_seconds`, as ffprobe's pts_time, from the "
    f"container's own zero. For the formats {', '.join(TIMED_FORMATS)}.",
    default="false",
)
_JOB_ID = _id("job_id", "The job's id.")
_PREFER = _header(
    "Prefer",
    "RFC 7240: `respond-async` answers 202 at once, `wait=N` after N seconds at most. Without it, the "
    "request waits for the document.",
)
_KEY = _header(
    "Idempotency-Key",
    "Identifies the request: if it is sent again with the same key, the same job answers it, and its body is "
    "not read.",
    type="string",
    minLength=1,
    maxLength=255,
)
_DIGESTS = tuple(
    _header(
        name,
        f"{what} as `sha-256=:BASE64:` or `sha-512=:BASE64:` (RFC 9530); for a form, that of the whole form. "
        "A body that does not match is refused, and nothing of it is kept.",
    )
    for name, what in (("Repr-Digest", "The body's digest"), ("Content-Digest", "The same"))
)
_PRIORITY = _choice(
    "priority",
    "Which jobs run first. By default `interactive` if the client waits for the answer, else `batch`.",
)
_ATTACH = _choice(
    "attach", "Whether an existing job for the same video and options may answer, instead of a new one."
)
_CALLBACK = query_parameter(
    "callback",
    "An https address to which the report is posted when the job has ended, signed as in Standard Webhooks.",
    type="string",
    format="uri",
)
_DOCUMENT = Answer(
    200,
    "The document: every analysed frame and its boxes. Headers: Framebox-Job, Framebox-Frames, "
    "Framebox-Complete, Framebox-Attached, ETag, Repr-Digest, Unencoded-Digest, Link. With gzip in "
    "Accept-Encoding, documents from 64 KiB are compressed, without Content-Length and Repr-Digest.",
    tuple(dict.fromkeys(MEDIA_TYPES.values())),
    schemas.Document,
)
_PAGE = Answer(200, "A page.", (HTML,))
_REPORT = Answer(200, "The job's report.", shape=JobReport)
_VIDEO_ERRORS: tuple[type[FrameboxError], ...] = (
    errors.UnsupportedVideo,
    *errors.UnusableVideo.__subclasses__(),
    errors.ModelFault,
)
_SOURCE_ERRORS = (errors.SourceNotFound, errors.SourceChanged, errors.SourceRefused, errors.SourceUnreachable)
_BODY_ERRORS = (  # of every request with a video or a part of one
    errors.InvalidOption,
    errors.EmptyBody,
    errors.IncompleteBody,
    errors.UploadTooSlow,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.Busy,
    errors.InsufficientStorage,
)

_BYTES: dict[str, Any] = {"type": "integer", "minimum": 0}
_UPLOAD_ID = _id("upload_id", "The upload's id.")
_TUS = _header("Tus-Resumable", "The version of tus: 1.0.0.", type="string", const="1.0.0")
_CHECKSUM = _header("Upload-Checksum", "`sha256`, `sha1` or `md5`, a space, and the body's digest in base64.")
_TUS_SUPPORT = _empty(204, "Headers: Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm.")
_ONE_UPLOAD_ERRORS = (
    errors.UploadNotFound,
    errors.UploadGone,
    errors.UnsupportedTusVersion,
    errors.UploadLocked,
    errors.TooManyJobs,
)
_CHUNK_ERRORS = (*_BODY_ERRORS, errors.ChecksumMismatch)
_APPEND_ERRORS = (*_CHUNK_ERRORS, *_ONE_UPLOAD_ERRORS, errors.UploadIsFinal, errors.OffsetMismatch)

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/detections",
        "create_detection",
        "Send a video, or JSON that names one, and get the boxes of every frame.",
        answers=(
            _DOCUMENT,
            Answer(
                202,
                "The job's report; its address is in Location. Also if too many requests already wait.",
                shape=JobReport,
            ),
        ),
        errors=(
            *_BODY_ERRORS,
            errors.MalformedBody,
            errors.DigestMismatch,
            errors.InvalidSource,
            errors.JobWasCancelled,
            errors.IdempotencyConflict,
            errors.UploadNotFound,
            errors.UploadUnfinished,
            errors.UploadGone,
            errors.UploadLocked,
            errors.TooManyJobs,
            errors.EngineUnavailable,
            *_SOURCE_ERRORS,
            *_VIDEO_ERRORS,
        ),
        parameters=(_FORMAT, _TIMES, _PRIORITY, _ATTACH, _CALLBACK, _PREFER, _KEY, *_DIGESTS),
        takes_video=True,
        takes_options=True,
    ),
    Route(
        "POST",
        "/v1/uploads",
        "create_upload",
        "Create a resumable upload (tus 1.0.0), or join finished parts into one.",
        answers=(
            _empty(
                201,
                "The upload; its address is in Location. Headers: Upload-Expires, Upload-Offset; "
                "Framebox-Job and Link if it has become a job.",
            ),
        ),
        errors=(
            *_CHUNK_ERRORS,
            errors.UnsupportedTusVersion,
            errors.EngineUnavailable,
            errors.UploadNotFound,
            errors.UploadGone,
            errors.UploadUnfinished,
            errors.TooManyUploads,
            errors.TooManyJobs,
        ),
        parameters=(
            _TUS,
            _header("Upload-Length", "The length in bytes.", **_BYTES),
            _header("Upload-Defer-Length", "`1`: the length is sent later."),
            _header(
                "Upload-Metadata",
                "Pairs of a key and a value in base64. `filename`: the video's name. `detect`: options "
                "such as `model=hog-people&stride=10`, or empty; the job starts with the last byte.",
            ),
            _header(
                "Upload-Concat",
                "`partial`: a part of another upload. `final;` and the parts' addresses: join them.",
            ),
            _CHECKSUM,
        ),
        takes_chunk=True,
    ),
    Route(
        "OPTIONS",
        "/v1/uploads",
        "describe_uploads",
        "The supported versions and extensions of tus, and the largest upload.",
        answers=(_TUS_SUPPORT,),
    ),
    Route(
        "HEAD",
        "/v1/uploads/<upload_id>",
        "get_upload",
        "An upload's offset. A request that is still writing to it is stopped.",
        answers=(
            _empty(
                200,
                "Headers: Upload-Offset, Upload-Length, Upload-Expires, Upload-Metadata, Upload-Concat; "
                "Framebox-Job and Link once it has become a job.",
            ),
        ),
        errors=_ONE_UPLOAD_ERRORS,
        parameters=(_UPLOAD_ID, _TUS),
    ),
    Route(
        "PATCH",
        "/v1/uploads/<upload_id>",
        "append_to_upload",
        "Resume an upload. If the body breaks off, the part that arrived is kept.",
        answers=(
            _empty(
                204, "Headers: Upload-Offset, Upload-Expires; Framebox-Job and Link once it has become a job."
            ),
        ),
        errors=_APPEND_ERRORS,
        parameters=(
            _UPLOAD_ID,
            _TUS,
            _header("Upload-Offset", "Where the body begins: the upload's offset.", **_BYTES),
            _header("Upload-Length", "The length, if it was not sent before.", **_BYTES),
            _CHECKSUM,
        ),
        takes_chunk=True,
    ),
    Route(
        "DELETE",
        "/v1/uploads/<upload_id>",
        "remove_upload",
        "Delete an upload. If it has become a job, the job continues.",
        answers=(_empty(204, "The upload is deleted."),),
        errors=_ONE_UPLOAD_ERRORS,
        parameters=(_UPLOAD_ID, _TUS),
    ),
    Route(
        "POST",
        "/v1/uploads/<upload_id>",
        "override_method",
        "For clients that cannot send PATCH, HEAD or DELETE: X-HTTP-Method-Override names the method.",
        answers=(_empty(200, "As for HEAD."), _empty(204, "As for PATCH and DELETE.")),
        errors=_APPEND_ERRORS,
        parameters=(_UPLOAD_ID, _TUS, _header("X-HTTP-Method-Override", "The method.")),
        takes_chunk=True,
    ),
    Route(
        "OPTIONS",
        "/v1/uploads/<upload_id>",
        "describe_upload",
        "The same as for the address of all uploads.",
        answers=(_TUS_SUPPORT,),
        parameters=(_UPLOAD_ID,),
    ),
    Route(
        "GET",
        "/v1/jobs",
        "list_jobs",
        "List the jobs, newest first.",
        answers=(Answer(200, "A page of jobs.", shape=schemas.JobList),),
        errors=(errors.InvalidOption,),
        parameters=(
            query_parameter("state", "Only jobs in this state.", type="string", enum=[*JobState]),
            query_parameter(
                "limit", "Jobs per page.", type="integer", minimum=1, maximum=MAX_PAGE_JOBS, default=50
            ),
            query_parameter("cursor", "The last job seen, as in `next` of the previous page."),
        ),
    ),
    Route(
        "GET",
        "/v1/jobs/<job_id>",
        "get_job",
        "A job's report.",
        answers=(_REPORT,),
        errors=(errors.JobNotFound,),
        parameters=(_JOB_ID,),
    ),
    Route(
        "DELETE",
        "/v1/jobs/<job_id>",
        "remove_job",
        "Cancel a queued or running job; delete a finished one with its files.",
        answers=(
            Answer(
                202,
                "Cancellation is requested; the body is the report. A queued job is cancelled at once, a "
                "running one within seconds.",
                shape=JobReport,
            ),
            _empty(204, "The finished job and its files are deleted."),
        ),
        errors=(errors.JobNotFound,),
        parameters=(_JOB_ID,),
    ),
    Route(
        "GET",
        "/v1/jobs/<job_id>/result",
        "get_result",
        "A job's document, with ranges and conditional requests; for a failed job, its problem document.",
        answers=(
            _DOCUMENT,
            Answer(206, "The requested range.", _DOCUMENT.media_types),
            _empty(304, "The client's copy is current."),
        ),
        errors=(
            errors.InvalidOption,
            errors.JobNotFound,
            errors.ResultNotReady,
            errors.JobWasCancelled,
            errors.PreconditionFailed,
            errors.RangeNotSatisfiable,
            errors.Busy,
            errors.InsufficientStorage,
            *_SOURCE_ERRORS,
            *_VIDEO_ERRORS,
        ),
        parameters=(_JOB_ID, _FORMAT, _TIMES),
    ),
    Route(
        "GET",
        "/v1/jobs/<job_id>/events",
        "follow_job",
        "The job's report whenever it changes, as server-sent events `progress` and, last, `end`.",
        answers=(
            Answer(200, "The events; `data` is the report.", ("text/event-stream",)),
            _empty(204, "The client has already seen the job's end (Last-Event-ID)."),
        ),
        errors=(errors.JobNotFound, errors.Busy),
        parameters=(_JOB_ID, _header("Last-Event-ID", "The last event seen.")),
    ),
    Route(
        "GET",
        "/v1/models",
        "list_models",
        "The models that a request can choose.",
        answers=(Answer(200, "The models.", shape=schemas.ModelList),),
    ),
    Route(
        "GET",
        "/livez",
        "is_alive",
        "Whether the HTTP server answers.",
        answers=(Answer(200, "It answers.", shape=schemas.Alive),),
    ),
    Route(
        "GET",
        "/readyz",
        "is_ready",
        "Whether a job posted now would be run.",
        answers=(Answer(200, "The service is ready.", shape=schemas.Readiness),),
        errors=(errors.NotReady,),
    ),
    Route(
        "GET",
        "/metrics",
        "get_metrics",
        "Metrics in Prometheus' text format.",
        answers=(Answer(200, "The metrics.", ("text/plain",)),),
    ),
    Route(
        "GET",
        "/openapi.json",
        "get_openapi",
        "This description, as OpenAPI 3.1.",
        answers=(Answer(200, "The description."),),
    ),
    Route("GET", "/docs", "show_docs", "This description as a web page.", answers=(_PAGE,)),
    Route("GET", "/docs/errors", "show_errors", "Every error's code, status and meaning.", answers=(_PAGE,)),
    Route("GET", "/", "show_dashboard", "An overview of the jobs.", answers=(_PAGE,)),
    Route("GET", "/_internal/admit", "admit_upload", "nginx asks whether an upload may begin."),
    Route(
        "GET",
        "/_internal/admit-upload",
        "admit_upload_body",
        "nginx asks the same about a request of a resumable upload.",
    ),
    Route(
        "GET", "/_internal/again", "answer_again", "nginx asks for the answer to a request with a known key."
    ),
    Route("POST", "/_internal/body", "create_from_body", "nginx has written a video to disk."),
    Route("GET", "/_internal/unspooled", "explain_unspooled", "nginx asks why it could not write a video."),
)
