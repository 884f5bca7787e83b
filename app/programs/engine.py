"""Builds the engine from the settings. It imports neither torch nor a codec."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from functools import partial

from app.engine.catalog import Catalog, TrialRules
from app.engine.engine import Engine
from app.engine.host_pool import HostPool, NoHost
from app.engine.host_process import HostLimits
from app.engine.job_run import JobRules, JobRun
from app.engine.records import Records
from app.engine.turns import JobTurns, SegmentTurns
from app.errors import InvalidOption, ModelFault
from app.host.messages import DecoderPlan, HostPlan
from app.jobs.retention import Retention, RetentionLimits
from app.metrics import Metrics, retire_counters
from app.pipeline.pace import FrameMeter
from app.programs.preflight import StartFault
from app.programs.shared_data import open_shared_data
from app.settings import CHECKOUT, READY_CHILDREN, Settings
from app.storage.data_folder import DataFolder
from app.storage.ingest import Ingest
from app.storage.space import SpaceLedger
from app.storage.uploads import UploadLimits, Uploads
from app.video.protocol.limits import VideoLimits
from app.wakeups import Program

SECRETS = ("FRAMEBOX_WEBHOOK_SECRET",)  # withheld from hosts, which do not need them


def run(settings: Settings, _: Namespace) -> None:
    """Run the engine. Raises StartFault if no host can run, or the default model cannot be loaded."""
    try:
        create_engine(settings).run()
    except NoHost as fault:
        raise StartFault(str(fault)) from fault
    except (InvalidOption, ModelFault) as fault:  # of the default model
        raise StartFault(f"FRAMEBOX_MODEL: {fault.detail}") from fault


def create_engine(settings: Settings) -> Engine:
    """Return the engine of this machine, ready to `run`; SIGTERM and SIGINT stop it.

    Call it in the main thread of a process that holds the data folder's engine lock.
    """
    data, wakeups, database = open_shared_data(Program.ENGINE, settings)
    retire_counters()
    listener = wakeups.listen(Program.ENGINE)
    metrics, meter, stop = Metrics(), FrameMeter(), threading.Event()
    records = Records(data, database, min_free_bytes=settings.min_free_bytes, stop=stop)
    hosts = HostPool(
        plan=_plan(settings, data),
        spawn=partial(_spawn, "host"),
        limits=HostLimits(
            settings.model_call_seconds, settings.model_load_seconds, settings.host_memory_bytes
        ),
        turns=SegmentTurns(slots=settings.decoders, express_slots=settings.express_decoders),
        metrics=metrics,
        meter=meter,
        wake=listener.interrupt,
    )
    catalog = Catalog(
        hosts,
        settings.model,
        TrialRules(
            settings.models,
            settings.model_hashes,
            data.verdicts,
            settings.host_memory_bytes,
            settings.model_load_seconds,
            settings.min_free_bytes,
        ),
        spawn=partial(_spawn, "trial"),
        stop=stop,
        wake=listener.interrupt,
    )
    rules = JobRules(settings.segment_frames, settings.engine_deaths, settings.model_call_seconds)
    ingest = Ingest(settings.ingest)
    space = SpaceLedger(data.space_ledger, data.root, min_free_bytes=settings.min_free_bytes)
    retention = Retention(
        data,
        records.queue,
        RetentionLimits(
            keep_seconds=settings.keep_days * 86400.0,
            keep_free_bytes=max(settings.keep_free_bytes, settings.min_free_bytes),
        ),
        Uploads(data.uploads, space, UploadLimits(settings.keep_upload_hours * 3600.0)),
    )
    engine = Engine(
        records,
        hosts,
        catalog,
        JobTurns(slots=settings.running_jobs, trace_parts=records.trace),
        retention,
        make_run=lambda job: JobRun(job, records, hosts, catalog, ingest, rules, metrics, meter),
        listener=listener,
        stopping=stop,
        stop_seconds=settings.stop_seconds,
        most_deaths=settings.engine_deaths,
    )
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda _number, _frame: engine.stop())
    return engine


def _plan(settings: Settings, data: DataFolder) -> HostPlan:
    return HostPlan(
        device=None,
        devices=settings.devices,
        models=settings.models,
        model_hashes=settings.model_hashes,
        precision=settings.precision,
        memory_bytes=settings.host_memory_bytes,
        torch_threads=settings.cpu_threads,
        verdicts=data.verdicts,
        decoders=DecoderPlan(
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
            ready_children=READY_CHILDREN,
        ),
        log_level=settings.log_level,
    )


def _spawn(command: str, descriptor: int, stderr: int | None = None) -> subprocess.Popen[bytes]:
    """Start a host or a trial in a process group of its own, to be ended together with its children."""
    return subprocess.Popen(
        [sys.executable, "-m", "app", command, "--channel", str(descriptor)],
        pass_fds=(descriptor,),
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
        cwd=CHECKOUT,
        env={name: value for name, value in os.environ.items() if name not in SECRETS},
    )
