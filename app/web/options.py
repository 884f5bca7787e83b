"""The query string of a detection; an error names all of its faults at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.detection.model_facts import ModelState, ModelStatus
from app.errors import EngineUnavailable, InvalidOption
from app.jobs.job import Priority
from app.pipeline.options import TIMED_FORMATS, DetectionOptions, DocumentFormat, Rendering

MAX_LISTED_FAULTS = 20  # an answer names at most this many
RENDERING_OPTIONS: Mapping[str, Sequence[str]] = {"format": [*DocumentFormat], "times": ["true", "false"]}
REQUEST_OPTIONS: Mapping[str, Sequence[str]] = {
    **RENDERING_OPTIONS,
    "priority": [*Priority],
    "attach": ["true", "false"],
}
CALLBACK = "callback"
_VALUE_SHOWN = 80  # characters of a caller's own text that an answer repeats


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """`detection` determines the result; the others, how the request is handled."""

    detection: DetectionOptions
    rendering: Rendering
    priority: Priority | None  # None: not given
    attach: bool | None  # None: not given
    callback: str | None = None  # an address, not yet checked


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a query string. `allowed` is a text or a list of values."""

    parameter: str
    message: str
    allowed: str | list[str]

    def to_json(self) -> dict[str, Any]:
        return {"parameter": _shortened(self.parameter), "message": self.message, "allowed": self.allowed}


def option_names() -> list[str]:
    """Return the names of all options of a detection."""
    return [*DetectionOptions.model_fields, *REQUEST_OPTIONS, CALLBACK]


def parse_options(query: Iterable[tuple[str, str]]) -> RequestOptions:
    """Return the options of a query string's decoded pairs. Raises InvalidOption naming every fault."""
    values: dict[str, str] = {}
    faults: list[Fault] = []
    for name, value in query:
        if name in values:
            faults.append(Fault(name, "given more than once", "one value"))
        values[name] = value
    rendering = parse_rendering(values.pop("format", None), values.pop("times", None), faults)
    chosen = {name: _parse_choice(name, values.pop(name, None), faults) for name in ("priority", "attach")}
    callback = values.pop(CALLBACK, None)
    try:
        detection = DetectionOptions.model_validate(values)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            # A fault that concerns several options has no parameter of its own.
            name, message = str(fault["loc"][0]) if fault["loc"] else "options", str(fault["msg"])
            message = message.removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                faults.append(Fault(name, "is not a known option", option_names()))
            elif name not in DetectionOptions.model_fields:
                faults.append(Fault(name, message, "see /docs"))
            else:
                message = f"{message}, not {_shown(fault['input'])}"
                faults.append(Fault(name, message, describe_values(name)))
    if faults:
        raise invalid_options(faults)
    return RequestOptions(
        detection,
        rendering,
        Priority(chosen["priority"]) if chosen["priority"] else None,
        chosen["attach"] == "true" if chosen["attach"] else None,
        callback,
    )


def parse_rendering(document_format: str | None, times: str | None, faults: list[Fault]) -> Rendering:
    """Return the requested rendering; arguments are None if not given. Adds to `faults`."""
    chosen_format = _parse_choice("format", document_format, faults)
    chosen = DocumentFormat(chosen_format or DocumentFormat.PAIRS)
    has_times = _parse_choice("times", times, faults) == "true"
    if has_times and chosen not in TIMED_FORMATS:
        allowed = f"false, or one of the formats {', '.join(TIMED_FORMATS)}"
        faults.append(Fault("times", f"the format {chosen} has no place for times", allowed))
        return Rendering(chosen)
    return Rendering(chosen, has_times)


def invalid_options(faults: Sequence[Fault]) -> InvalidOption:
    """Return one error that lists all `faults`, of which there is at least one."""
    listed = [fault.to_json() for fault in faults[:MAX_LISTED_FAULTS]]
    detail = "; ".join(f"{fault['parameter']}: {fault['message']}" for fault in listed)
    return InvalidOption(f"{detail}.", {**listed[0], "errors": listed})


def check_model(options: DetectionOptions, models: Sequence[ModelStatus], default: str) -> str:
    """Return the name of the model to run. `models` are the engine's, empty if they are not known yet.

    The labels of a model that is still being loaded are checked by the engine when the job begins.
    Raises InvalidOption for a refused or unknown model and for unknown labels, EngineUnavailable if the
    models are not known yet.
    """
    name = options.model or default
    model = next((model for model in models if model.name == name), None)
    if model is None and models:
        raise invalid_options([Fault("model", f"there is no model {_shown(name)}", usable_models(models))])
    if model is None:
        if options.model not in (None, default):
            raise EngineUnavailable(
                "The models are still being loaded; only the default one can be asked for.",
                {"retry_after_seconds": 5},
            )
        return name
    if model.state is ModelState.REFUSED:
        reason = "it cannot be loaded." if model.refusal is None else model.refusal.detail
        usable = usable_models(models)
        message = f"{_shown(name)} is refused: {reason} There are: {', '.join(usable) or 'none'}"
        raise invalid_options([Fault("model", message, usable)])
    labels = () if model.facts is None else model.facts.labels
    faults = [
        Fault("labels", f"the model finds no {_shown(label)}", [*labels][:200])
        for label in options.labels or ()
        if labels and label not in labels
    ]
    if faults:
        raise invalid_options(faults)
    return name


def usable_models(models: Iterable[ModelStatus]) -> list[str]:
    """Return the names of the models that requests may select."""
    return [model.name for model in models if model.state is not ModelState.REFUSED]


def _parse_choice(name: str, value: str | None, faults: list[Fault]) -> str | None:
    if value is not None and value not in REQUEST_OPTIONS[name]:
        faults.append(
            Fault(name, f"{_shown(value)} is not one of the allowed values", [*REQUEST_OPTIONS[name]])
        )
        return None
    return value


def option_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each option's value, which is never null in a query string."""
    whole = DetectionOptions.model_json_schema()
    schemas = {}
    for name, field in whole["properties"].items():
        kinds: list[dict[str, Any]] = field.get("anyOf", [field])
        schema = next(kind for kind in kinds if kind.get("type") != "null")
        schema = whole["$defs"].get(schema.get("$ref", "").rpartition("/")[2], {}) | schema
        if field.get("default") is not None:
            schema["default"] = field["default"]
        schemas[name] = {key: schema[key] for key in schema if key not in ("$ref", "description", "title")}
    return schemas


def describe_values(name: str) -> str:
    """Describe the allowed values of the option `name` in words."""
    kind = option_schemas()[name]
    if "enum" in kind:
        return " or ".join(kind["enum"])
    if kind.get("type") == "array":
        return "labels separated by commas"
    bounds = [
        f"{words} {kind[key]:g}"
        for key, words in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
        if key in kind
    ]
    noun = {"integer": "a whole number", "number": "a number"}.get(kind.get("type", ""), "a text")
    return ", ".join([noun, *bounds])


def _shown(value: object) -> str:
    return repr(_shortened(str(value)))


def _shortened(text: str) -> str:
    return text if len(text) <= _VALUE_SHOWN else f"{text[:_VALUE_SHOWN]}…"
