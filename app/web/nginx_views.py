"""``/_internal/admit``: nginx asks whether an upload may begin, before it reads a byte of it.

nginx's auth_request understands only yes (204) and no (403). The answer for the client goes in headers: the
status and the problem document, which nginx sends literally, leaving the body unread; or the existing job,
for which nginx then asks without the body.
"""

from __future__ import annotations

import json

from flask import Response, g, request

from app.errors import FrameboxError, MethodNotAllowed
from app.storage.bodies import folder_name
from app.web.admission import admit
from app.web.cors import cors_headers
from app.web.head import head_in
from app.web.problems import problem_of
from app.web.service import Service
from app.web.tus import VERSION
from app.web.upload_admission import admit_upload_body


class NginxViews:
    def __init__(self, service: Service) -> None:
        self._service = service

    def admit_upload(self) -> Response:
        head = head_in(request.headers)
        try:
            if head.method != "POST":  # with or without a body
                raise MethodNotAllowed(f"{head.method[:20]} is not possible here.", {"allowed": ["POST"]})
            spooled = request.headers.get("Framebox-Upload-Spooled", "")
            body_folder = folder_name(g.request_id) if spooled else ""
            admission = admit(head, self._service, key=g.request_id, body_folder=body_folder)
        except FrameboxError as error:
            self._service.metrics.uploads.labels(outcome=error.code).inc()
            return _refusal(error)
        if admission.earlier is not None and not head.is_chunked:  # nginx would read a chunked body first
            return Response(status=403, headers={"Framebox-Earlier-Job": admission.earlier.id})
        return Response(status=204)

    def admit_upload_body(self) -> Response:
        """Answer for ``/v1/uploads``: whether this request of a resumable upload may send its body."""
        try:
            admit_upload_body(head_in(request.headers), self._service, key=g.request_id)
        except FrameboxError as error:
            self._service.metrics.uploads.labels(outcome=error.code).inc()
            response = _refusal(error)
            response.headers["Tus-Resumable"] = VERSION
            origin, allowed = request.headers.get("Origin"), self._service.limits.cors_origins
            response.headers.update(cors_headers(origin, allowed, is_preflight=False))
            return response
        return Response(status=204)


def _refusal(error: FrameboxError) -> Response:
    """Answer no. Headers hold ASCII without line breaks, which is what `json.dumps` writes."""
    problem = {**problem_of(error), "request_id": g.request_id}
    response = Response(status=403)
    response.headers["Framebox-Refusal-Status"] = str(error.status)
    response.headers["Framebox-Refusal-Code"] = error.code
    response.headers["Framebox-Refusal-Problem"] = json.dumps(problem)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(problem["allowed"])
    if "retry_after_seconds" in problem:
        response.headers["Retry-After"] = str(problem["retry_after_seconds"])
    return response
