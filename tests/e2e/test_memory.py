"""A whole instance inside a memory cgroup of 4 GB: a long video costs no more than a short one."""

from __future__ import annotations

from pathlib import Path

import pytest
from instance import Instance, make_clip, repeat_clip
from memory_group import MIB, MemoryGroup, PeakWatch

LIMIT_BYTES = 4096 * MIB
ENGINE_BYTES = 150 * MIB  # it computes nothing: neither torch nor a codec is loaded into it
SLACK_BYTES = 24 * MIB  # what an allocator may keep more or less of, from run to run


@pytest.mark.exclusive
@pytest.mark.parametrize("memory_group", [LIMIT_BYTES], indirect=True)
def test_ten_times_the_frames_take_no_more_memory(memory_group: MemoryGroup, tmp_path: Path) -> None:
    short = make_clip(tmp_path / "short.mp4", frames=10_000, size="64x48", gop=250)
    long = repeat_clip(short, tmp_path / "long.mp4", times=10)
    peaks = {}
    instance = Instance(tmp_path / "data", model="none")
    try:
        instance.start(preexec_fn=memory_group.enter)
        instance.wait_until_models_are_tried()
        for name, video, frames in (("short", short, 10_000), ("long", long, 100_000)):
            with PeakWatch(instance) as watch:
                answer = instance.post(video)
            assert answer.status_code == 200, answer.text
            assert answer.headers["Framebox-Frames"] == str(frames)
            peaks[name] = dict(watch.peaks)
        peak_of_all = memory_group.peak_bytes()
        instance.stop()
    finally:
        instance.kill()
    for name, found in peaks.items():
        print(name, {kind: f"{size / MIB:.0f} MiB" for kind, size in sorted(found.items())})  # noqa: T201
    print(f"whole instance, page cache included: {peak_of_all / MIB:.0f} MiB")  # noqa: T201
    assert peak_of_all < LIMIT_BYTES
    assert peaks["long"]["engine"] < ENGINE_BYTES
    for kind in ("engine", "host", "decoder", "web", "nginx"):
        assert peaks["long"][kind] < peaks["short"][kind] + SLACK_BYTES, kind
