"""The OpenAPI 3.1 description, made from the table of routes and the shapes of the answers."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from app.pipeline.options import DetectionOptions
from app.web.options import option_schemas
from app.web.problems import PROBLEM_TYPE
from app.web.routes import JSON, NAMED_KINDS, ROUTES, Parameter, Route, query_parameter
from app.web.schemas import SHAPES
from app.web.tus import CHUNK_TYPE

_REFERENCE = "#/components/schemas/{model}"
_BINARY = {"type": "string", "format": "binary"}
_RAW = {"schema": _BINARY}


def _one_member(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [name], "additionalProperties": False, "properties": {name: schema}}


_NAMED = [
    _one_member(kind.value, {"type": "string", "description": text}) for kind, text in NAMED_KINDS.items()
]
_VIDEO_BODY = {
    "required": True,
    "content": {
        "video/*": _RAW,
        "application/octet-stream": _RAW,
        "multipart/form-data": {"schema": _one_member("video", _BINARY)},
        JSON: {"schema": {"oneOf": _NAMED}},
    },
}


def openapi_document(version: str) -> dict[str, Any]:
    """Return the description of every public route as plain JSON values."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        if route.is_public:
            paths.setdefault(openapi_path(route.rule), {})[route.method.lower()] = _operation(route)
    _, definitions = models_json_schema(
        [(shape, "serialization") for shape in SHAPES], ref_template=_REFERENCE
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Framebox",
            "version": version,
            "description": "A video goes in; the boxes of the objects in every frame come out.",
        },
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def openapi_path(rule: str) -> str:
    """Return a Flask rule in OpenAPI's notation."""
    return rule.replace("<", "{").replace(">", "}")


def detection_parameters() -> list[Parameter]:
    """Return the options of a detection as query parameters, without `format`."""
    parameters = []
    for name, schema in option_schemas().items():
        if schema.get("type") == "array":  # in a query string, a list is text
            schema = {"type": "string", "pattern": "^[^,]+(,[^,]+)*$"}  # noqa: PLW2901
        description = DetectionOptions.model_fields[name].description or ""
        parameters.append(query_parameter(name, description, **schema))
    return parameters


def _operation(route: Route) -> dict[str, Any]:
    responses: dict[str, dict[str, Any]] = {}
    for answer in route.answers:
        content: dict[str, Any] = {media_type: {} for media_type in answer.media_types}
        if answer.shape is not None:
            content[JSON] = {"schema": {"$ref": _REFERENCE.format(model=answer.shape.__name__)}}
        described = {"description": answer.text}
        responses[str(answer.status)] = described | ({"content": content} if content else {})
    problem = {PROBLEM_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    for status in sorted({error.status for error in route.errors}):
        titles = [f"{error.title} (`{error.code}`)" for error in route.errors if error.status == status]
        responses[str(status)] = {"description": "; ".join(titles), "content": problem}
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.text, "responses": responses}
    if parameters := [*route.parameters, *(detection_parameters() if route.takes_options else ())]:
        operation["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.text,
                "schema": parameter.schema,
            }
            for parameter in parameters
        ]
    if route.takes_video:
        operation["requestBody"] = _VIDEO_BODY
    if route.takes_chunk:
        operation["requestBody"] = {"content": {CHUNK_TYPE: _RAW}}
    return operation
