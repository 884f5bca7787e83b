"""Builds the engine from the settings. Apart from `factory`, because this one imports torch and av."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from functools import partial

import structlog
import torch

from app.detection.devices import choose_devices, make_ready, memory_bytes
from app.detection.frame_copies import pinning_for
from app.detection.measuring import REVISION as PROFILE_REVISION
from app.detection.model_pool import ModelBudget, ModelPool
from app.detection.precision import Precision
from app.detection.registry import detector_names, load_detector
from app.detection.runtime import describe_runtime
from app.jobs.engine import Engine, EngineLimits
from app.jobs.retention import Retention, RetentionLimits
from app.jobs.store import JobStore
from app.logs import configure_logging
from app.memory import limit_private_bytes, memory_use
from app.metrics import Metrics, retire_counters
from app.pipeline.pace import FrameMeter
from app.pipeline.runner import LocalRunner
from app.pipeline.segment_task import Cancelled, PhaseClock, SegmentOutcome, SegmentTask, run_segment
from app.settings import Settings
from app.storage.data_folder import DataFolder
from app.storage.ingest import Ingest
from app.storage.model_profiles import ProfileStore
from app.storage.space import SpaceLedger
from app.storage.uploads import UploadLimits, Uploads
from app.video.decoder import DecoderPool
from app.video.limits import VideoLimits
from app.wakeups import Wakeups

# What the engine takes beyond its libraries and its models: eight jobs, their threads, their indexes and
# records, and what lies free in its allocator. Measured with detector `none`: 60 MiB.
OWN_BYTES = 160 * 1024 * 1024
DEVICE_SHARE = 0.9  # of a GPU's memory: what else runs there, and what its libraries take, is not ours
MOST_LOAD_ATTEMPTS = 3

_log = structlog.get_logger(__name__)


def create_engine(settings: Settings) -> Engine:
    """Return the engine of this machine, ready to `run`; SIGTERM and SIGINT stop it.

    Call it in the main thread of a process that holds the data folder's engine lock. Raises
    UnusableDevice.
    """
    configure_logging("engine", settings.log_level)
    if settings.cpu_threads is not None:
        torch.set_num_threads(settings.cpu_threads)
    devices = _ready_devices(settings)
    data = DataFolder(settings.data)
    data.create()
    wakeups = Wakeups(data.wakeups)
    store = JobStore(data.database, wakeups)
    store.create()
    retire_counters()
    metrics = Metrics()
    models = _models(settings, data, devices)
    decoders, meter = _decoders(settings, devices), FrameMeter()
    engine = Engine(
        data=data,
        store=store,
        ingest=Ingest(settings.ingest),
        models=models,
        default_model=settings.model,
        other_models=[name for name in detector_names(settings.models) if name != settings.model],
        decoders=decoders,
        runner=LocalRunner(
            slots=settings.decoders,
            express_slots=settings.express_decoders,
            run=partial(_run_segment, decoders, models, _clock(metrics), metrics, meter),
        ),
        retention=Retention(
            data,
            store,
            RetentionLimits(
                keep_seconds=settings.keep_days * 86400.0,
                keep_free_bytes=max(settings.keep_free_bytes, settings.min_free_bytes),
            ),
            _uploads(settings, data),
        ),
        limits=EngineLimits(
            running_jobs=settings.running_jobs,
            segment_frames=settings.segment_frames,
            min_free_bytes=settings.min_free_bytes,
            stop_seconds=settings.stop_seconds,
            model_call_seconds=settings.model_call_seconds,
            engine_deaths=settings.engine_deaths,
        ),
        metrics=metrics,
        meter=meter,
        wakeups=wakeups,
    )
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda _number, _frame: engine.stop())
    return engine


def _uploads(settings: Settings, data: DataFolder) -> Uploads:
    space = SpaceLedger(data.space_ledger, data.root, min_free_bytes=settings.min_free_bytes)
    return Uploads(data, space, UploadLimits(settings.keep_upload_hours * 3600.0, settings.max_open_uploads))


def _ready_devices(settings: Settings) -> tuple[str, ...]:
    devices = choose_devices(settings.devices)
    for device in devices:
        make_ready(device)
    return devices


def _models(settings: Settings, data: DataFolder, devices: Sequence[str]) -> ModelPool:
    room_bytes = settings.engine_memory_bytes - memory_use().own - OWN_BYTES
    if all(device == "cpu" for device in devices):  # CUDA reserves much more than it takes
        limit_private_bytes(settings.engine_memory_bytes)
    return ModelPool(
        devices=devices,
        load=lambda name, device: load_detector(
            name,
            device=device,
            models_folder=settings.models,
            allowed_hashes=settings.model_hashes,
            precision=Precision(settings.precision),
        ),
        profiles=ProfileStore(data.profiles, data.model_attempts, runtime=_runtime(devices[0])),
        budget=ModelBudget(max(0, room_bytes), _device_bytes(devices)),
        most_attempts=MOST_LOAD_ATTEMPTS,
    )


def _runtime(device: str) -> str:
    return f"{describe_runtime(device, threads=torch.get_num_threads())}, profile {PROFILE_REVISION}"


def _device_bytes(devices: Sequence[str]) -> int | None:
    totals = [total for total in map(memory_bytes, devices) if total is not None]
    return int(DEVICE_SHARE * min(totals)) if totals else None


def _decoders(settings: Settings, devices: Sequence[str]) -> DecoderPool:
    pinning = pinning_for(devices)
    return DecoderPool(
        limits=VideoLimits(
            max_pixels=settings.max_pixels,
            max_side=settings.max_side,
            max_frames=settings.max_frames,
            max_streams=settings.max_streams,
            max_decoded_pixels=settings.max_decoded_pixels,
            max_tags=settings.max_tags,
            max_opening_seconds=settings.max_opening_seconds,
            max_header_bytes=settings.max_header_bytes,
        ),
        threads=settings.decoder_threads,
        memory_bytes=settings.decoder_memory_bytes,
        ring_bytes=settings.ring_bytes,
        stall_seconds=settings.decoder_stall_seconds,
        require_sandbox=settings.require_sandbox,
        pin=None if pinning is None else pinning.pin,
    )


def _clock(metrics: Metrics) -> PhaseClock:
    return PhaseClock(lambda phase, seconds: metrics.stage_seconds.labels(phase).inc(seconds))


def _run_segment(
    decoders: DecoderPool,
    models: ModelPool,
    clock: PhaseClock,
    metrics: Metrics,
    meter: FrameMeter,
    task: SegmentTask,
    cancelled: Cancelled,
) -> SegmentOutcome:
    started = time.monotonic()
    outcome = run_segment(
        task,
        decoders=decoders,
        device=models.in_use(task.model).least_busy(),
        cancelled=cancelled,
        clock=clock,
        advance=partial(meter.add, task.job_id),
    )
    metrics.frames_analysed.inc(outcome.analysed)
    metrics.segments.labels("damaged" if outcome.undecodable else "whole").inc()
    _log.info(
        "segment finished",
        job_id=task.job_id,
        segment=task.segment.number,
        frames=outcome.analysed,
        undecodable=sum(gap.frame_count for gap in outcome.undecodable),
        seconds=round(time.monotonic() - started, 3),
    )
    return outcome
