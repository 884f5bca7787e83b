"""The application in process: routes, documents, errors. What needs real servers is in tests/integration."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from sample_reports import (
    SANDBOX,
    SHA256,
    completeness,
    finished_report,
    loading_model,
    model_report,
    ready_model,
    refused_model,
)
from stores import Stores

from app.detection.model_facts import ModelState
from app.errors import NoVideoStream
from app.jobs.database import Database
from app.jobs.heartbeats import HostStatus
from app.jobs.job import OWNER, JobState, Progress
from app.logs import configure_logging
from app.pipeline.options import RENDERINGS, Rendering
from app.programs.web import create_app
from app.settings import CHECKOUT, Settings
from app.storage.data_folder import DataFolder
from app.version import VERSION
from app.web.openapi import openapi_document, openapi_path
from app.web.page_views import error_entries
from app.web.report import JobReport, Problem
from app.web.routes import ROUTES
from app.web.schemas import Document, JobList, ModelList, Readiness

WAIT_SECONDS = 0.3
VIDEO = {"Content-Type": "video/mp4"}
ASYNC = VIDEO | {"Prefer": "respond-async"}
HOST = HostStatus(
    device="cpu",
    pid=7,
    ready=True,
    memory_bytes=1,
    segments=0,
    frames=0,
    busy_seconds=0.0,
    out_of_memory_count=2,
    model_fault_count=0,
    dropped_box_count=0,
    restarts=0,
)
PAIRS = b'[\n[0,[{"box":[1.0,2.0,3.0,4.0],"label":"person","score":0.9}]],\n[1,[]]\n]\n'
MODELS = [ready_model("hog-people", "person"), loading_model("slow"), refused_model("broken")]


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


@pytest.fixture
def app(folder: DataFolder) -> Iterator[Flask]:
    app = create_app(Settings(data=folder.root, min_free_bytes=0, max_upload_bytes=1000, attach=False))
    yield app
    app.extensions["framebox"].watcher.close()
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()


class BufferingClient(FlaskClient):
    """Reads an answer to its end and closes it, as a server does."""

    def open(self, *arguments: Any, **options: Any) -> Any:
        return super().open(*arguments, **options | {"buffered": True})


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = BufferingClient
    return app.test_client()


@pytest.fixture
def store(app: Flask) -> Stores:
    database: Database = app.extensions["framebox"].database
    return Stores(database)


@pytest.fixture
def epoch(store: Stores) -> int:
    epoch = store.queue.begin_epoch(pid=os.getpid())
    store.heartbeats.report_engine(epoch, ready=True, models=MODELS, sandbox=SANDBOX)
    return epoch


def _post(client: FlaskClient) -> str:
    answer = client.post("/v1/detections", data=b"video", headers=ASYNC)
    assert answer.status_code == 202
    return str(answer.get_json()["id"])


def _finish(folder: DataFolder, store: Stores, epoch: int) -> str:
    job = store.queue.claim(epoch)
    assert job is not None
    folder.document(job.id).write_bytes(PAIRS)
    folder.pts(job.id).write_bytes(struct.pack("<2q", 126000, 129600))
    digest = hashlib.sha256(PAIRS).hexdigest()
    report = finished_report(len(PAIRS), digest, model=model_report("hog-people", "cat", "person"))
    store.queue.finish(job.id, epoch, JobState.SUCCEEDED, report=report)
    return job.id


def test_every_route_is_described_and_every_description_is_served(app: Flask):
    automatic = {"HEAD", "OPTIONS"}  # Flask answers them wherever nobody else does
    served = {
        (method, openapi_path(rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in automatic or rule.rule.startswith("/v1/uploads")
        if not rule.rule.startswith("/_internal")
    }
    paths = openapi_document("1")["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert served == described


def test_the_openapi_document_has_every_option_and_no_dangling_reference():
    text = json.dumps(openapi_document("1"))
    document = json.loads(text)
    parameters = document["paths"]["/v1/detections"]["post"]["parameters"]
    names = [parameter["name"] for parameter in parameters]
    assert {
        "model",
        "min_score",
        "labels",
        "stride",
        "fps",
        "start",
        "end",
        "max_side",
        "on_damage",
        "format",
        "times",
    } < {*names}
    result = document["paths"]["/v1/jobs/{job_id}/result"]["get"]["parameters"]
    assert {"format", "times"} < {parameter["name"] for parameter in result}
    assert len(names) == len(set(names))
    references = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert references <= set(document["components"]["schemas"])


def test_every_field_of_every_answer_is_described_and_none_is_a_bare_object():
    shapes = openapi_document("1")["components"]["schemas"]
    fields = {
        f"{shape}.{name}": field
        for shape, schema in shapes.items()
        for name, field in schema.get("properties", {}).items()
    }
    assert not [name for name, field in fields.items() if "description" not in field]
    kinds = {name: [field, *field.get("anyOf", []), field.get("items", {})] for name, field in fields.items()}
    bare = [name for name, kind in kinds.items() if any(each.get("type") == "object" for each in kind)]
    assert bare == ["JobReport.options"]


def test_a_problem_is_described_by_its_members():
    problem = openapi_document("1")["components"]["schemas"]["Problem"]
    assert problem["required"] == ["type", "title", "status", "code", "detail"]
    assert problem["additionalProperties"] is True


def test_the_openapi_document_has_the_version_of_the_release(client: FlaskClient):
    assert client.get("/openapi.json").get_json()["info"]["version"] == VERSION


@pytest.mark.parametrize(
    "address", ["/docs", "/docs/errors", "/", "/openapi.json", "/livez", "/metrics", "/v1/models"]
)
def test_pages_and_probes_answer(client: FlaskClient, address: str):
    assert client.get(address).status_code == 200


def test_every_error_that_a_route_names_is_on_the_page_of_errors(client: FlaskClient):
    codes = {error.code for error, _ in error_entries()}
    assert {error.code for route in ROUTES for error in route.errors} <= codes
    page = client.get("/docs/errors").text
    assert all(f'id="{code}"' in page for code in codes)


def test_the_dashboard_shows_hostile_names_as_text(client: FlaskClient):
    data = {"video": (io.BytesIO(b"x"), "<script>alert(1)</script>")}
    client.post("/v1/detections", data=data, headers={"Prefer": "respond-async"})
    page = client.get("/").text
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_answers_have_the_shapes_that_are_described(client: FlaskClient, folder, store, epoch):
    job_id = _post(client)
    JobReport.model_validate(client.get(f"/v1/jobs/{job_id}").get_json())
    _finish(folder, store, epoch)
    JobReport.model_validate(client.get(f"/v1/jobs/{job_id}").get_json())
    JobList.model_validate(client.get("/v1/jobs").get_json())
    ModelList.model_validate(client.get("/v1/models").get_json())
    Problem.model_validate(client.get("/nowhere").get_json())


def test_models_are_listed_with_their_facts_as_soon_as_they_are_known(client: FlaskClient, epoch: int):
    answer = client.get("/v1/models").get_json()
    ready, loading = answer["models"]
    assert answer["default"] == "hog-people"
    assert json.dumps(ready) == json.dumps(
        {
            "name": "hog-people",
            "sha256": SHA256,
            "labels": ["person"],
            "input_size": [640, 480],
            "default_min_score": 0.5,
            "device": "cpu",
            "precision": "float32",
            "precision_effect": None,
            "batch_size": 8,
            "frames_per_second": 20.5,
            "memory_bytes": 100_000_000,
            "device_memory_bytes": 0,
            "run_by": "",
            "left_out": [],
            "assumed": [],
            "loaded": True,
            "state": "ready",
        }
    )
    assert [*loading] == [*ready]
    told = {name: value for name, value in loading.items() if value is not None}
    assert told == {"name": "slow", "loaded": False, "state": "loading"}
    assert answer["refused"] == [
        {"name": "broken", "refused": {"code": "model_fault", "detail": "It is broken."}}
    ]


def test_a_model_that_was_unloaded_keeps_its_facts(client: FlaskClient, store: Stores, epoch: int):
    unloaded = MODELS[0].model_copy(update={"state": ModelState.UNLOADED})
    store.heartbeats.report_engine(epoch, ready=True, models=[unloaded])
    (model,) = client.get("/v1/models").get_json()["models"]
    assert (model["loaded"], model["state"], model["labels"]) == (False, "unloaded", ["person"])


def test_a_waiting_post_answers_with_the_document(client: FlaskClient, folder, store, epoch):
    def work() -> None:
        while not store.counts(owner=OWNER)[JobState.QUEUED]:
            pass
        _finish(folder, store, epoch)
        store.database.close()

    engine = threading.Thread(target=work, name="engine")
    engine.start()
    answer = client.post("/v1/detections", data=b"video", headers=VIDEO)
    engine.join(timeout=10)
    assert answer.status_code == 200
    assert answer.data == PAIRS
    assert answer.headers["Framebox-Frames"] == "2"
    assert answer.headers["Framebox-Complete"] == "true"
    assert answer.headers["ETag"] == f'"{hashlib.sha256(PAIRS).hexdigest()}"'
    assert f"/v1/jobs/{answer.headers['Framebox-Job']}" in answer.headers["Link"]


class SlowBody(io.BytesIO):
    """A body of which the client sends each piece after a while."""

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(WAIT_SECONDS)
        return super().read(size)


def test_waiting_for_a_body_and_for_a_job_is_not_counted_as_serving(
    client: FlaskClient, folder, store, epoch, capfd
):
    configure_logging("web", "INFO")

    def work() -> None:
        while not store.counts(owner=OWNER)[JobState.QUEUED]:
            pass
        time.sleep(WAIT_SECONDS)
        _finish(folder, store, epoch)
        store.database.close()

    engine = threading.Thread(target=work, name="engine")
    engine.start()
    body = {"input_stream": SlowBody(b"video"), "content_length": 5}
    assert client.post("/v1/detections", headers=VIDEO, **body).status_code == 200
    engine.join(timeout=10)
    (line,) = [line for line in map(json.loads, capfd.readouterr().out.splitlines()) if "route" in line]
    sums = _sums(client.get("/metrics").text)
    assert sums['http_wait_seconds_sum{reason="body"}'] >= WAIT_SECONDS
    assert sums['http_wait_seconds_sum{reason="job"}'] >= WAIT_SECONDS
    assert line["waited_seconds"] >= 2 * WAIT_SECONDS
    serving = sums['http_request_seconds_sum{method="POST",route="/v1/detections"}']
    assert serving == pytest.approx(line["seconds"] - line["waited_seconds"], abs=0.05)


def _sums(metrics: str) -> dict[str, float]:
    lines = (line.removeprefix("framebox_").rsplit(" ", 1) for line in metrics.splitlines() if "_sum" in line)
    return {name: float(value) for name, value in lines}


def test_a_result_is_sent_in_ranges_and_on_conditions(client: FlaskClient, folder, store, epoch):
    job_id = _post(client)
    _finish(folder, store, epoch)
    address = f"/v1/jobs/{job_id}/result"
    whole = client.get(address)
    assert whole.data == PAIRS
    part = client.get(address, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.data) == (206, PAIRS[2:6])
    assert client.get(address, headers={"If-None-Match": whole.headers["ETag"]}).status_code == 304
    beyond = client.get(address, headers={"Range": "bytes=99999-"})
    assert (beyond.status_code, beyond.get_json()["code"]) == (416, "range_not_satisfiable")
    head = client.head(address)
    assert (head.headers["Content-Length"], head.data) == (str(len(PAIRS)), b"")


@pytest.mark.parametrize("rendering", [each for each in RENDERINGS if not each.is_document])
def test_other_forms_are_made_once_and_carry_their_own_digest(
    client: FlaskClient, folder, store, epoch, rendering: Rendering
):
    job_id = _post(client)
    _finish(folder, store, epoch)
    times = "&times=true" if rendering.times else ""
    address = f"/v1/jobs/{job_id}/result?format={rendering.format}{times}"
    first = client.get(address)
    made = folder.result(job_id, rendering.name).stat().st_mtime_ns
    second = client.get(address)
    assert first.data == second.data
    assert folder.result(job_id, rendering.name).stat().st_mtime_ns == made
    assert first.headers["ETag"] == f'"{hashlib.sha256(first.data).hexdigest()}"'
    assert client.get(address, headers={"If-None-Match": first.headers["ETag"]}).status_code == 304


def test_times_are_told_if_they_are_asked_for_and_only_then(client: FlaskClient, folder, store, epoch):
    job_id = _post(client)
    _finish(folder, store, epoch)
    address = f"/v1/jobs/{job_id}/result"
    timed = client.get(f"{address}?times=true")
    assert [record[2] for record in timed.get_json()] == [{"pts_seconds": 1.4}, {"pts_seconds": 1.44}]
    assert timed.headers["Content-Disposition"] == f'inline; filename="{job_id}.times.json"'
    assert timed.headers["Content-Type"] == "application/json"
    Document.model_validate(timed.get_json())
    plain = client.get(f"{address}?times=false")
    assert plain.data == PAIRS
    assert plain.headers["ETag"] != timed.headers["ETag"]
    accelerated = client.get(f"{address}?times=true", headers={"Framebox-Accel": "1"})
    assert accelerated.headers["X-Accel-Redirect"] == f"/_results/{job_id}/result.pairs-times"
    part = client.get(f"{address}?times=true", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.data) == (206, timed.data[2:6])


@pytest.mark.parametrize("document_format", ["boxes", "mot"])
def test_times_without_a_place_are_refused_of_a_result_too(client: FlaskClient, document_format: str):
    answer = client.get(f"/v1/jobs/{'a' * 32}/result?format={document_format}&times=true")
    assert (answer.status_code, answer.get_json()["parameter"]) == (400, "times")
    assert "pairs, ndjson, csv, coco" in answer.get_json()["allowed"]


def test_a_job_goes_with_its_times_and_forms(client: FlaskClient, folder: DataFolder, store, epoch):
    job_id = _post(client)
    _finish(folder, store, epoch)
    assert client.get(f"/v1/jobs/{job_id}/result?times=true").status_code == 200
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert not folder.job(job_id).exists()
    assert client.get(f"/v1/jobs/{job_id}/result?times=true").status_code == 404


def test_a_form_tells_the_labels_of_the_model_that_ran_and_not_of_those_that_there_are(
    client: FlaskClient, folder, store, epoch
):
    job_id = _post(client)
    _finish(folder, store, epoch)
    store.heartbeats.report_engine(epoch, ready=True, models=[ready_model("another", "dog")])
    coco = client.get(f"/v1/jobs/{job_id}/result?format=coco")
    assert coco.status_code == 200
    assert coco.get_json()["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "person"}]
    assert [annotation["category_id"] for annotation in coco.get_json()["annotations"]] == [2]


def test_the_dashboard_tells_of_missing_frames(client: FlaskClient, store: Stores, epoch: int):
    _post(client)
    job = store.queue.claim(epoch)
    assert job is not None
    store.queue.update(job.id, epoch, Progress(600, 1394, 7, 14, frames_missing=100))
    page = client.get("/").text
    assert "600 of 1394 frames, 100 missing" in page
    assert "incomplete" not in page
    store.queue.finish(
        job.id,
        epoch,
        JobState.SUCCEEDED,
        progress=Progress(1264, 1394, 14, 14, frames_missing=130),
        report=finished_report(1, SHA256, found=completeness(1394, missing=130)),
    )
    page = client.get("/").text
    assert "1264 of 1394 frames, 130 missing" in page
    assert "incomplete" in page


def test_the_dashboard_marks_no_whole_job(client: FlaskClient, folder, store, epoch):
    _post(client)
    _finish(folder, store, epoch)
    page = client.get("/").text
    assert "missing" not in page
    assert "incomplete" not in page


def test_behind_nginx_the_document_is_named_instead_of_sent(client: FlaskClient, folder, store, epoch):
    job_id = _post(client)
    _finish(folder, store, epoch)
    address = f"/v1/jobs/{job_id}/result"
    answer = client.get(address, headers={"Framebox-Accel": "1"})
    assert answer.headers["X-Accel-Redirect"] == f"/_results/{job_id}/result.pairs"
    assert answer.data == b""
    for headers in ({}, {"Framebox-Accel": "1"}):
        other = client.get(address, headers=headers | {"If-Match": '"other"'})
        assert (other.status_code, other.get_json()["code"]) == (412, "precondition_failed")
    known = client.get(address, headers={"Framebox-Accel": "1", "If-None-Match": answer.headers["ETag"]})
    assert known.status_code == 304
    assert "X-Accel-Redirect" not in known.headers


def test_a_result_that_is_not_there_yet_is_a_conflict(client: FlaskClient):
    job_id = _post(client)
    answer = client.get(f"/v1/jobs/{job_id}/result")
    assert (answer.status_code, answer.get_json()["code"], answer.get_json()["state"]) == (
        409,
        "result_not_ready",
        "queued",
    )
    assert answer.headers["Retry-After"] == "1"


def test_a_failed_job_answers_with_its_problem(client: FlaskClient, store, epoch):
    job_id = _post(client)
    assert store.queue.claim(epoch) is not None
    problem = NoVideoStream("There is no video stream in the file.").to_problem()
    store.queue.finish(job_id, epoch, JobState.FAILED, problem=problem)
    answer = client.get(f"/v1/jobs/{job_id}/result")
    assert (answer.status_code, answer.get_json()["code"]) == (422, "no_video_stream")
    assert answer.mimetype == "application/problem+json"
    assert answer.headers["Framebox-Job"] == job_id
    assert client.get(f"/v1/jobs/{job_id}").get_json()["problem"] == problem


def test_deleting_cancels_a_queued_job_and_then_forgets_it(client: FlaskClient, folder: DataFolder):
    job_id = _post(client)
    cancelled = client.delete(f"/v1/jobs/{job_id}")
    assert (cancelled.status_code, cancelled.get_json()["state"]) == (202, "cancelled")
    assert client.get(f"/v1/jobs/{job_id}/result").get_json()["code"] == "job_cancelled"
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert client.delete(f"/v1/jobs/{job_id}").get_json()["code"] == "job_not_found"
    assert not folder.job(job_id).exists()


def test_deleting_asks_a_running_job_to_stop(client: FlaskClient, store, epoch):
    job_id = _post(client)
    store.queue.claim(epoch)
    for _ in range(2):
        answer = client.delete(f"/v1/jobs/{job_id}")
        assert (answer.status_code, answer.get_json()["state"], answer.get_json()["cancel_requested"]) == (
            202,
            "running",
            True,
        )


def test_the_list_of_jobs_is_paged_from_the_newest(client: FlaskClient):
    ids = [_post(client) for _ in range(5)]
    seen, address = [], "/v1/jobs?limit=2"
    while address:
        page = client.get(address).get_json()
        assert len(page["jobs"]) <= 2
        seen += [job["id"] for job in page["jobs"]]
        address = page["next"]
    assert seen == ids[::-1]
    client.delete(f"/v1/jobs/{ids[0]}")
    assert [job["id"] for job in client.get("/v1/jobs?state=cancelled").get_json()["jobs"]] == [ids[0]]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "limit=²", "state=lost", "colour=red", "limit=99999999999999"],
)
def test_a_bad_parameter_of_the_list_is_named(client: FlaskClient, query: str):
    answer = client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.get_json()["code"]) == (400, "invalid_option")
    assert answer.get_json()["parameter"] == query.partition("=")[0]


@pytest.mark.parametrize("job_id", ["0" * 32, "nothing", "..%2f..%2fetc", "A" * 32])
def test_a_job_that_there_is_not_is_not_found(client: FlaskClient, job_id: str):
    for answer in (client.get(f"/v1/jobs/{job_id}"), client.delete(f"/v1/jobs/{job_id}")):
        assert answer.status_code == 404
        assert answer.get_json()["code"] in ("job_not_found", "not_found")


def test_a_wrong_method_is_told_with_those_that_are_right(client: FlaskClient):
    answer = client.put("/v1/jobs")
    assert (answer.status_code, answer.get_json()["code"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]


def test_a_fault_of_ours_shows_the_request_id_alone(client: FlaskClient, app: Flask, capfd):
    def broken() -> NoReturn:
        raise RuntimeError("secret /etc/path")

    configure_logging("web", "INFO")  # to the stdout of this test
    app.view_functions["list_models"] = broken
    answer = client.get("/v1/models", headers={"X-Request-ID": "id-of-this-request"})
    assert (answer.status_code, answer.get_json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "id-of-this-request" in answer.text
    assert answer.headers["X-Request-ID"] == "id-of-this-request"
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    logged = [line for line in lines if line["event"] == "request failed"]
    assert [line["request_id"] for line in logged] == ["id-of-this-request"]
    assert "secret" in logged[0]["exception"]


def test_each_request_has_one_line_in_the_log(client: FlaskClient, capfd):
    configure_logging("web", "INFO")  # to the stdout of this test
    client.get("/v1/jobs")
    client.get("/livez")
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(line["event"], line["route"], line["status"]) for line in lines] == [
        ("request", "/v1/jobs", 200)
    ]
    assert lines[0]["program"] == "web"


def test_a_line_tells_who_asked_and_for_what_however_nginx_passed_it_on(client: FlaskClient, capfd):
    configure_logging("web", "INFO")
    by_nginx = {"X-Forwarded-For": "192.0.2.7", "Framebox-Request-Path": "/v1/detections"}
    client.get("/_internal/again", headers=by_nginx)
    (line,) = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    told = {name: line[name] for name in ("method", "route", "path", "client")}
    assert told == {
        "method": "POST",
        "route": "/v1/detections",
        "path": "/v1/detections",
        "client": "192.0.2.7",
    }


def test_a_forged_request_id_is_replaced(client: FlaskClient):
    answer = client.get("/livez", headers={"X-Request-ID": "a b\tc{}"})
    assert len(answer.headers["X-Request-ID"]) == 32


def test_readiness_tells_every_reason(client: FlaskClient, store: Stores, epoch: int, app: Flask):
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.get_json()["checks"]["sandbox"] == {
        "landlock_abi": 6,
        "seccomp": True,
        "no_new_privileges": True,
        "memory_limited": True,
    }
    assert ready.get_json()["checks"]["models"] == ["hog-people", "slow"]
    assert ready.get_json()["checks"]["hosts"] == []
    Readiness.model_validate(ready.get_json())
    for told, reason in (
        ({"hosts": []}, "the engine is starting or stopping"),
        ({"hosts": [HOST.model_copy(update={"ready": False})]}, "no host yet: the process that runs"),
        ({"hosts": [HOST]}, "the default model is loading"),
        ({"models": [refused_model("hog-people")]}, "the default model cannot be loaded: It is broken."),
    ):
        store.heartbeats.report_engine(epoch, ready=False, **told)
        (found,) = client.get("/readyz").get_json()["reasons"]
        assert found.startswith(reason)
    with store.database.transaction() as connection:
        connection.execute("UPDATE engine SET heartbeat_at = heartbeat_at - 60")
    app.extensions["framebox"].stopping.set()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "not_ready")
    assert answer.get_json()["reasons"] == [
        "the engine is not running: last heard from 60 seconds ago",
        "this HTTP worker is stopping",
    ]


def test_a_full_disk_and_an_engine_that_never_ran_are_told_as_such(tmp_path: Path):
    app = create_app(Settings(data=tmp_path / "data", min_free_bytes=2**62))
    answer = app.test_client().get("/readyz")
    assert answer.get_json()["reasons"] == [
        "the engine has not started yet",
        "the data folder's disk is full: less than FRAMEBOX_MIN_FREE_BYTES is left on it",
    ]
    app.extensions["framebox"].watcher.close()


def test_a_probe_leaves_no_line_in_the_log_whatever_it_says(
    client: FlaskClient, store: Stores, epoch: int, capfd: pytest.CaptureFixture[str]
):
    configure_logging("web", "INFO")
    for is_ready, status in ((True, 200), (False, 503)):
        store.heartbeats.report_engine(epoch, ready=is_ready)
        assert client.get("/readyz").status_code == status
    assert capfd.readouterr().out == ""


def test_metrics_have_what_each_host_reports(client: FlaskClient, store: Stores, epoch: int):
    store.heartbeats.report_engine(epoch, ready=True, hosts=[HOST])
    text = client.get("/metrics").text
    told = HOST.model_dump(exclude={"device", "pid"})
    for name, value in told.items():
        assert f'framebox_host_{name}{{device="cpu",host="0"}} {float(value)}' in text


def test_a_post_without_nginx_is_checked_as_one_with_it(client: FlaskClient, epoch: int):
    assert client.post("/v1/detections", headers=VIDEO).get_json()["code"] == "empty_body"
    assert client.post("/v1/detections", data=b"x" * 1001, headers=VIDEO).get_json()["code"] == "too_large"
    assert client.post("/v1/detections?a=1", data=b"x", headers=VIDEO).get_json()["code"] == "invalid_option"
    unsupported = client.post("/v1/detections", data="x", content_type="application/x-www-form-urlencoded")
    assert unsupported.get_json()["code"] == "unsupported_media_type"
    assert client.get("/v1/jobs").get_json()["jobs"] == []


def test_when_the_queue_is_full_a_post_is_told_to_come_later(folder: DataFolder):
    app = create_app(Settings(data=folder.root, min_free_bytes=0, max_active_jobs=1))
    client = app.test_client()
    _post(client)
    answer = client.post("/v1/detections", data=b"video", headers=ASYNC)
    assert (answer.status_code, answer.get_json()["code"], answer.get_json()["limit"]) == (
        429,
        "too_many_jobs",
        1,
    )
    assert int(answer.headers["Retry-After"]) > 0


def test_http_workers_import_neither_torch_nor_a_codec(tmp_path: Path):
    script = (
        "import sys; from app.programs.web import create_app; app = create_app(); "
        "app.test_client().get('/docs'); "
        "print(*[name for name in ('torch', 'av', 'numpy', 'cv2', 'ray') if name in sys.modules])"
    )
    environment = os.environ | {"FRAMEBOX_DATA": str(tmp_path), "FRAMEBOX_LOG_LEVEL": "WARNING"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
