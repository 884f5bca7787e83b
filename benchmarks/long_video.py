"""A video of millions of frames and an answer of over a gigabyte, a whole instance within 4 GiB of memory.

    python -m benchmarks long_video [--frames 3000000] [--folder /var/tmp]     as root, for the cgroup
    python -m benchmarks long_video --assembly-of 1.2                          the last measurement alone

The frames are tiny, so that their number is what counts. The model is made here: it finds ten boxes in every
frame, which move with its brightness. Prints the time, the memory at each tenth of the way, and how long the
document takes to assemble against `cat` of the same parts, and the download, plain and compressed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import requests
import torch
from torch import Tensor, nn

from app.pipeline.document import DocumentDigest, write_document
from app.storage.parts import Part, PartStore
from benchmarks.downloads import write_answer
from benchmarks.machine import describe_machine

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "tests"), str(CHECKOUT / "tests" / "e2e")]

from instance import Instance, make_clip, repeat_clip  # noqa: E402
from memory_group import MIB, MemoryGroup, PeakWatch  # noqa: E402

LIMIT_BYTES = 4096 * MIB
CLIP_FRAMES = 10_000
BOXES = 10
FRAMES_A_PART = 300
ROUNDS = 5
LOOK_SECONDS = 2.0
METADATA = {"names": {"0": "thing"}, "imgsz": [64, 64], "task": "detect"}


class TenBoxes(nn.Module):
    """Puts out (n, BOXES, 6): left, top, right, bottom, score, class; the scores differ with the picture."""

    boxes: Tensor  # (BOXES, 4)
    scores: Tensor  # (BOXES, 1)

    def __init__(self) -> None:
        super().__init__()
        corners = [[2.0 + 3 * k, 1.0 + 2 * k, 30.0 + 3 * k, 20.0 + 2 * k] for k in range(BOXES)]
        self.register_buffer("boxes", torch.tensor(corners))
        self.register_buffer("scores", torch.linspace(0.95, 0.5, BOXES)[:, None])

    def forward(self, pictures: Tensor) -> Tensor:
        brightness = pictures.mean(dim=(1, 2, 3))[:, None, None]  # (n, 1, 1)
        boxes = self.boxes + brightness
        scores = (self.scores - 0.2 * brightness).expand(-1, BOXES, 1)
        return torch.cat([boxes, scores, torch.zeros_like(scores)], dim=2)


def make_model(folder: Path) -> None:
    """Write the model `ten-boxes` into `folder`."""
    example = (torch.zeros(2, 3, 64, 64),)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(TenBoxes().eval(), example, dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"config.json": json.dumps(METADATA)})
    (folder / "ten-boxes.pt2").write_bytes(file.getvalue())
    (folder / "ten-boxes.toml").write_text('layout = "end-to-end"\nresize = "stretch"\nmax_overlap = 1.0\n')


def follow(instance: Instance, group: MemoryGroup, job_id: str) -> dict[str, Any]:
    """Print the memory at each tenth of the frames; return the report at the end."""
    tenth = 0
    while True:
        report = instance.report(job_id)
        if report["state"] in ("succeeded", "failed", "cancelled"):
            return report
        fraction = report["progress"]["fraction"] or 0.0
        if fraction * 10 >= tenth:
            engine, host = (
                sum(process.memory_info().rss for process in instance.find("-m", "app", program))
                for program in ("engine", "host")
            )
            held = group.held_bytes()
            print(
                f"{fraction:6.1%}: engine {engine / MIB:.0f} MiB, host {host / MIB:.0f} MiB, "
                f"cgroup holds {held / MIB:.0f} MiB"
            )
            tenth = int(fraction * 10) + 1
        time.sleep(LOOK_SECONDS)


def download(url: str, *arguments: str) -> float:
    started = time.perf_counter()
    command = ["curl", "-sS", "--fail", "-o", "/dev/null", *arguments, url]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - started


def make_parts(answer: Path, folder: Path) -> list[Part]:
    """Cut the answer up into the parts that it was made of."""
    store = PartStore(folder)
    store.create()
    with answer.open("rb") as lines:
        next(lines)
        records = (line.rstrip(b",\n") for line in lines if line != b"]\n")
        return [*_write_parts(store, records)]


def _write_parts(store: PartStore, records: Iterator[bytes]) -> Iterator[Part]:
    number = 0
    while batch := [*islice(records, FRAMES_A_PART)]:
        with store.write(number) as writer:
            writer.append(batch, range(len(batch)))
            writer.finish({})
        part = store.read(number)
        assert part is not None
        yield part
        number += 1


def compare_assembly(answer: Path, folder: Path) -> None:
    """`cat`, with a sync of its output as ours has, and ours, in turns over the same parts."""
    parts, joined = make_parts(answer, folder / "parts"), folder / "joined"
    digest = DocumentDigest()
    for part in parts:
        digest.add(part)  # in a job this is done as the parts come
    line = f"cat {folder}/parts/*.part > {joined} && sync {joined}"
    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(_timed(lambda: subprocess.run(["bash", "-c", line], check=True)))
        joined.unlink()
        ours.append(_timed(lambda: write_document(parts, joined, digest)))
        is_same = joined.stat().st_size == answer.stat().st_size
        joined.unlink()
        assert is_same
    ratio = statistics.median(ours) / statistics.median(theirs)
    rounds = [round(our / their, 2) for our, their in zip(ours, theirs, strict=True)]
    print(
        f"assembly of {len(parts)} parts: {statistics.median(ours):.2f} s, cat and sync "
        f"{statistics.median(theirs):.2f} s, ratio {ratio:.2f} (rounds: {rounds})"
    )


def _timed(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _run(instance: Instance, group: MemoryGroup, video: Path, frames: int, answer: Path) -> None:
    with PeakWatch(instance) as watch:
        job_id = instance.post_async(video, model="ten-boxes")
        report = follow(instance, group, job_id)
        url = f"{instance.url}/v1/jobs/{job_id}/result"
        plain, packed = download(url), download(url, "-H", "Accept-Encoding: gzip")
    assert report["completeness"]["frames_analysed"] == frames, report
    started, finished = (datetime.fromisoformat(report[name]) for name in ("started_at", "finished_at"))
    seconds = (finished - started).total_seconds()
    size = report["document"]["bytes"]
    print(f"{frames} frames in {seconds:.0f} s, {frames / seconds:.0f} a second; answer {size / 1e9:.2f} GB")
    print(f"download: plain {plain:.1f} s, {size / plain / 1e6:.0f} MB/s; gzip {packed:.1f} s")
    peaks = ", ".join(f"{kind} {peak / MIB:.0f}" for kind, peak in sorted(watch.peaks.items()))
    print(f"largest resident process of a kind, MiB: {peaks}")
    print(
        f"cgroup: {group.peak_bytes() / MIB:.0f} MiB with page cache, killed: {group.out_of_memory_kills()}"
    )
    plain_form = {"Accept-Encoding": "identity"}
    with requests.get(url, headers=plain_form, stream=True, timeout=60) as body, answer.open("wb") as file:
        shutil.copyfileobj(body.raw, file, 1 << 20)


def measure(folder: Path, frames: int) -> None:
    models = folder / "models"
    models.mkdir()
    make_model(models)
    clip = make_clip(folder / "clip.mp4", frames=CLIP_FRAMES, size="64x48", gop=250)
    video = repeat_clip(clip, folder / "video.mp4", times=frames // CLIP_FRAMES)
    print(f"video: {video.stat().st_size / 1e9:.2f} GB")
    group = MemoryGroup.create(f"framebox-long-{os.getpid()}", limit_bytes=LIMIT_BYTES)
    try:
        instance = Instance(folder / "data", models=models)
        try:
            instance.start(preexec_fn=group.enter)
            _run(instance, group, video, frames, folder / "answer")
            instance.stop()
        finally:
            instance.kill()
    finally:
        group.remove()
    shutil.rmtree(folder / "data")
    compare_assembly(folder / "answer", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=3_000_000, help=f"a multiple of {CLIP_FRAMES}")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))  # noqa: S108
    parser.add_argument("--assembly-of", type=float, help="only assemble an answer of so many gigabytes")
    arguments = parser.parse_args()
    print(describe_machine())
    folder = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="framebox-long-"))
    try:
        if arguments.assembly_of:
            write_answer(folder / "answer", int(arguments.assembly_of * 1e9), boxes=BOXES)
            compare_assembly(folder / "answer", folder)
        else:
            measure(folder, arguments.frames)
    finally:
        shutil.rmtree(folder)
