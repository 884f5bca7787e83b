"""Every error that a client can see, each a class with a stable code. The page /docs/errors lists them.

An error knows its HTTP answer, a problem document of RFC 9457; views and the engine only pass it on. Its
``detail`` is for the client: it never holds a path, a traceback or an internal name. The page shows the
docstrings of the classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

Problem = dict[str, Any]


class FrameboxError(Exception):
    """An error with a stable code. All arguments are positional, so that it can be pickled.

    ``extensions`` are further members of the problem document: JSON values such as the name and value of a
    limit, or the allowed options.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, extensions: Problem | None = None) -> None:
        super().__init__(detail, extensions)
        self.detail = detail.encode(errors="backslashreplace").decode()  # a file's name may be any bytes
        self.extensions: Problem = dict(extensions or {})

    def __str__(self) -> str:
        return self.detail

    def to_problem(self) -> Problem:
        """Return the RFC 9457 document of this error, without ``instance``."""
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
    """The digest differs. Extensions: ``header``, ``algorithm``, ``expected``, ``received``."""

    code, status, title = "digest_mismatch", 400, "Digest does not match"


class BadRequest(FrameboxError):
    """The request is not valid HTTP, or uses a feature that is not supported."""

    code, status, title = "bad_request", 400, "Bad request"


class InvalidSource(FrameboxError):
    """The JSON body does not name a video that may be used. Extensions: ``parameter``, ``allowed``."""

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
    """The bytes are not a supported video container. Extensions: ``allowed``."""

    code, status, title = "unsupported_video", 415, "Not a video that we read"


class UnusableVideo(FrameboxError):
    code, status, title = "unusable_video", 422, "Unusable video"


class NoVideoStream(UnusableVideo):
    code, title = "no_video_stream", "No video stream"


class UnsupportedCodec(UnusableVideo):
    """The container is supported, but not the codec of its video. Extensions: ``codec``, ``allowed``."""

    code, title = "unsupported_codec", "Codec not supported"


class EncryptedVideo(UnusableVideo):
    """The container says that the video stream is encrypted, wholly or in part."""

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
    """The named video does not exist. Extensions: ``parameter``."""

    code, status, title = "source_not_found", 422, "Source not found"


class SourceChanged(FrameboxError):
    """The video has changed since its job was accepted."""

    code, status, title = "source_changed", 422, "Source has changed"


class UploadIsFinal(FrameboxError):
    """A PATCH request to an upload that was joined from others."""

    code, status, title = "upload_is_final", 403, "Upload is final"


class UploadNotFound(FrameboxError):
    code, status, title = "upload_not_found", 404, "No such upload"


class UploadUnfinished(FrameboxError):
    """Extensions: ``offset_bytes``, ``length_bytes`` (null: not known yet)."""

    code, status, title = "upload_unfinished", 409, "Upload is not finished"


class OffsetMismatch(FrameboxError):
    """Extensions: ``offset_bytes``, the offset of the upload."""

    code, status, title = "upload_offset_mismatch", 409, "Not the upload's offset"


class UploadGone(FrameboxError):
    """The upload has expired, or was used. Extensions: ``instance``, what it became."""

    code, status, title = "upload_gone", 410, "Upload is gone"


class UnsupportedTusVersion(FrameboxError):
    """Extensions: ``allowed``."""

    code, status, title = "tus_version", 412, "Another version of tus"


class UploadLocked(FrameboxError):
    """Another request is writing to the upload. Extensions: ``retry_after_seconds``."""

    code, status, title = "upload_locked", 423, "Upload is locked"


class ChecksumMismatch(FrameboxError):
    """The body does not match its Upload-Checksum; nothing of it was kept. Extensions: ``offset_bytes``."""

    code, status, title = "checksum_mismatch", 460, "Checksum mismatch"


class TooManyUploads(FrameboxError):
    """Extensions: ``limit``, ``retry_after_seconds``."""

    code, status, title = "too_many_uploads", 429, "Too many uploads"


class SourceRefused(FrameboxError):
    """The URL of the video, or the answer of its server, cannot be used. Extensions: ``source_status``."""

    code, status, title = "source_refused", 422, "Source refused"


class SourceUnreachable(FrameboxError):
    """The video could not be fetched, despite retries. Extensions: ``source_status``."""

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
    """Too many requests are waiting for their answers. Extensions: ``retry_after_seconds``."""

    code, status, title = "busy", 503, "Busy"


class InsufficientStorage(FrameboxError):
    """Extensions: ``needed_bytes``, ``available_bytes``."""

    code, status, title = "insufficient_storage", 507, "Insufficient storage"


class ModelFault(FrameboxError):
    code, status, title = "model_fault", 500, "The model failed"


class InternalError(FrameboxError):
    code, status, title = "internal_error", 500, "Internal error"


class BadGateway(FrameboxError):
    """nginx could not reach the HTTP workers, or lost the connection to them."""

    code, status, title = "bad_gateway", 502, "Bad gateway"


class GatewayTimeout(FrameboxError):
    code, status, title = "gateway_timeout", 504, "Gateway timed out"


def error_classes() -> dict[str, type[FrameboxError]]:
    """Return every error that a client can see, by its code."""
    waiting, found = FrameboxError.__subclasses__(), dict[str, type[FrameboxError]]()
    while waiting:
        kind = waiting.pop()
        found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found
