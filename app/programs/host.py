"""Start a host in this process: set up the device, the model pool and the decoders, then serve."""

from __future__ import annotations

import os
from argparse import Namespace
from multiprocessing.connection import Connection

import structlog
import torch

from app.detection.devices import UnusableDevice, choose_devices, describe_runtime, make_ready, memory_bytes
from app.detection.frame_copies import pinning_for
from app.detection.measuring import REVISION as PROFILE_REVISION
from app.detection.model_pool import ModelBudget, ModelPool
from app.detection.precision import Precision
from app.detection.registry import detector_names, load_detector
from app.errors import FrameboxError
from app.host.host import Host
from app.host.messages import HostPlan, HostReady, HostUnusable
from app.logs import configure_logging
from app.memory import limit_private_bytes, memory_use
from app.settings import Settings
from app.storage.model_profiles import ProfileStore
from app.video.decoder import DecoderPool

# What a host takes beyond its libraries and its models: the threads of its segments, their records, and free
# memory in its allocator.
OWN_BYTES = 96 * 1024 * 1024
DEVICE_SHARE = 0.9  # of a GPU's memory: other programs and CUDA's libraries need some
MOST_LOAD_ATTEMPTS = 3

_log = structlog.get_logger(__name__)


def run(_: Settings, chosen: Namespace) -> None:
    """Serve the engine at the other end of the socket `chosen.channel`. Return if it is gone."""
    channel = Connection(chosen.channel)
    try:
        plan: HostPlan = channel.recv()
    except EOFError:
        return
    configure_logging("host", plan.log_level)
    if plan.torch_threads is not None:
        torch.set_num_threads(plan.torch_threads)
    try:
        devices = choose_devices(plan.devices)
        device = plan.device or devices[0]
        make_ready(device)
        pinning = pinning_for([device])
        with (
            DecoderPool(
                limits=plan.decoders.limits,
                threads=plan.decoders.threads,
                memory_bytes=plan.decoders.memory_bytes,
                ring_bytes=plan.decoders.ring_bytes,
                stall_seconds=plan.decoders.stall_seconds,
                require_sandbox=plan.decoders.require_sandbox,
                ready_children=plan.decoders.ready_children,
                pin=None if pinning is None else pinning.pin,
            ) as decoders,
            _make_models(plan, device) as models,
        ):
            names = tuple(detector_names(plan.models))
            own_bytes = memory_use().own
            channel.send(HostReady(device, devices, decoders.identity, decoders.sandbox, names, own_bytes))
            Host(channel, models, decoders).serve()
    except UnusableDevice as error:
        channel.send(HostUnusable(f"FRAMEBOX_DEVICES: {error}"))
    except FrameboxError as error:
        channel.send(HostUnusable(str(error)))
    os._exit(0)  # without waiting for threads: the engine no longer needs their results


def _make_models(plan: HostPlan, device: str) -> ModelPool:
    room_bytes = plan.memory_bytes - memory_use().own - OWN_BYTES
    if device == "cpu":  # CUDA reserves much more than it takes
        limit_private_bytes(plan.memory_bytes)
    total_bytes = memory_bytes(device)
    runtime = f"{describe_runtime(device, threads=torch.get_num_threads())}, profile {PROFILE_REVISION}"
    return ModelPool(
        device=device,
        load=lambda name: load_detector(
            name,
            device=device,
            models_folder=plan.models,
            allowed_hashes=plan.model_hashes,
            precision=Precision(plan.precision),
        ),
        profiles=ProfileStore(plan.profiles, plan.model_attempts, runtime=runtime),
        budget=ModelBudget(
            max(0, room_bytes),
            None if total_bytes is None else int(DEVICE_SHARE * total_bytes),
            own_bytes=OWN_BYTES,
        ),
        most_attempts=MOST_LOAD_ATTEMPTS,
    )
