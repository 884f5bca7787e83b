"""The table of routes, as data: `application.py` binds views to it, `openapi.py` and the pages tell of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app import errors
from app.errors import FrameboxError
from app.jobs.job import JobState, Priority, SourceKind
from app.jobs.report import JobReport
from app.pipeline.formats import MEDIA_TYPES
from app.pipeline.options import TIMED_FORMATS, DocumentFormat
from app.web import schemas

JSON = "application/json"
HTML = "text/html"
MAX_PAGE_JOBS = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route may answer when all is well. `shape` is its JSON's, where it has one."""

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


# What a JSON body may name in place of the video.
NAMED_KINDS: dict[SourceKind, str] = {
    SourceKind.PATH: "a file in one of the administrator's ingest folders; it is read in place",
    SourceKind.UPLOAD: "the id of a finished resumable upload, which its job takes over",
    SourceKind.URL: "https; the video is fetched, in as many requests as it takes, and the job waits for it",
}

_TEXT = {"type": "string"}
_FORMAT = Parameter(
    "format",
    "query",
    "The form in which the document is given out.",
    {"type": "string", "enum": [*DocumentFormat], "default": DocumentFormat.PAIRS},
)
_TIMES = Parameter(
    "times",
    "query",
    "Whether each frame comes with the time at which it is shown: `pts_seconds`, as ffprobe's pts_time, from "
    f"the container's own zero. For the formats {', '.join(TIMED_FORMATS)}.",
    {"type": "string", "enum": ["true", "false"], "default": "false"},
)
_JOB_ID = Parameter("job_id", "path", "The job's id.", {"type": "string", "pattern": "^[0-9a-f]{32}$"})
_PREFER = Parameter(
    "Prefer",
    "header",
    "RFC 7240: `respond-async` answers 202 at once, `wait=N` after N seconds; else the answer waits.",
    _TEXT,
)
_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "Names the request: sent again with its key it is answered by the same job, and its body is not read.",
    {"type": "string", "minLength": 1, "maxLength": 255},
)
_DIGESTS = tuple(
    Parameter(
        name,
        "header",
        f"{what} as `sha-256=:BASE64:` or `sha-512=:BASE64:` (RFC 9530); of a form, that of the whole form. "
        "A body that is another is refused, and nothing of it is kept.",
        _TEXT,
    )
    for name, what in (("Repr-Digest", "The body's digest"), ("Content-Digest", "The same"))
)
_PRIORITY = Parameter(
    "priority",
    "query",
    "Who is served first; `interactive` if the caller waits for the answer, else `batch`.",
    {"type": "string", "enum": [*Priority]},
)
_ATTACH = Parameter(
    "attach",
    "query",
    "Whether the job of an equal video with equal options will do, or a new run is wanted.",
    {"type": "string", "enum": ["true", "false"]},
)
_CALLBACK = Parameter(
    "callback",
    "query",
    "An https address to which the report is posted when the job has ended, signed as Standard Webhooks.",
    {"type": "string", "format": "uri"},
)
_DOCUMENT = Answer(
    200,
    "The document: every analysed frame and its boxes. Headers: Framebox-Job, Framebox-Frames, "
    "Framebox-Complete, Framebox-Attached, ETag, Repr-Digest, Unencoded-Digest, Link. Compressed, without "
    "length and Repr-Digest, if Accept-Encoding has gzip and it is 64 KiB or more.",
    tuple(dict.fromkeys(MEDIA_TYPES.values())),
    schemas.Document,
)
_REPORT = Answer(200, "The job's report.", shape=JobReport)
_VIDEO_ERRORS = (
    errors.UnsupportedVideo,
    errors.NoVideoStream,
    errors.UnsupportedCodec,
    errors.EncryptedVideo,
    errors.NothingDecodable,
    errors.VideoOverLimit,
    errors.DamagedVideo,
    errors.ModelFault,
)
_FETCH_ERRORS = (errors.SourceRefused, errors.SourceUnreachable)
_UPLOAD_ERRORS = (
    errors.InvalidOption,
    errors.EmptyBody,
    errors.IncompleteBody,
    errors.MalformedBody,
    errors.DigestMismatch,
    errors.UploadTooSlow,
    errors.InvalidSource,
    errors.JobWasCancelled,
    errors.IdempotencyConflict,
    errors.SourceNotFound,
    errors.SourceChanged,
    errors.UploadNotFound,
    errors.UploadUnfinished,
    errors.UploadGone,
    errors.UploadLocked,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.TooManyJobs,
    errors.EngineUnavailable,
    errors.Busy,
    errors.InsufficientStorage,
)

_BYTES = {"type": "integer", "minimum": 0}
_UPLOAD_ID = Parameter(
    "upload_id", "path", "The upload's id.", {"type": "string", "pattern": "^[0-9a-f]{32}$"}
)
_TUS = Parameter(
    "Tus-Resumable", "header", "The version of tus: 1.0.0.", {"type": "string", "const": "1.0.0"}
)
_CHECKSUM = Parameter(
    "Upload-Checksum", "header", "`sha256`, `sha1` or `md5`, a space, and the body's digest in base64.", _TEXT
)
_ONE_UPLOAD_ERRORS = (
    errors.UploadNotFound,
    errors.UploadGone,
    errors.UnsupportedTusVersion,
    errors.UploadLocked,
    errors.TooManyJobs,
)
_TUS_ERRORS = (
    errors.InvalidOption,
    errors.IncompleteBody,
    errors.EmptyBody,
    errors.UploadTooSlow,
    errors.UnsupportedTusVersion,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.ChecksumMismatch,
    errors.Busy,
    errors.InsufficientStorage,
)

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/detections",
        "create_detection",
        "Send a video, or JSON that names one; get the boxes of every frame.",
        answers=(
            _DOCUMENT,
            Answer(
                202,
                "The job's report; its address is in Location. Also where too many wait already.",
                shape=JobReport,
            ),
        ),
        errors=(*_UPLOAD_ERRORS, *_FETCH_ERRORS, *_VIDEO_ERRORS),
        parameters=(_FORMAT, _TIMES, _PRIORITY, _ATTACH, _CALLBACK, _PREFER, _KEY, *_DIGESTS),
        takes_video=True,
        takes_options=True,
    ),
    Route(
        "POST",
        "/v1/uploads",
        "create_upload",
        "Begin a resumable upload (tus 1.0.0), or join finished parts to one.",
        answers=(
            Answer(
                201,
                "The upload; its address is in Location. Headers: Upload-Expires, Upload-Offset; "
                "Framebox-Job and Link, if it is a job already.",
                (),
            ),
        ),
        errors=(
            *_TUS_ERRORS,
            errors.EngineUnavailable,
            errors.UploadUnfinished,
            errors.TooManyUploads,
        ),
        parameters=(
            _TUS,
            Parameter("Upload-Length", "header", "The length in bytes.", _BYTES),
            Parameter("Upload-Defer-Length", "header", "`1`: the length is told later.", _TEXT),
            Parameter(
                "Upload-Metadata",
                "header",
                "Pairs of a key and a value in base64. `filename`: the video's name. `detect`: options "
                "such as `model=hog-people&stride=10`, or empty; the job starts with the last byte.",
                _TEXT,
            ),
            Parameter(
                "Upload-Concat",
                "header",
                "`partial`: a part of another upload. `final;` and the parts' addresses: join them.",
                _TEXT,
            ),
            _CHECKSUM,
        ),
        takes_chunk=True,
    ),
    Route(
        "OPTIONS",
        "/v1/uploads",
        "describe_uploads",
        "What of tus there is: versions, extensions, the largest upload.",
        answers=(
            Answer(204, "Headers: Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm.", ()),
        ),
    ),
    Route(
        "HEAD",
        "/v1/uploads/<upload_id>",
        "get_upload",
        "How far an upload is. A request that still writes to it is stopped.",
        answers=(
            Answer(
                200,
                "Headers: Upload-Offset, Upload-Length, Upload-Expires, Upload-Metadata, Upload-Concat; "
                "Framebox-Job and Link once it has become a job.",
                (),
            ),
        ),
        errors=_ONE_UPLOAD_ERRORS,
        parameters=(_UPLOAD_ID, _TUS),
    ),
    Route(
        "PATCH",
        "/v1/uploads/<upload_id>",
        "append_to_upload",
        "Go on with an upload. Whatever arrives of the body is kept.",
        answers=(
            Answer(
                204,
                "Headers: Upload-Offset, Upload-Expires; Framebox-Job and Link once it has become a job.",
                (),
            ),
        ),
        errors=(*_TUS_ERRORS, *_ONE_UPLOAD_ERRORS, errors.UploadIsFinal, errors.OffsetMismatch),
        parameters=(
            _UPLOAD_ID,
            _TUS,
            Parameter("Upload-Offset", "header", "Where the body begins: the upload's offset.", _BYTES),
            Parameter("Upload-Length", "header", "The length, if it was not told before.", _BYTES),
            _CHECKSUM,
        ),
        takes_chunk=True,
    ),
    Route(
        "DELETE",
        "/v1/uploads/<upload_id>",
        "remove_upload",
        "Give an upload up. A job that it has become goes on.",
        answers=(Answer(204, "It is gone.", ()),),
        errors=_ONE_UPLOAD_ERRORS,
        parameters=(_UPLOAD_ID, _TUS),
    ),
    Route(
        "POST",
        "/v1/uploads/<upload_id>",
        "override_method",
        "For clients that cannot send PATCH, HEAD or DELETE: X-HTTP-Method-Override names the method.",
        answers=(Answer(204, "As the method that is named.", ()),),
        errors=(*_TUS_ERRORS, *_ONE_UPLOAD_ERRORS, errors.UploadIsFinal, errors.OffsetMismatch),
        parameters=(
            _UPLOAD_ID,
            _TUS,
            Parameter("X-HTTP-Method-Override", "header", "The method.", _TEXT),
        ),
        takes_chunk=True,
    ),
    Route(
        "OPTIONS",
        "/v1/uploads/<upload_id>",
        "describe_upload",
        "As for all uploads.",
        answers=(
            Answer(204, "Headers: Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm.", ()),
        ),
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
            Parameter("state", "query", "Jobs of this state alone.", {"type": "string", "enum": [*JobState]}),
            Parameter(
                "limit",
                "query",
                "Jobs a page.",
                {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_JOBS, "default": 50},
            ),
            Parameter("cursor", "query", "The last job seen: see `next` of the page before.", _TEXT),
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
        "Cancel a job that is queued or running; forget one that has ended, with its files.",
        answers=(
            Answer(
                202,
                "Cancellation was asked for: the report. A queued job is cancelled at once, a running one "
                "within seconds.",
                shape=JobReport,
            ),
            Answer(204, "The job had ended; it and its files are gone.", ()),
        ),
        errors=(errors.JobNotFound,),
        parameters=(_JOB_ID,),
    ),
    Route(
        "GET",
        "/v1/jobs/<job_id>/result",
        "get_result",
        "A job's document; ranges and conditions as HTTP has them. A failed job's problem document.",
        answers=(
            _DOCUMENT,
            Answer(206, "The range that was asked for.", _DOCUMENT.media_types),
            Answer(304, "The client has it already.", ()),
        ),
        errors=(
            errors.InvalidOption,
            errors.JobNotFound,
            errors.ResultNotReady,
            errors.JobWasCancelled,
            errors.PreconditionFailed,
            errors.RangeNotSatisfiable,
            errors.SourceNotFound,
            errors.SourceChanged,
            *_FETCH_ERRORS,
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
            Answer(204, "The client has seen the job's end (Last-Event-ID).", ()),
        ),
        errors=(errors.JobNotFound, errors.Busy),
        parameters=(_JOB_ID, Parameter("Last-Event-ID", "header", "The last event seen.", _TEXT)),
    ),
    Route(
        "GET",
        "/v1/models",
        "list_models",
        "The models that can be asked for.",
        answers=(Answer(200, "The models.", shape=schemas.ModelList),),
    ),
    Route(
        "GET",
        "/livez",
        "is_alive",
        "Whether the HTTP side answers.",
        answers=(Answer(200, "It does.", shape=schemas.Alive),),
    ),
    Route(
        "GET",
        "/readyz",
        "is_ready",
        "Whether a job posted now would be run.",
        answers=(Answer(200, "It would.", shape=schemas.Readiness),),
        errors=(errors.NotReady,),
    ),
    Route(
        "GET",
        "/metrics",
        "get_metrics",
        "Counters in Prometheus' text format.",
        answers=(Answer(200, "The metrics.", ("text/plain",)),),
    ),
    Route(
        "GET",
        "/openapi.json",
        "get_openapi",
        "This description, as OpenAPI 3.1.",
        answers=(Answer(200, "The description."),),
    ),
    Route(
        "GET",
        "/docs",
        "show_docs",
        "This description, to be read.",
        answers=(Answer(200, "A page.", (HTML,)),),
    ),
    Route(
        "GET",
        "/docs/errors",
        "show_errors",
        "Every error's code, status and meaning.",
        answers=(Answer(200, "A page.", (HTML,)),),
    ),
    Route("GET", "/", "show_dashboard", "The jobs at a glance.", answers=(Answer(200, "A page.", (HTML,)),)),
    Route("GET", "/_internal/admit", "admit_upload", "nginx asks whether an upload may begin."),
    Route(
        "GET",
        "/_internal/admit-upload",
        "admit_upload_body",
        "nginx asks the same about a part of an upload.",
    ),
    Route("GET", "/_internal/again", "answer_again", "nginx asks for the answer to a key that is known."),
    Route("POST", "/_internal/body", "create_from_body", "nginx has written a video to disk by itself."),
    Route("GET", "/_internal/unspooled", "explain_unspooled", "nginx asks why it could not write a video."),
)
