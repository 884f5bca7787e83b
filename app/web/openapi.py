"""The OpenAPI 3.1 description, made from the table of routes and the shapes of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from app.errors import FrameboxError
from app.jobs.job import SourceKind
from app.pipeline.options import DetectionOptions
from app.web.problems import PROBLEM_TYPE
from app.web.routes import JSON, NAMED_KINDS, ROUTES, Answer, Parameter, Route
from app.web.schemas import SHAPES
from app.web.tus import CHUNK_TYPE

_RAW = {"schema": {"type": "string", "format": "binary"}}
_REFERENCE = "#/components/schemas/{model}"


def openapi_document(version: str) -> dict[str, Any]:
    """Return the description of every public route, plain JSON values."""
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
    """A Flask rule in OpenAPI's notation."""
    return rule.replace("<", "{").replace(">", "}")


def detection_parameters() -> list[Parameter]:
    """The options of a detection as query parameters, `format` apart."""
    schema = DetectionOptions.model_json_schema()
    return [
        Parameter(name, "query", field.get("description", ""), _resolved(field, schema.get("$defs", {})))
        for name, field in schema["properties"].items()
    ]


def _resolved(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A field's schema as a query string can hold it: without null, references or descriptions."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    kind = dict(kinds[0])
    if "$ref" in kind:
        kind = {**definitions[kind.pop("$ref").rpartition("/")[2]], **kind}
    if kind.get("type") == "array":
        return {"type": "string", "pattern": "^[^,]+(,[^,]+)*$"}
    if field.get("default") is not None:
        kind["default"] = field["default"]
    return {name: value for name, value in kind.items() if name not in ("description", "title")}


def _operation(route: Route) -> dict[str, Any]:
    parameters = [*route.parameters, *(detection_parameters() if route.takes_options else ())]
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.text,
        "responses": {
            **{str(answer.status): _answer(answer) for answer in route.answers},
            **dict(_problems(route.errors)),
        },
    }
    if parameters:
        operation["parameters"] = [_parameter(parameter) for parameter in parameters]
    if route.takes_video:
        operation["requestBody"] = _video_body()
    if route.takes_chunk:
        operation["requestBody"] = {"content": {CHUNK_TYPE: _RAW}}
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.text,
        "schema": parameter.schema,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {} for media_type in answer.media_types}
    if answer.shape is not None:
        content[JSON] = {"schema": {"$ref": _REFERENCE.format(model=answer.shape.__name__)}}
    return {"description": answer.text} | ({"content": content} if content else {})


def _problems(errors: Sequence[type[FrameboxError]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One response a status, naming the codes that it comes with."""
    by_status = sorted({error.status: None for error in errors})
    schema = {"schema": {"$ref": _REFERENCE.format(model="Problem")}}
    for status in by_status:
        told = [f"{error.title} (`{error.code}`)" for error in errors if error.status == status]
        yield str(status), {"description": "; ".join(told), "content": {PROBLEM_TYPE: schema}}


def _video_body() -> dict[str, Any]:
    raw = _RAW
    form = {
        "schema": {
            "type": "object",
            "required": ["video"],
            "additionalProperties": False,
            "properties": {"video": {"type": "string", "format": "binary"}},
        }
    }
    named = {"schema": {"oneOf": [_named(kind) for kind in NAMED_KINDS]}}
    return {
        "required": True,
        "content": {
            "video/*": raw,
            "application/octet-stream": raw,
            "multipart/form-data": form,
            JSON: named,
        },
    }


def _named(kind: SourceKind) -> dict[str, Any]:
    """A JSON body that names the video."""
    return {
        "type": "object",
        "required": [str(kind)],
        "additionalProperties": False,
        "properties": {str(kind): {"type": "string", "description": NAMED_KINDS[kind]}},
    }
