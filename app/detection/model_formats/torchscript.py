"""Models of TorchScript: files ``*.torchscript``, or ``*.pt`` that ``torch.jit.save`` wrote.

Such a file is a program: loading it runs what it holds. It comes only from the administrator's folder.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from app.detection.model_files import json_object, read_as
from app.detection.network import Network
from app.detection.network_input import NetworkInput
from app.detection.torchvision_operators import provide_operators
from app.errors import ModelFault

METADATA_FILE = "config.txt"  # where Ultralytics' exporter puts it


def load_torchscript(name: str, content: bytes, device: str) -> Network:
    """Return the network, with its metadata. Raises ModelFault for any other file, and says what it is."""
    with read_as("TorchScript", name), zipfile.ZipFile(io.BytesIO(content)) as archive:
        inner = {file.partition("/")[2] for file in archive.namelist()}
    if "constants.pkl" not in inner:
        if any(file.startswith("models/") for file in inner):
            raise ModelFault(f"Model {name!r} is of torch.export; give its file the suffix .pt2.")
        raise ModelFault(
            f"Model {name!r} is a pickle of torch.save, which is not opened: it holds no network, and may "
            "run any code. Export the network, for instance with: "
            "yolo export model=<file>.pt format=torchscript"
        )
    with read_as("TorchScript", name), warnings.catch_warnings():
        # TorchScript is deprecated, but it is what people have.
        warnings.filterwarnings("ignore", r"`torch\.jit\..*` is deprecated", DeprecationWarning)
        try:
            module, metadata_text = _load(content, device)
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            provide_operators()
            module, metadata_text = _load(content, device)
    metadata = json_object(f"The metadata of model {name!r}", metadata_text or "{}")
    if device != "cpu":
        # A trace keeps the device of each tensor that it creates as a constant; loading moves only weights.
        graph = module.graph
        torch._C._jit_pass_inline(graph)  # noqa: SLF001 - else functions and submodules have their own graphs
        for constant in graph.findAllNodes("prim::Constant", recurse=True):
            if constant.output().type().kind() == "DeviceObjType":
                constant.s_("value", device)
    # Scripted detectors of torchvision take a list of pictures of any size.
    takes_list = str(module.forward.schema.arguments[1].type) == "List[Tensor]"
    # A script does not say what it takes, but its weights have a type, and the exporter notes the batch size
    # for which it was traced.
    types = [weights.dtype for weights in module.parameters() if weights.is_floating_point()]
    batch = metadata.get("batch")
    takes = NetworkInput(
        batch=batch if isinstance(batch, int) and batch > 0 else None,
        dtype=types[0] if types else torch.float32,
        name="images" if takes_list else "",
    )
    module.eval()

    def run(pictures: Tensor) -> object:
        # The optimiser rewrites a script after its first calls; the same picture could give other digits.
        with optimized_execution(False):
            return module(list(pictures) if takes_list else pictures)

    # TorchScript has an autocast of its own, which a script's first call settles for good.
    return Network(takes, run, metadata, has_fixed_precision=True, module=module)


def _load(content: bytes, device: str) -> tuple[Any, str]:
    """Return the script, and the text of its metadata."""
    extra_files = {METADATA_FILE: ""}
    try:
        module = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(content), map_location=device, _extra_files=extra_files
        )
    except RuntimeError as error:
        # Its first line is the cause; the script's source follows.
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise RuntimeError(f"{first}{_advice(first)}") from error
    return module, extra_files[METADATA_FILE]


def _advice(cause: str) -> str:
    if "torchvision::" not in cause:
        return ""
    build = "+cpu" if "+cpu" in torch.__version__ else ""
    return f". To serve it, pip install torchvision==0.28.0{build}, from the index that torch is from"
