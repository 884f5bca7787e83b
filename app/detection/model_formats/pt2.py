"""Models of ``torch.export``: files ``*.pt2``.

Such a file is a program: loading it runs what it holds. It comes only from the administrator's folder.
"""

from __future__ import annotations

import io

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from app.detection.model_files import json_object, read_as
from app.detection.network import Network
from app.detection.network_input import InputTensor, picture_input

METADATA_FILE = "config.json"

_TYPE_CHECK = torch.ops.aten._assert_tensor_metadata.default  # noqa: SLF001 - an operator's name
_DETACH = torch.ops.aten.detach_.default


@torch.inference_mode(mode=False)  # tensors made in inference mode do not record whether they were changed
def load_pt2(name: str, content: bytes, device: str) -> Network:
    """Return the network, with its metadata. Raises ModelFault for all but programs for RGB pictures."""
    extra_files = {METADATA_FILE: ""}
    with read_as("torch.export's", name):
        program = torch.export.load(io.BytesIO(content), extra_files=extra_files)
    if device != "cpu":
        program = move_to_device_pass(program, device)
    input_names = set(program.graph_signature.user_inputs)
    inputs = [
        InputTensor(node.name, node.meta["val"].shape, node.meta["val"].dtype)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in input_names
    ]
    takes = picture_input(name, inputs)
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
            # The exporter adds this to tensors that the network writes down. It does nothing here, but stops
            # the program from being exported a second time.
            for node in part.graph.find_nodes(op="call_function", target=_DETACH):
                node.replace_all_uses_with(node.args[0])
                part.graph.erase_node(node)
            part.recompile()
    versions = _versions(module)

    def run(pictures: Tensor) -> object:
        given = pictures if takes.has_batch else pictures[0]
        return module(given, *takes.further_tensors(pictures))

    return Network(
        takes,
        run,
        metadata=json_object(f"The metadata of model {name!r}", extra_files[METADATA_FILE] or "{}"),
        is_stateless=lambda: _versions(module) == versions,
        module=module,
    )


def _versions(module: torch.nn.Module) -> tuple[int, ...]:
    """Count how often each tensor that the program keeps was changed in place."""
    return tuple(tensor._version for tensor in (*module.parameters(), *module.buffers()))  # noqa: SLF001
