"""Networks of torch as ONNX files, because onnxruntime computes most of them faster on a CPU.

Conversion is never needed: a network that cannot be converted, or whose converted form finds other boxes,
runs on torch as before. Takes seconds to a minute and, at its peak, some three times the network's weights.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from app.detection.golden import golden_scenes
from app.detection.model_files import reason
from app.detection.network import Network, NetworkDetector
from app.detection.network_output import FLOOR_SCORE

REVISION = 1  # of converted files; raised when the same network would be converted otherwise
INPUT_NAME = "pictures"

# How far the numbers of a converted network may be off: sums are added up in another order, and sigmoids are
# approximated otherwise. YOLOX-Nano is off by 2e-6 and 0.0015 pixels.
SCORE_TOLERANCE = 2e-3
BOX_TOLERANCE = 0.02  # of a box's longer side, or of a pixel if that is more

# Exporters write these checks of a network's own numbers into the program; ONNX has nothing like them.
_CHECKS = frozenset(
    {
        torch.ops.aten._assert_async.default,  # noqa: SLF001 - operators' names
        torch.ops.aten._assert_async.msg,  # noqa: SLF001
        torch.ops.aten._assert_scalar.default,  # noqa: SLF001
        torch.ops.aten._assert_tensor_metadata.default,  # noqa: SLF001
    }
)


class CannotConvert(Exception):
    """A network has no equal in ONNX; the message says why."""


def convert(network: Network, pictures: Tensor, *, sizes_vary: bool = False) -> bytes:
    """Return `network`, which is on the CPU, as an ONNX file of float32 that gives the same outputs.

    `pictures`: two as the network takes them, or its fixed batch. The file takes any number of pictures if
    the network does, and if not even then, one. With `sizes_vary` it takes them in any size. Outputs keep
    their names; those without are called by their place: 0, 1 …

    Raises CannotConvert if the network is not of torch or cannot be converted, and MemoryError.
    """
    if network.module is None or pictures.dtype is not torch.float32:
        raise CannotConvert("it is no network of torch in float32")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators that nobody asked for
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for those who write networks
        names = _output_names(network.run(pictures))
        if isinstance(network.module, torch.jit.ScriptModule):
            return _convert_script(network.module, pictures, names, has_batch=network.takes.batch is not None)
        dynamic = {}
        if network.takes.batch is None:
            dynamic[0] = torch.export.Dim.DYNAMIC
        if sizes_vary:
            height_at = 1 if network.takes.channels_last else 2
            dynamic |= {height_at: torch.export.Dim.DYNAMIC, height_at + 1: torch.export.Dim.DYNAMIC}
        try:
            return _convert_module(network, pictures, names, dynamic)
        except CannotConvert:
            if network.takes.batch is not None or sizes_vary:
                raise
        # Some networks fix the number of pictures that they are exported with. One at a time is as fast.
        return _convert_module(network, pictures[:1], names, {})


class _Running(nn.Module):
    """A network with all that is done around it, as a module that can be exported."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.inner = network.module  # its weights are found here
        self._run = network.run

    def forward(self, pictures: Tensor) -> object:
        return self._run(pictures)


def _convert_module(
    network: Network, pictures: Tensor, names: Sequence[str], dynamic: Mapping[int, object]
) -> bytes:
    try:
        program = torch.export.export(
            _Running(network), (pictures,), dynamic_shapes=(dict(dynamic),), strict=False
        )
        graph = program.graph_module.graph
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target in _CHECKS:
                graph.erase_node(node)
        graph.eliminate_dead_code()
        program.graph_module.recompile()
        converted = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT_NAME], output_names=list(names)
        )
        content = io.BytesIO()
        assert converted is not None  # noqa: S101 - it is None only where it is given a file
        converted.save(content)  # type: ignore[arg-type]  # files too
    except MemoryError:
        raise
    except Exception as error:  # whatever torch and its libraries raise
        raise CannotConvert(reason(_root(error))) from error
    return content.getvalue()


def _convert_script(
    script: torch.jit.ScriptModule, pictures: Tensor, names: Sequence[str], *, has_batch: bool
) -> bytes:
    """Convert with torch's older exporter: the newer one takes no scripts."""
    content = io.BytesIO()
    # It takes no numbers for names.
    safe_names = [f"output_{place}" for place in range(len(names))]
    try:
        import onnx  # noqa: PLC0415 - needed for conversions only, in a process of their own
        import onnx_ir  # noqa: PLC0415

        torch.onnx.export(
            script,
            (pictures,),
            content,  # type: ignore[arg-type]  # without dynamo, files too
            dynamo=False,
            input_names=[INPUT_NAME],
            output_names=safe_names,
            dynamic_axes=None if has_batch else {name: {0: "n"} for name in (INPUT_NAME, *safe_names)},
        )
        model = onnx_ir.from_proto(onnx.load_from_string(content.getvalue()))
        for output, name in zip(model.graph.outputs, names, strict=True):
            output.name = name
        return bytes(onnx_ir.to_proto(model).SerializeToString())
    except MemoryError:
        raise
    except Exception as error:  # whatever torch and its libraries raise
        raise CannotConvert(reason(_root(error))) from error


def _root(error: BaseException) -> Any:
    """Return what an exporter met: it wraps that in advice for those who write networks."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _output_names(output: object) -> list[str]:
    """Return the names of the tensors in `output`. Raises CannotConvert where it is no flat collection."""
    match output:
        case Tensor():
            return ["0"]
        case list() | tuple() if output and all(isinstance(value, Tensor) for value in output):
            return [str(place) for place in range(len(output))]
        case Mapping() if output and all(isinstance(value, Tensor) for value in output.values()):
            return [str(name) for name in output]
    raise CannotConvert("its output is not a tensor, several, or several with names")


def difference(converted: NetworkDetector, original: NetworkDetector, counts: Sequence[int]) -> str | None:
    """Return how the boxes of `converted` differ from those of `original`, or None if they agree.

    Both run drawn scenes, in batches of each of `counts` as far as they take them: `original` alone decides
    what is right. The scores of all candidates are compared by rank within SCORE_TOLERANCE, and each box of
    either that reaches twice the least score has to lie within BOX_TOLERANCE of one of the other's with the
    same label. Raises whatever the networks raise.
    """
    scenes = golden_scenes(*original.frame_size(1280, 720))
    with torch.inference_mode():
        for count in counts:
            frames = scenes.repeat(math.ceil(count / len(scenes)), 1, 1, 1)[:count]
            ours, theirs = (_read(detector, frames) for detector in (converted, original))
            for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                found = _frame_difference(one, other)
                if found is not None:
                    return f"{found}, in scene {number} of a batch of {count}"
    return None


_Boxes = tuple[Tensor, Tensor, Tensor, Tensor]  # all scores, best first; corners, labels, scores of boxes


def _read(detector: NetworkDetector, frames: Tensor) -> list[_Boxes]:
    """Return what a network finds in each frame."""
    found: list[_Boxes] = []
    for part in torch.split(frames, detector.call_size):
        columns = detector.columns(detector.output(part), len(part))
        ranked = columns.scores.sort(dim=1, descending=True).values
        for scores, boxes in zip(ranked, detector.detect(part), strict=True):
            found.append((scores, boxes.boxes_xyxy, boxes.class_ids, boxes.scores))
    return found


def _frame_difference(one: _Boxes, other: _Boxes) -> str | None:
    if one[0].shape != other[0].shape:
        return f"{one[0].numel()} candidates for {other[0].numel()}"
    if one[0].numel():
        score = float((one[0] - other[0]).abs().max())
        if not score <= SCORE_TOLERANCE:
            return f"scores differ by {score:.2g}"
    for (_, all_boxes, all_labels, scores), (_, rivals, rival_labels, _) in ((one, other), (other, one)):
        certain = scores >= 2 * FLOOR_SCORE  # near the least score, one may have a box that the other drops
        boxes, labels = all_boxes[certain], all_labels[certain]
        if not len(boxes):
            continue
        sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True).clamp(min=1)  # (k, 1)
        if not len(rivals):
            return f"{len(boxes)} boxes for none"
        gaps = (boxes[:, None] - rivals).abs().amax(dim=2) / sides  # (k, rivals)
        gaps = gaps.masked_fill(labels[:, None] != rival_labels, math.inf)
        gap = float(gaps.amin(dim=1).max())
        if not gap <= BOX_TOLERANCE:
            return f"a box is off by {gap:.2g} of its longer side" if gap < math.inf else "a label is missing"
    return None
