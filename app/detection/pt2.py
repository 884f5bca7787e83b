"""Models of ``torch.export``: files ``*.pt2``.

Such a file is a program: loading it runs what it holds. It comes from the administrator's folder alone.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import orjson
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from app.errors import ModelFault

METADATA_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class Pt2Network:
    """An exported program on its device. Fulfils Network."""

    module: torch.nn.Module
    fixed_batch: int | None

    def run(self, pictures: Tensor) -> Tensor:
        output = self.module(pictures)
        if isinstance(output, list | tuple):
            output = output[0]
        if not isinstance(output, Tensor):
            raise ModelFault(f"The network returns a {type(output).__name__}, not a tensor.")
        return output


def load_pt2(name: str, content: bytes, device: str) -> tuple[Pt2Network, dict[str, object]]:
    """Return the network and its metadata. Raises ModelFault for what is no program for RGB pictures."""
    extra_files = {METADATA_FILE: ""}
    try:
        program = torch.export.load(io.BytesIO(content), extra_files=extra_files)
    except Exception as error:  # torch raises whatever its parsers meet
        raise ModelFault(
            f"Model {name!r} cannot be read as torch.export's: {type(error).__name__}."
        ) from error
    if device != "cpu":
        program = move_to_device_pass(program, device)
    batch = _batch(name, program)
    module: torch.nn.Module = program.module()
    for weights in module.parameters():
        if weights.ndim == 4:  # convolutions run half as fast again with the channels last
            weights.data = weights.data.contiguous(memory_format=torch.channels_last)
    return Pt2Network(module, batch), _metadata(name, extra_files[METADATA_FILE])


def _batch(name: str, program: torch.export.ExportedProgram) -> int | None:
    """Return the batch that the program was exported for, None for any."""
    inputs = set(program.graph_signature.user_inputs)
    values = [
        node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs
    ]
    if len(values) != 1 or values[0].ndim != 4 or values[0].shape[1] != 3 or values[0].dtype != torch.float32:
        seen = ", ".join(f"{tuple(value.shape)} {value.dtype}" for value in values)
        raise ModelFault(f"Model {name!r} takes {seen}; what is served takes (n, 3, height, width) float32.")
    batch = values[0].shape[0]
    return batch if isinstance(batch, int) else None


def _metadata(name: str, text: str | bytes) -> dict[str, object]:
    if not text:
        return {}
    try:
        metadata = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ModelFault(f"Model {name!r} carries metadata that is no JSON.") from error
    if not isinstance(metadata, dict):
        raise ModelFault(f"Model {name!r} carries metadata that is no JSON object.")
    return metadata
