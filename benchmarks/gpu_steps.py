"""The steps of `benchmarks.gpu_check`: each tells what it finds, and may fail without harm to the others."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import torch

from app.detection.device import DeviceThread
from app.detection.devices import make_ready, memory_bytes
from app.detection.frame_copies import copies_to, pinning_for
from app.detection.precision import Precision
from app.detection.registry import load_detector
from app.errors import InternalError
from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits
from benchmarks.batches import (
    compare_with_cpu,
    in_calls,
    measure_batches,
    on_whole_pages,
    repeated,
    sized,
    utilisation,
)
from benchmarks.gpu_bench import MIB, SMALL, Check
from benchmarks.job import Bench
from benchmarks.machine import describe_machine
from benchmarks.models import DECODE_ALONE
from benchmarks.process_memory import watched_memory
from benchmarks.seeded import make_rt_detr, make_video, make_yolo, repeat_video

CHECKOUT = Path(__file__).resolve().parents[1]
ITSELF = (sys.executable, "-u", "-m", "benchmarks", "gpu_check")
JOB_SLOTS = 4  # of jobs that are disturbed
FAST = 400  # frames a second of a network for which a video is too short


def machine(check: Check) -> None:
    check.tell(
        "machine", f"{describe_machine()}, {psutil.virtual_memory().total // MIB} MiB, {os.uname().release}"
    )
    check.tell("onnxruntime", f"{onnxruntime.__version__}, {onnxruntime.get_available_providers()}")
    for required in (True, False):
        try:
            with DecoderPool(
                limits=VideoLimits(), require_sandbox=required, memory_bytes=512 * MIB, ring_bytes=96 * MIB
            ) as decoders:
                check.tell("sandbox", decoders.sandbox)
            break
        except InternalError as error:
            check.tell("sandbox", f"NOT DONE: {error} From here on decoders run without.")
            (check.folder / "no-sandbox").touch()
    if check.device == "cpu":
        check.tell("GPU", "NOT DONE: torch finds no CUDA device; all that follows is the CPU's, and small")
        return
    make_ready(check.device)
    told = [torch.cuda.get_device_name(check.device), f"{(memory_bytes(check.device) or 0) // MIB} MiB"]
    told += [f"driver {_driver()}", f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    check.tell("GPU", ", ".join(told))
    with check.trying("frames to the device"):
        check.tell("frames to the device", _copy_speeds(check.device))


def _driver() -> str:
    with suppress(Exception):
        import pynvml  # noqa: PLC0415 - not everywhere

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    return "unknown"


def _copy_speeds(device: str) -> str:
    frames = on_whole_pages(np.zeros((16, 1080, 1920, 3), np.uint8))
    copies, pinning = copies_to(device), pinning_for([device])
    assert copies is not None, device
    assert pinning is not None, device
    pace = [repeated(lambda: copies.send(torch.from_numpy(frames)).nbytes, 0.3)]
    pinning.pin(frames)
    pace.append(repeated(lambda: copies.send(torch.from_numpy(frames)).nbytes, 0.3))
    return f"pageable {pace[0] / 1e9:.1f} GB/s, pinned as rings are {pace[1] / 1e9:.1f} GB/s"


def cuda_tests(check: Check) -> None:
    unit = (CHECKOUT / "tests" / "unit").glob("test_*.py")
    files = [str(path) for path in sorted(unit) if "cuda" in path.read_text(encoding="utf-8")]
    # Another version of a library may warn; that is not what is asked here.
    options = ["-m", "cuda", "-v", "--tb=short", "-rfEs", "-W", "default", "--timeout=90"]
    command = [sys.executable, "-u", "-m", "pytest", *options, "tests/contract", *files]
    log = check.folder / "tests.log"
    with log.open("wb") as output:
        environment = os.environ | {"FRAMEBOX_REQUIRE_CUDA": "1"}
        subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=output, stderr=output, check=False)
    lines = log.read_text(encoding="utf-8").splitlines() or ["nothing"]
    told = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED", "E  "))]
    print(*(told[-60:] or lines[-5:]), sep="\n")
    check.tell("CUDA tests", lines[-1].strip("= "))


def material(check: Check) -> None:
    sizes, models = check.sizes, check.folder / "models"
    width, height = sizes.video
    once = make_video(check.folder / "once.mp4", width=width, height=height, gop=sizes.gop)
    for path, times in zip((check.video, check.long_video), sizes.loops, strict=True):
        repeat_video(once, path, times)
    check.tell(
        "video", f"H.264, {width}x{height}, {once.stat().st_size * 8 * 30 // sizes.gop // 1000} kbit/s"
    )
    models.mkdir()
    make_yolo(models / "small", side=sizes.side, channels=sizes.channels)
    with check.trying("RT-DETR"):
        make_rt_detr(models / "large", side=sizes.large_side, is_small=sizes is SMALL)
    if not (models / "large" / "preprocessor_config.json").exists():
        shutil.rmtree(models / "large", ignore_errors=True)
        check.tell("large", "not RT-DETR, but convolutions alone")
        make_yolo(models / "large", side=sizes.large_side, channels=4 * sizes.channels)


def jobs(check: Check) -> None:
    for name in ("small", "large"):
        for precision in check.precisions:
            with check.trying(f"jobs, {name} {precision}"), check.bench(name, precision) as (bench, loaded):
                bare = _bare(check, f"{name} {precision}", loaded)
                is_fast = bare > FAST and check.sizes is not SMALL
                _job(check, bench, loaded, bare, slots=check.sizes.slots, is_long=is_fast)
                if name == "small" and precision == check.precisions[-1] and check.sizes.slots > 2:
                    _job(check, bench, loaded, bare, slots=2, is_long=False)


def _bare(check: Check, told: str, loaded: DeviceThread) -> float:
    """Tell frames a second of the network alone, and return those with its boxes read."""
    detector = sized(loaded.detector, loaded.batch_size)
    there = torch.from_numpy(check.frames(detector, 2 * detector.batch_size)).to(detector.device)

    def run_network() -> int:
        with torch.inference_mode():
            for batch in there.split(detector.batch_size):
                detector.output(batch)
        if there.is_cuda:
            torch.cuda.synchronize()
        return len(there)

    run_network(), in_calls(detector, there)  # the first calls allocate
    network = repeated(run_network, check.sizes.seconds)
    bare = repeated(lambda: in_calls(detector, there), check.sizes.seconds)
    told = f"bare, {told}, batches of {detector.batch_size}"
    check.tell(told, f"network {network:.0f}/s, with its boxes read {bare:.0f}/s")
    return bare


def _job(check: Check, bench: Bench, loaded: DeviceThread, bare: float, *, slots: int, is_long: bool) -> None:
    name, document = loaded.detector.name, check.folder / "document"
    video = check.long_video if is_long else check.video
    count = check.sizes.loops[is_long] * check.sizes.gop
    decoding = count / bench.run(video, DECODE_ALONE + name, slots=slots)
    with utilisation(check.device) as busy:
        seconds = bench.run(video, name, slots=slots, document=document)
    frames = json.loads(document.read_bytes())
    assert [frame_id for frame_id, _ in frames] == list(range(count)), "frames are missing"
    job, least = count / seconds, min(bare, decoding)
    shares = {phase: f"{spent / seconds / slots:.0%}" for phase, spent in bench.phases.items()}
    check.tell(
        f"job, {name} {loaded.detector.precision}, {slots} decoders",
        f"{job:.0f}/s, decoding alone {decoding:.0f}/s, job/bare {job / bare:.2f}, job/least of both "
        f"{job / least:.2f}; GPU busy {statistics.mean(busy or [0]):.0f}%, segments' threads {shares}; "
        f"{sum(len(boxes) for _, boxes in frames) / count:.1f} boxes a frame",
    )


def memory(check: Check) -> None:
    with check.bench("large", check.precisions[-1]) as (bench, loaded):
        for slots in sorted({2, check.sizes.slots}):
            with watched_memory(check.device) as most:
                bench.run(check.video, "large", slots=slots)
            told = "; ".join(f"{kind} {figures}" for kind, figures in most.items())
            check.tell(f"memory, large {loaded.detector.precision}, {slots} decoders", told)


def kills(check: Check) -> None:
    """Compare what a job writes that nothing disturbs with that of others, whose processes are killed."""
    name, precision = "small" if check.sizes is SMALL else "large", check.precisions[-1]
    for other, bits in dict.fromkeys([("small", Precision.FLOAT32), (name, precision)]):
        with check.trying(f"kills, {other} {bits}"):
            digests, told = _disturbed(check, other, bits)
            if other == name:
                digests["another process"], parts = _killed_midway(check, other, bits)
                told += f", a process killed after {parts} of {check.sizes.loops[0]} parts"
            verdict = "equal bytes" if len(set(digests.values())) == 1 else f"OTHER BYTES: {digests}"
            check.tell(f"kills, {other} {bits}", f"{verdict}; {told}")


def _disturbed(check: Check, name: str, precision: Precision) -> tuple[dict[str, str], str]:
    document, digests = check.folder / "document", {}
    with check.bench(name, precision) as (bench, _):
        for slots in (JOB_SLOTS, check.sizes.slots):
            bench.run(check.video, name, slots=slots, document=document)
            digests[f"{slots} decoders"] = _digest(document)
        with _killed_decoders(check.sizes.seconds) as victims:
            bench.run(check.video, name, slots=JOB_SLOTS, document=document)
        digests["decoders killed"] = _digest(document)
    return digests, f"{len(victims)} decoders killed"


def _killed_midway(check: Check, name: str, precision: Precision) -> tuple[str, int]:
    """Return the digest of a job whose process was killed, and the number of parts that it left behind."""
    parts = check.folder / f"parts-{name}-{precision}"
    command = [*ITSELF, *check.arguments, "--job", name, precision]
    with subprocess.Popen(command, cwd=CHECKOUT, start_new_session=True) as job:
        while job.poll() is None and _count(parts) < check.sizes.loops[0] // 3:
            time.sleep(0.005)
        with suppress(ProcessLookupError):  # it was done
            os.killpg(job.pid, signal.SIGKILL)
    kept = _count(parts)
    subprocess.run(command, cwd=CHECKOUT, check=True)
    return _digest(parts.with_suffix(".json")), kept


def _count(parts: Path) -> int:
    return len(list(parts.glob("*"))) if parts.is_dir() else 0


def _digest(document: Path) -> str:
    return hashlib.sha256(document.read_bytes()).hexdigest()[:16]


@contextmanager
def _killed_decoders(every_seconds: float) -> Iterator[list[int]]:
    """Kill a decoder child again and again while the block runs; yield the list of those killed."""
    done, killed, chance = threading.Event(), [], random.Random(1)

    def kill() -> None:
        while not done.wait(every_seconds):
            decoders = [child for server in psutil.Process().children() for child in server.children()]
            if decoders:
                with suppress(psutil.Error):
                    victim = chance.choice(decoders)
                    victim.kill()
                    killed.append(victim.pid)

    killer = threading.Thread(target=kill, name="killer")
    killer.start()
    try:
        yield killed
    finally:
        done.set()
        killer.join()


def batches(check: Check) -> None:
    sizes = [2**power for power in range(check.sizes.largest_batch.bit_length())]
    for name in ("small", "large"):
        for precision in check.precisions if name == "small" else check.precisions[-1:]:
            with check.trying(f"batches, {name} {precision}"):
                make_ready(check.device)
                folder = check.folder / "models"
                model = load_detector(name, device=check.device, models_folder=folder, precision=precision)
                frames = check.frames(model, check.sizes.largest_batch)
                if (pinning := pinning_for([check.device])) is not None:
                    pinning.pin(frames)
                speeds = measure_batches(model, frames, sizes, 1, check.sizes.seconds)
                told = ", ".join(f"{size}: {speed:.0f}/s" for size, speed in speeds.items())
                check.tell(f"batches, {name} {model.precision}", told)
                compare_with_cpu(model, load_detector(name, device="cpu", models_folder=folder), frames[:8])


def job_in_parts(check: Check, name: str, precision: str) -> None:
    """Do a job whose parts stay, for the next process that does the same."""
    parts = check.folder / f"parts-{name}-{precision}"
    with check.bench(name, precision) as (bench, _):
        bench.run(check.video, name, slots=JOB_SLOTS, document=parts.with_suffix(".json"), parts_folder=parts)
