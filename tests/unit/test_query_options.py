"""The query string of a detection."""

from __future__ import annotations

import pytest
from sample_reports import loading_model, ready_model, refused_model

from app.errors import EngineUnavailable, InvalidOption
from app.pipeline.options import TIMED_FORMATS, DetectionOptions, DocumentFormat, OnDamage, Rendering
from app.web.options import MAX_LISTED_FAULTS, check_model, describe_values, option_names, parse_options

MODELS = [ready_model("people", "person"), ready_model("pets", "cat", "dog")]


def test_an_empty_query_gives_the_defaults():
    options = parse_options([])
    assert options.detection == DetectionOptions()
    assert options.rendering == Rendering(DocumentFormat.PAIRS, times=False)


def test_every_option_is_read_from_its_text():
    query = {
        "model": "pets",
        "min_score": "0.25",
        "labels": "cat, dog",
        "stride": "3",
        "start": "1.5",
        "end": "20",
        "max_side": "640",
        "on_damage": "fail",
        "format": "csv",
        "times": "true",
    }
    options = parse_options(query.items())
    assert options.rendering == Rendering(DocumentFormat.CSV, times=True)
    assert options.detection == DetectionOptions(
        model="pets",
        min_score=0.25,
        labels=("cat", "dog"),
        stride=3,
        start=1.5,
        end=20,
        max_side=640,
        on_damage=OnDamage.FAIL,
    )


def test_all_faults_are_told_at_once():
    query = [
        ("min_score", "7"),
        ("stride", "x"),
        ("colour", "red"),
        ("format", "xml"),
        ("start", "1"),
        ("start", "2"),
    ]
    with pytest.raises(InvalidOption) as caught:
        parse_options(query)
    told = {fault["parameter"]: fault for fault in caught.value.extensions["errors"]}
    assert set(told) == {"min_score", "stride", "colour", "format", "start"}
    assert told["min_score"]["allowed"] == "a number, at least 0, at most 1"
    assert told["colour"]["allowed"] == option_names()
    assert told["format"]["allowed"] == [*DocumentFormat]
    assert all(name in caught.value.detail for name in told)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_score", "nan"),
        ("min_score", "-0.1"),
        ("fps", "0"),
        ("fps", "inf"),
        ("stride", "0"),
        ("stride", "1.5"),
        ("labels", ""),
        ("labels", " , "),
        ("end", "1e400"),
        ("max_side", "8"),
        ("on_damage", "ignore"),
        ("model", "m" * 201),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: str):
    with pytest.raises(InvalidOption) as caught:
        parse_options([(name, value)])
    assert caught.value.extensions["parameter"] == name
    assert caught.value.extensions["allowed"] == describe_values(name)


@pytest.mark.parametrize("document_format", ["boxes", "mot"])
def test_times_in_a_format_without_a_place_for_them_are_refused_with_the_formats_that_have_one(
    document_format: str,
):
    with pytest.raises(InvalidOption) as caught:
        parse_options([("format", document_format), ("times", "true")])
    assert caught.value.extensions["parameter"] == "times"
    assert document_format in caught.value.detail
    assert all(allowed in caught.value.extensions["allowed"] for allowed in TIMED_FORMATS)
    assert not parse_options([("format", document_format), ("times", "false")]).rendering.times


@pytest.mark.parametrize("value", ["yes", "1", "", "True"])
def test_times_is_true_or_false(value: str):
    with pytest.raises(InvalidOption) as caught:
        parse_options([("times", value)])
    assert caught.value.extensions["allowed"] == ["true", "false"]


@pytest.mark.parametrize("query", [[("stride", "2"), ("fps", "5")], [("start", "5"), ("end", "5")]])
def test_options_that_contradict_each_other_are_refused(query: list[tuple[str, str]]):
    with pytest.raises(InvalidOption, match=r"exclude|greater"):
        parse_options(query)


def test_what_a_caller_wrote_is_repeated_in_part_only():
    with pytest.raises(InvalidOption) as caught:
        parse_options([(f"{number}{'x' * 5000}", "") for number in range(500)])
    assert len(caught.value.extensions["errors"]) == MAX_LISTED_FAULTS
    assert len(str(caught.value.to_problem())) < 20_000


def test_a_request_without_a_model_gets_the_default():
    assert check_model(DetectionOptions(), MODELS, "people") == "people"
    assert check_model(DetectionOptions(model="pets"), MODELS, "people") == "pets"


def test_an_unknown_model_is_refused_with_the_list_of_models():
    with pytest.raises(InvalidOption) as caught:
        check_model(DetectionOptions(model="birds"), MODELS, "people")
    assert caught.value.extensions["allowed"] == ["people", "pets"]


def test_a_label_that_the_model_does_not_know_is_refused():
    with pytest.raises(InvalidOption, match="'bird'"):
        check_model(DetectionOptions(model="pets", labels=("cat", "bird")), MODELS, "people")


def test_a_model_that_is_still_being_loaded_can_be_asked_for_with_any_labels():
    models = [*MODELS, loading_model("birds")]
    assert check_model(DetectionOptions(model="birds", labels=("robin",)), models, "people") == "birds"
    assert check_model(DetectionOptions(), [loading_model("people")], "people") == "people"


@pytest.mark.parametrize("options", [DetectionOptions(model="broken"), DetectionOptions()])
def test_a_refused_model_is_not_to_be_had_and_the_answer_says_why(options: DetectionOptions):
    models = [*MODELS, refused_model("broken", "It cannot be read as TorchScript.")]
    with pytest.raises(
        InvalidOption, match=r"cannot be read as TorchScript\. There are: people, pets"
    ) as caught:
        check_model(options, models, "broken")
    assert (caught.value.extensions["parameter"], caught.value.extensions["allowed"]) == (
        "model",
        ["people", "pets"],
    )


def test_an_unknown_model_is_refused_while_others_are_being_loaded():
    with pytest.raises(InvalidOption) as caught:
        check_model(DetectionOptions(model="birds"), [loading_model("people"), refused_model("b")], "people")
    assert caught.value.extensions["allowed"] == ["people"]


def test_before_the_engine_has_told_its_models_only_the_default_can_be_had():
    assert check_model(DetectionOptions(), [], "people") == "people"
    with pytest.raises(EngineUnavailable):
        check_model(DetectionOptions(model="pets"), [], "people")
