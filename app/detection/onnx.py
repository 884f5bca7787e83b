"""Models of ONNX: files ``*.onnx``, run by onnxruntime on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from app.errors import ModelFault


@dataclass(frozen=True, slots=True)
class OnnxNetwork:
    """A session of onnxruntime. Fulfils Network."""

    session: Any
    input_name: str
    output_name: str
    fixed_batch: int | None

    def run(self, pictures: Tensor) -> Tensor:
        (output,) = self.session.run([self.output_name], {self.input_name: pictures.contiguous().numpy()})
        return torch.from_numpy(output)


def load_onnx(name: str, content: bytes, device: str) -> tuple[OnnxNetwork, dict[str, object]]:
    """Return the network and its metadata.

    Raises ModelFault for what is no network for RGB pictures, for a device that is not the CPU, and, naming
    the requirement file, where onnxruntime is not installed.
    """
    if device != "cpu":
        raise ModelFault(f"Model {name!r} is an ONNX file, which runs on the CPU alone; export it as .pt2.")
    runtime = _onnxruntime(name)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen classes of its own
        raise ModelFault(f"Model {name!r} cannot be read as ONNX: {type(error).__name__}.") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        seen = ", ".join(f"{node.shape} {node.type}" for node in inputs)
        raise ModelFault(f"Model {name!r} takes {seen}; what is served takes (n, 3, height, width) float.")
    batch = inputs[0].shape[0]
    network = OnnxNetwork(
        session, inputs[0].name, session.get_outputs()[0].name, batch if isinstance(batch, int) else None
    )
    return network, dict(session.get_modelmeta().custom_metadata_map)


def _onnxruntime(name: str) -> ModuleType:
    try:
        import onnxruntime  # noqa: PLC0415 - optional, and large
    except ImportError as error:
        raise ModelFault(
            f"Model {name!r} is an ONNX file; to serve it, install the packages of requirements-onnx.txt."
        ) from error
    runtime: ModuleType = onnxruntime
    return runtime
