"""Models of ONNX: files ``*.onnx``, run by onnxruntime on the CPU or a CUDA device.

Pictures and output are bound where they lie: on a GPU no frame comes back to the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from app.detection.model_files import read_as
from app.detection.network import Network
from app.detection.network_input import InputTensor, picture_input
from app.errors import ModelFault

_TYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "tensor(float)": torch.float32,
        "tensor(float16)": torch.float16,
        "tensor(uint8)": torch.uint8,
        "tensor(int64)": torch.int64,
        "tensor(int32)": torch.int32,
    }
)
_ONNX_TYPES: Mapping[torch.dtype, int] = MappingProxyType(
    # onnx.TensorProto.DataType
    {torch.float32: 1, torch.uint8: 2, torch.int32: 6, torch.int64: 7, torch.float16: 10}
)

# As `make_ready` does for torch. By default onnxruntime times cuDNN's algorithms at each start and takes the
# fastest, so that the next start may give other digits, and it rounds float32 to TF32.
_CUDA_OPTIONS: Mapping[str, object] = MappingProxyType({"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0})


def load_onnx(name: str, content: bytes, device: str, *, threads: int = 1) -> Network:
    """Return the network, with its metadata. Each call computes with `threads` on a CPU.

    Raises ModelFault for anything but a network for RGB pictures, and if onnxruntime cannot use the device.
    """
    import onnxruntime  # noqa: PLC0415 - large, and needed only by processes that have such a model

    place = torch.device(device)
    on_cuda = place.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if place.type != "cpu" and not on_cuda:
        raise ModelFault(
            f"Model {name!r} is an ONNX file, and this onnxruntime cannot use {place.type}: pip uninstall "
            "onnxruntime, then pip install -r requirements-onnx-gpu.txt; or export the model as .pt2."
        )
    providers: list[Any] = ["CPUExecutionProvider"]
    if on_cuda:
        providers = [("CUDAExecutionProvider", {"device_id": place.index or 0, **_CUDA_OPTIONS})]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # Threads that spin while they wait take the cores from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with read_as("ONNX", name):
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    # Where CUDA's libraries cannot be loaded, onnxruntime computes on the CPU, with a line in the log.
    if on_cuda and "CUDAExecutionProvider" not in session.get_providers():
        raise ModelFault(
            f"Model {name!r} is an ONNX file, and onnxruntime cannot load what it needs of CUDA and cuDNN; "
            "the engine's log says what. Put that right, or export the model as .pt2."
        )
    inputs = session.get_inputs()
    described = [InputTensor(node.name, node.shape, _TYPES.get(node.type)) for node in inputs]
    takes = picture_input(name, described)
    output_names = tuple(node.name for node in session.get_outputs())
    plain_names = tuple(output.removesuffix(":0") for output in output_names)  # as TensorFlow has them
    bound_to = (place.type, place.index or 0)

    def run(pictures: Tensor) -> dict[str, Tensor]:
        pictures = pictures.contiguous()
        binding = session.io_binding()
        given = [pictures if takes.has_batch else pictures[0], *takes.further_tensors(pictures)]
        for node, tensor in zip(inputs, given, strict=True):
            kind, shape = _ONNX_TYPES[tensor.dtype], list(tensor.shape)
            binding.bind_input(node.name, *bound_to, kind, shape, tensor.data_ptr())
        for output_name in output_names:
            binding.bind_output(output_name, *bound_to)
        if on_cuda:
            torch.cuda.current_stream(place).synchronize()  # onnxruntime works in a stream of its own
        session.run_with_iobinding(binding)
        outputs = zip(plain_names, binding.get_outputs(), strict=True)
        return {output_name: from_dlpack(value) for output_name, value in outputs}

    metadata = dict(session.get_modelmeta().custom_metadata_map)
    return Network(takes, run, metadata, has_fixed_precision=True, run_by="onnxruntime", threads=threads)
