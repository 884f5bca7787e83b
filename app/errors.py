"""Every fault that a caller can be told, in one tree.

    FrameboxError
    ├── InvalidOption        400 invalid_option          ├── EngineUnavailable    503 engine_unavailable
    ├── EmptyBody            400 empty_body              ├── NotReady             503 not_ready
    ├── IncompleteBody       400 incomplete_body         ├── Busy                 503 busy
    ├── MalformedBody        400 malformed_body          ├── InsufficientStorage  507 insufficient_storage
    ├── DigestMismatch       400 digest_mismatch         ├── UnusableVideo        422
    ├── BadRequest           400 bad_request             │   ├── UnsupportedCodec     unsupported_codec
    ├── InvalidSource        400 invalid_source          │   ├── NoVideoStream        no_video_stream
    ├── RouteNotFound        404 not_found               │   ├── EncryptedVideo       encrypted
    ├── JobNotFound          404 job_not_found           │   ├── NothingDecodable     nothing_decodable
    ├── MethodNotAllowed     405 method_not_allowed      │   ├── VideoOverLimit       over_limit
    ├── UploadTooSlow        408 upload_too_slow         │   └── DamagedVideo         damaged
    ├── ResultNotReady       409 result_not_ready        ├── ModelFault           500 model_fault
    ├── JobWasCancelled      409 job_cancelled           ├── InternalError        500 internal_error
    ├── JobIsActive          409 job_active              ├── BadGateway           502 bad_gateway
    ├── LengthRequired       411 length_required         └── GatewayTimeout       504 gateway_timeout
    ├── PreconditionFailed   412 precondition_failed     resumable uploads:
    ├── BodyTooLarge         413 too_large               ├── UploadIsFinal        403 upload_is_final
    ├── AddressTooLong       414 address_too_long        ├── UploadNotFound       404 upload_not_found
    ├── UnsupportedVideo     415 unsupported_video       ├── UploadUnfinished     409 upload_unfinished
    ├── UnsupportedMediaType 415 unsupported_media_type  ├── OffsetMismatch       409 upload_offset_mismatch
    ├── RangeNotSatisfiable  416 range_not_satisfiable   ├── UploadGone           410 upload_gone
    ├── IdempotencyConflict  422 idempotency_conflict    ├── UnsupportedTusVersion 412 tus_version
    ├── SourceNotFound       422 source_not_found        ├── UploadLocked         423 upload_locked
    ├── SourceChanged        422 source_changed          ├── TooManyUploads       429 too_many_uploads
    ├── SourceRefused        422 source_refused          └── ChecksumMismatch     460 checksum_mismatch
    ├── SourceUnreachable    502 source_unreachable
    └── TooManyJobs          429 too_many_jobs

An error knows its HTTP answer, a problem document of RFC 9457; views and the engine only pass it on.
``detail`` is for the caller: never a path, a traceback or an internal name.
"""

from __future__ import annotations

from typing import Any, ClassVar

Problem = dict[str, Any]


class FrameboxError(Exception):
    """A fault with a stable code. Positional arguments alone, so that it survives pickling.

    ``extensions`` are the problem document's further members: plain JSON values such as a limit's
    name and value, or the options that are allowed.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, extensions: Problem | None = None) -> None:
        super().__init__(detail, extensions)
        self.detail = detail
        self.extensions: Problem = dict(extensions or {})

    def __str__(self) -> str:
        return self.detail

    def to_problem(self) -> Problem:
        """The RFC 9457 document of this error, without ``instance``."""
        return {
            **self.extensions,
            "type": f"/docs/errors#{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }


class InvalidOption(FrameboxError):
    """Extensions: ``parameter``, ``allowed`` (text or list); or ``errors``, a list of such objects."""

    code, status, title = "invalid_option", 400, "Invalid option"


class EmptyBody(FrameboxError):
    code, status, title = "empty_body", 400, "Empty body"


class IncompleteBody(FrameboxError):
    """Extensions: ``received_bytes``, ``expected_bytes``."""

    code, status, title = "incomplete_body", 400, "Incomplete body"


class MalformedBody(FrameboxError):
    code, status, title = "malformed_body", 400, "Malformed body"


class DigestMismatch(FrameboxError):
    """The body is not as announced. Extensions: ``header``, ``algorithm``, ``expected``, ``received``."""

    code, status, title = "digest_mismatch", 400, "Digest does not match"


class BadRequest(FrameboxError):
    """The request is no HTTP that we understand."""

    code, status, title = "bad_request", 400, "Bad request"


class InvalidSource(FrameboxError):
    """The JSON body names no video that may be used. Extensions: ``parameter``, ``allowed``."""

    code, status, title = "invalid_source", 400, "Invalid source"


class RouteNotFound(FrameboxError):
    code, status, title = "not_found", 404, "Not found"


class JobNotFound(FrameboxError):
    code, status, title = "job_not_found", 404, "No such job"


class MethodNotAllowed(FrameboxError):
    code, status, title = "method_not_allowed", 405, "Method not allowed"


class UploadTooSlow(FrameboxError):
    """Extensions: ``min_bytes_per_second``, ``received_bytes``, ``expected_bytes``."""

    code, status, title = "upload_too_slow", 408, "Upload too slow"


class ResultNotReady(FrameboxError):
    """Extensions: ``state``."""

    code, status, title = "result_not_ready", 409, "Result not ready"


class JobWasCancelled(FrameboxError):
    code, status, title = "job_cancelled", 409, "Job was cancelled"


class JobIsActive(FrameboxError):
    code, status, title = "job_active", 409, "Job is active"


class PreconditionFailed(FrameboxError):
    code, status, title = "precondition_failed", 412, "Precondition failed"


class LengthRequired(FrameboxError):
    code, status, title = "length_required", 411, "Length required"


class BodyTooLarge(FrameboxError):
    """Extensions: ``limit_bytes``."""

    code, status, title = "too_large", 413, "Body too large"


class AddressTooLong(FrameboxError):
    code, status, title = "address_too_long", 414, "Address too long"


class RangeNotSatisfiable(FrameboxError):
    code, status, title = "range_not_satisfiable", 416, "Range not satisfiable"


class UnsupportedMediaType(FrameboxError):
    """Extensions: ``allowed``."""

    code, status, title = "unsupported_media_type", 415, "Unsupported media type"


class UnsupportedVideo(FrameboxError):
    """The bytes are no video container that we read. Extensions: ``allowed``."""

    code, status, title = "unsupported_video", 415, "Not a video that we read"


class UnusableVideo(FrameboxError):
    code, status, title = "unusable_video", 422, "Unusable video"


class NoVideoStream(UnusableVideo):
    code, title = "no_video_stream", "No video stream"


class UnsupportedCodec(UnusableVideo):
    """The container is read, but not the codec of its video. Extensions: ``codec``, ``allowed``."""

    code, title = "unsupported_codec", "Codec not supported"


class EncryptedVideo(UnusableVideo):
    """The video stream is encrypted, wholly or in part, by what the container says of it."""

    code, title = "encrypted", "Encrypted video"


class NothingDecodable(UnusableVideo):
    code, title = "nothing_decodable", "No frame could be decoded"


class VideoOverLimit(UnusableVideo):
    """Extensions: ``limit`` (the setting's name), ``limit_value``, ``value``."""

    code, title = "over_limit", "Video is over a limit"


class DamagedVideo(UnusableVideo):
    """With ``on_damage=fail``: at least one frame could not be decoded."""

    code, title = "damaged", "Video is damaged"


class IdempotencyConflict(FrameboxError):
    """The Idempotency-Key belongs to another request. Extensions: ``differs``, ``instance``."""

    code, status, title = "idempotency_conflict", 422, "Idempotency-Key belongs to another request"


class SourceNotFound(FrameboxError):
    """There is no video where the request says. Extensions: ``parameter``."""

    code, status, title = "source_not_found", 422, "Source not found"


class SourceChanged(FrameboxError):
    """The video is no longer what it was when its job was accepted."""

    code, status, title = "source_changed", 422, "Source has changed"


class UploadIsFinal(FrameboxError):
    """A PATCH to an upload that was joined from others."""

    code, status, title = "upload_is_final", 403, "Upload is final"


class UploadNotFound(FrameboxError):
    code, status, title = "upload_not_found", 404, "No such upload"


class UploadUnfinished(FrameboxError):
    """Extensions: ``offset_bytes``, ``length_bytes`` (null: not told yet)."""

    code, status, title = "upload_unfinished", 409, "Upload is not finished"


class OffsetMismatch(FrameboxError):
    """Extensions: ``offset_bytes``, where the upload stands."""

    code, status, title = "upload_offset_mismatch", 409, "Not the upload's offset"


class UploadGone(FrameboxError):
    """The upload has expired, or was used. Extensions: ``instance``, what it became."""

    code, status, title = "upload_gone", 410, "Upload is gone"


class UnsupportedTusVersion(FrameboxError):
    """Extensions: ``allowed``."""

    code, status, title = "tus_version", 412, "Another version of tus"


class UploadLocked(FrameboxError):
    """Another request writes to the upload, and did not stop. Extensions: ``retry_after_seconds``."""

    code, status, title = "upload_locked", 423, "Upload is locked"


class ChecksumMismatch(FrameboxError):
    """The body is not what its Upload-Checksum says; nothing of it was kept. Extensions: ``offset_bytes``."""

    code, status, title = "checksum_mismatch", 460, "Checksum mismatch"


class TooManyUploads(FrameboxError):
    """Extensions: ``limit``, ``retry_after_seconds``."""

    code, status, title = "too_many_uploads", 429, "Too many uploads"


class SourceRefused(FrameboxError):
    """The video's URL, or what its server answered, may not be used. Extensions: ``source_status``."""

    code, status, title = "source_refused", 422, "Source refused"


class SourceUnreachable(FrameboxError):
    """The video could not be fetched, however often that was tried. Extensions: ``source_status``."""

    code, status, title = "source_unreachable", 502, "Source unreachable"


class TooManyJobs(FrameboxError):
    """Extensions: ``limit``, ``retry_after_seconds``."""

    code, status, title = "too_many_jobs", 429, "Too many jobs"


class EngineUnavailable(FrameboxError):
    """Extensions: ``retry_after_seconds``."""

    code, status, title = "engine_unavailable", 503, "Engine unavailable"


class NotReady(FrameboxError):
    """Extensions: ``reasons``, ``checks``."""

    code, status, title = "not_ready", 503, "Not ready"


class Busy(FrameboxError):
    """Too many requests wait for their answers. Extensions: ``retry_after_seconds``."""

    code, status, title = "busy", 503, "Busy"


class InsufficientStorage(FrameboxError):
    """Extensions: ``needed_bytes``, ``available_bytes``."""

    code, status, title = "insufficient_storage", 507, "Insufficient storage"


class ModelFault(FrameboxError):
    code, status, title = "model_fault", 500, "The model failed"


class InternalError(FrameboxError):
    code, status, title = "internal_error", 500, "Internal error"


class BadGateway(FrameboxError):
    """nginx could not reach the HTTP workers, or lost them midway."""

    code, status, title = "bad_gateway", 502, "Bad gateway"


class GatewayTimeout(FrameboxError):
    code, status, title = "gateway_timeout", 504, "Gateway timed out"


def error_class(code: str) -> type[FrameboxError]:
    """Return the class whose errors have `code`. KeyError if there is none."""
    waiting, found = [FrameboxError], dict[str, type[FrameboxError]]()
    while waiting:
        kind = waiting.pop()
        found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found[code]
