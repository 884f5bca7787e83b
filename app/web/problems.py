"""Every error as a problem document (RFC 9457)."""

from __future__ import annotations

import json
from typing import Any

import orjson
import structlog
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from app import errors
from app.errors import FrameboxError, Problem
from app.storage.space import is_disk_full
from app.web.report import ADDRESSES

_log = structlog.get_logger()

PROBLEM_TYPE = "application/problem+json"

_BY_STATUS: dict[int, type[FrameboxError]] = {
    404: errors.RouteNotFound,
    412: errors.PreconditionFailed,
    413: errors.BodyTooLarge,
    414: errors.AddressTooLong,
    415: errors.UnsupportedMediaType,
    416: errors.RangeNotSatisfiable,
}


def problem_of(error: FrameboxError) -> Problem:
    """Return the error's problem document. The id of a job or upload becomes its address, `instance`."""
    problem: Problem = {}
    for name, value in error.to_problem().items():
        if name in ADDRESSES:
            problem["instance"] = f"{ADDRESSES[name]}/{value}"
        else:
            problem[name] = value
    return problem


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """Answer with `problem`, whose ``status`` is the answer's; adds ``request_id`` and Retry-After."""
    body = orjson.dumps({**problem, "request_id": g.get("request_id")})
    response = Response(body, status=int(problem["status"]), mimetype=PROBLEM_TYPE, headers=headers)
    retry_after = problem.get("retry_after_seconds")
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    response.headers["Cache-Control"] = "no-store"
    g.problem_code = problem["code"]
    return response


def nginx_refusal(error: FrameboxError) -> Response:
    """Answer nginx's auth_request, which understands only yes (204) and no (403): no.

    nginx sends the client the status and the problem document in the headers literally, and leaves the body
    unread. Headers hold ASCII without line breaks, which is what `json.dumps` writes.
    """
    problem = {**problem_of(error), "request_id": g.request_id}
    response = Response(status=403)
    response.headers["Framebox-Refusal-Status"] = str(error.status)
    response.headers["Framebox-Refusal-Code"] = error.code
    response.headers["Framebox-Refusal-Problem"] = json.dumps(problem)
    if isinstance(error, errors.MethodNotAllowed):
        response.headers["Allow"] = ", ".join(problem["allowed"])
    if "retry_after_seconds" in problem:
        response.headers["Retry-After"] = str(problem["retry_after_seconds"])
    return response


def register_error_handlers(app: Flask) -> None:
    """Turn every exception that leaves a view of `app` into a problem document."""
    app.register_error_handler(FrameboxError, _on_framebox_error)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(Exception, _on_fault)


def _on_framebox_error(error: FrameboxError) -> Response:
    # NotReady is requested every second, and its answer gives the reasons.
    if error.status >= 500 and not isinstance(error, errors.NotReady):
        _log.warning("request refused", code=error.code, detail=error.detail)
    return problem_response(problem_of(error))


def _on_http_exception(error: HTTPException) -> Response:
    if isinstance(error, MethodNotAllowed):
        allowed = sorted(error.valid_methods or ())
        refusal = errors.MethodNotAllowed(f"{request.method} is not possible here.", {"allowed": allowed})
        return problem_response(refusal.to_problem(), {"Allow": ", ".join(allowed)})
    status = error.code or 500
    if status < 400:  # a redirect by Flask is not an error
        return Response(status=status, headers=dict(error.get_headers()))
    kind = _BY_STATUS.get(status, errors.BadRequest if status < 500 else errors.InternalError)
    details: dict[type[FrameboxError], str] = {errors.RouteNotFound: "There is no route at this address."}
    return problem_response(kind(details.get(kind, f"The request was refused: {error.name}.")).to_problem())


def _on_fault(error: Exception) -> Response:
    """Log a programming error in full; the client gets only the request id."""
    if is_disk_full(error):
        return problem_response(errors.InsufficientStorage("The disk is full.").to_problem())
    _log.error("request failed", exc_info=error)
    detail = f"Something went wrong here; the log has it under {g.get('request_id')}."
    problem: dict[str, Any] = errors.InternalError(detail).to_problem()
    return problem_response(problem)
