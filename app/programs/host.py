"""Start a host in this process, with its device, models and decoders; or try one model."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

import torch

from app.detection.conversion import REVISION as CONVERSION_REVISION
from app.detection.devices import UnusableDevice, choose_devices, describe_runtime, make_ready, memory_bytes
from app.detection.frame_copies import pinning_for
from app.detection.measuring import REVISION as PROFILE_REVISION
from app.detection.model_facts import Verdict
from app.detection.model_files import ModelContent, read_model
from app.detection.model_pool import ModelBudget, ModelPool
from app.detection.precision import Precision
from app.detection.registry import BUILT_IN
from app.detection.registry import REVISION as READING_REVISION
from app.detection.trial import TooLarge, convert_model, refused, try_model
from app.errors import FrameboxError, ModelFault
from app.host.host import Host
from app.host.messages import (
    HOST_OWN_BYTES,
    HostPlan,
    HostReady,
    HostUnusable,
    TrialBegun,
    TrialEnded,
    TrialPlan,
    TrialStep,
    TrialTooLarge,
)
from app.host.tried_models import TriedModels, tried_by
from app.host.verdicts import VerdictStore
from app.logs import configure_logging
from app.memory import limit_private_bytes, memory_use
from app.settings import Settings
from app.video.decoder import DecoderPool

DEVICE_SHARE = 0.9  # of a GPU's memory: other programs and CUDA's libraries need some


def run(_: Settings, chosen: Namespace) -> None:
    """Serve the engine at the other end of the socket `chosen.channel`, or try one model for it."""
    channel = Connection(chosen.channel)
    try:
        plan: HostPlan | TrialPlan = channel.recv()
    except EOFError:
        return
    host_plan = plan if isinstance(plan, HostPlan) else plan.host
    configure_logging(chosen.command, host_plan.log_level)
    if host_plan.torch_threads is not None:
        torch.set_num_threads(host_plan.torch_threads)
    if isinstance(plan, HostPlan):
        _serve(channel, plan)
    else:
        _try(channel, plan)
    os._exit(0)  # without waiting for threads: the engine no longer needs their results


def _serve(channel: Connection, plan: HostPlan) -> None:
    try:
        devices = choose_devices(plan.devices)
        device = plan.device or devices[0]
        make_ready(device)
        pinning = pinning_for([device])

        budget, tried_models = _budget(plan, device), _tried_models(plan, device)

        def limit_memory(allowed_bytes: int | None) -> None:
            if device == "cpu":  # CUDA reserves much more than it takes
                limit_private_bytes(plan.memory_bytes if allowed_bytes is None else allowed_bytes)

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
            ModelPool(device=device, find=tried_models, budget=budget) as models,
        ):
            limit_memory(None)
            channel.send(
                HostReady(
                    device=device,
                    devices=devices,
                    decoder_identity=decoders.identity,
                    sandbox=decoders.sandbox,
                    built_in_models=tuple(BUILT_IN),
                    models_bytes=budget.host_bytes or 0,
                    runtime=tried_models.verdicts.runtime,
                    own_bytes=memory_use().own,
                )
            )
            Host(channel, models, decoders, limit_memory).serve()
    except UnusableDevice as error:
        channel.send(HostUnusable(f"FRAMEBOX_DEVICES: {error}"))
    except FrameboxError as error:
        channel.send(HostUnusable(str(error)))


def _try(channel: Connection, plan: TrialPlan) -> None:
    device = plan.host.device or "cpu"
    make_ready(device)
    channel.send(TrialBegun(memory_use().own))
    budget = _budget(plan.host, device, least_own_bytes=plan.host_own_bytes)
    if device == "cpu":
        limit_private_bytes(plan.room_bytes)
    else:
        share = DEVICE_SHARE - plan.kept_device_bytes / torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(max(0.01, share), device)
    try:
        content = read_model(plan.model, plan.host.models, plan.host.model_hashes)
        if content is None:
            raise ModelFault(f"Model {plan.model!r} was removed.")  # noqa: TRY301
        verdict = _verdict(plan, device, content, budget)
        channel.send(TrialEnded(verdict.model_copy(update={"content": content.fingerprint(0)})))
    except ModelFault as error:
        channel.send(TrialEnded(refused(plan.model, error)))
    except TooLarge as error:
        needed = error.needed
        if budget.takes(needed):  # it found no memory before it had all that it needs
            needed = replace(needed, host_bytes=budget.host_bytes or 0)
        is_device_too_small = needed.device_bytes > (budget.device_bytes or needed.device_bytes)
        channel.send(
            TrialTooLarge(needed.peak_host_bytes, needed.device_bytes, budget.describe(), is_device_too_small)
        )


def _verdict(plan: TrialPlan, device: str, content: ModelContent, budget: ModelBudget) -> Verdict:
    """Return the verdict on a model, or a better one than that of the plan. Raises TooLarge."""
    store, precision = _verdicts(plan.host, device), Precision(plan.host.precision)
    measured = partial(
        try_model,
        content,
        device=device,
        precision=precision,
        budget=budget,
        runtime=describe_runtime(device, threads=torch.get_num_threads()),
        may_economise=plan.is_whole,
    )
    known = plan.verdict
    if known is None or plan.step is TrialStep.TRY:
        return measured()
    if plan.step is TrialStep.CONVERT:
        file = convert_model(content, known, precision)
        return known if file is None else known.model_copy(update={"converted": store.write_file(file)})
    verdict = measured(tried=tried_by(known, store))
    if verdict.facts is None:  # as it is, it has passed
        return known.model_copy(update={"converted": None})
    # Another conversion of the same model may give other digits.
    runtime = f"{verdict.facts.runtime}, converted {known.converted}"
    facts = verdict.facts.model_copy(update={"runtime": runtime})
    return verdict.model_copy(update={"facts": facts, "converted": known.converted})


def _budget(plan: HostPlan, device: str, *, least_own_bytes: int = 0) -> ModelBudget:
    """Return what models may take in a host; this process has loaded none yet."""
    total_bytes = memory_bytes(device)
    return ModelBudget(
        max(0, plan.memory_bytes - max(memory_use().own, least_own_bytes) - HOST_OWN_BYTES),
        None if total_bytes is None else int(DEVICE_SHARE * total_bytes),
        own_bytes=HOST_OWN_BYTES,
    )


def _tried_models(plan: HostPlan, device: str) -> TriedModels:
    return TriedModels(
        device=device,
        folder=plan.models,
        allowed_hashes=plan.model_hashes,
        precision=Precision(plan.precision),
        verdicts=_verdicts(plan, device),
        runtime=describe_runtime(device, threads=torch.get_num_threads()),
    )


def _verdicts(plan: HostPlan, device: str) -> VerdictStore:
    runtime = describe_runtime(device, threads=torch.get_num_threads())
    revisions = f"profile {PROFILE_REVISION}, reading {READING_REVISION}, conversion {CONVERSION_REVISION}"
    return VerdictStore(
        plan.verdicts, f"{device.partition(':')[0]}, {runtime}, {revisions}, {plan.precision}"
    )
