"""Models of ``torch.export``: files ``*.pt2``.

Such a file is a program: loading it runs what it holds. It comes only from the administrator's folder.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import orjson
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from app.detection.network_input import NetworkInput, picture_input
from app.errors import ModelFault

METADATA_FILE = "config.json"

_TYPE_CHECK = torch.ops.aten._assert_tensor_metadata.default  # noqa: SLF001 - an operator's name


@dataclass(frozen=True, slots=True)
class Pt2Network:
    """An exported program on its device. Fulfils Network."""

    module: torch.nn.Module
    takes: NetworkInput
    versions: tuple[int, ...]  # of its tensors when it was loaded

    @property
    def is_stateless(self) -> bool:
        return _versions(self.module) == self.versions

    def run(self, pictures: Tensor) -> object:
        return self.module(pictures)


@torch.inference_mode(mode=False)  # tensors made in inference mode do not record whether they were changed
def load_pt2(name: str, content: bytes, device: str) -> tuple[Pt2Network, dict[str, object]]:
    """Return the network and its metadata. Raises ModelFault for anything but a program for RGB pictures."""
    extra_files = {METADATA_FILE: ""}
    try:
        program = torch.export.load(io.BytesIO(content), extra_files=extra_files)
    except Exception as error:  # torch raises whatever its parsers meet
        raise ModelFault(
            f"Model {name!r} cannot be read as torch.export's: {type(error).__name__}."
        ) from error
    if device != "cpu":
        program = move_to_device_pass(program, device)
    input_names = set(program.graph_signature.user_inputs)
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in input_names
    ]
    if len(inputs) != 1:
        seen = ", ".join(f"{tuple(value.shape)} {value.dtype}" for value in inputs)
        raise ModelFault(
            f"Model {name!r} takes {len(inputs)} inputs: {seen}; what is served takes pictures alone."
        )
    takes = picture_input(name, inputs[0].shape, inputs[0].dtype)
    module: torch.nn.Module = program.module()
    for weights in module.parameters():
        if weights.ndim == 4:  # convolutions run 1.5 times as fast with the channels last
            weights.data = weights.data.contiguous(memory_format=torch.channels_last)
    # The exporter adds a check before each of the network's own casts: the input must have the type that it
    # had then. In another precision it does not.
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.find_nodes(op="call_function", target=_TYPE_CHECK):
                part.graph.erase_node(node)
            part.recompile()
    return Pt2Network(module, takes, _versions(module)), json_metadata(name, extra_files[METADATA_FILE])


def _versions(module: torch.nn.Module) -> tuple[int, ...]:
    """Count how often each tensor that the program keeps was changed in place."""
    return tuple(tensor._version for tensor in (*module.parameters(), *module.buffers()))  # noqa: SLF001


def json_metadata(name: str, text: str | bytes) -> dict[str, object]:
    """Return the metadata that an exporter wrote as JSON. Raises ModelFault for anything else."""
    if not text:
        return {}
    try:
        metadata = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ModelFault(f"Model {name!r} carries metadata that is not valid JSON.") from error
    if not isinstance(metadata, dict):
        raise ModelFault(f"Model {name!r} carries metadata that is not a JSON object.")
    return metadata
