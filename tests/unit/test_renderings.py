"""Renderings of a document: files of killed conversions are removed, those of running ones are kept."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from app.storage.data_folder import DataFolder, new_job_id
from app.storage.locks import held_folder
from app.web.renderings import remove_unfinished_renderings


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    data = DataFolder(tmp_path / "data")
    data.create()
    return data


def make_job(data: DataFolder, *names: str) -> Path:
    folder = data.job(new_job_id())
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_conversions_cut_short_are_cleared_and_nothing_else_is(data: DataFolder):
    whole = ("result.pairs", "result.pts", "result.csv", "result.csv.sha256", "result.pairs-times", "video")
    of_the_engine = (".result.pairs.0a.tmp", ".result.pts.0a.tmp")
    kept = (*whole, *of_the_engine)
    cut_short = (".result.csv.0b.tmp", ".result.coco.sha256.0c.tmp", ".result.pairs-times.0d.tmp")
    folder = make_job(data, *kept, *cut_short)
    assert remove_unfinished_renderings(data) == len(cut_short)
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


def test_a_conversion_under_way_is_left_alone(data: DataFolder):
    folder = make_job(data, ".result.csv.0b.tmp")
    with held_folder(folder, deadline=time.monotonic()) as is_held:
        assert is_held
        assert remove_unfinished_renderings(data) == 0
    assert remove_unfinished_renderings(data) == 1


def test_a_folder_is_held_by_one_at_a_time(data: DataFolder):
    folder = make_job(data)
    with (
        held_folder(folder, deadline=time.monotonic()) as first,
        held_folder(folder, deadline=time.monotonic() + 0.1) as second,
    ):
        assert (first, second) == (True, False)
