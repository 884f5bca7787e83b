"""The health checks of containers."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import Stores

from app.programs.address import Address
from app.programs.health import ask_web, look_up_engine, wait_for_instance
from app.storage.data_folder import DataFolder


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    data = DataFolder(tmp_path / "data")
    data.create()
    return data


def test_the_engines_state_is_read_from_its_last_report(data: DataFolder) -> None:
    assert look_up_engine(data) == (False, "the engine has not started yet")
    store = Stores(data.database)
    store.database.create()
    epoch = store.queue.begin_epoch(pid=1)
    assert look_up_engine(data) == (False, "the engine is starting or stopping")
    store.heartbeats.report_engine(epoch, ready=True)
    assert look_up_engine(data)[0] is True
    store.database.close()


def test_an_engine_that_has_been_silent_is_not_healthy(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Stores(data.database)
    store.database.create()
    store.heartbeats.report_engine(store.queue.begin_epoch(pid=1), ready=True)
    heartbeat = store.heartbeats.engine().heartbeat_at
    monkeypatch.setattr("time.time", lambda: heartbeat + 60)
    healthy, answer = look_up_engine(data)
    assert not healthy
    assert answer == "the engine is not running: last heard from 60 seconds ago"
    store.database.close()


def test_an_unreadable_database_is_not_healthy(data: DataFolder) -> None:
    data.database.touch()
    healthy, answer = look_up_engine(data)
    assert not healthy
    assert "cannot be read" in answer


def test_workers_that_do_not_listen_are_not_healthy(data: DataFolder) -> None:
    healthy, answer = ask_web(data.web_socket)
    assert not healthy
    assert answer.startswith("no answer")


def test_waiting_ends_at_its_deadline(data: DataFolder) -> None:
    told: list[str] = []
    address = Address("127.0.0.1", 9)
    ready, answer = wait_for_instance(address, data, deadline_seconds=0, tell=told.append)
    assert not ready
    assert [answer] == told == ["the engine has not started yet"]


@pytest.mark.parametrize(("host", "name"), [("", "localhost"), ("::", "localhost"), ("10.1.2.3", "10.1.2.3")])
def test_an_instance_on_every_address_is_asked_on_this_machine(host: str, name: str) -> None:
    assert Address(host, 80).url == f"http://{name}:80"
