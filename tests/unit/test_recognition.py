"""Files with the signatures, metadata and operators of exporters, each read as its own pipeline does.

Each network finds a red block, which lies where the exporter's own way of scaling puts it, in its colours and
numbers. Read in any other way, the box or its score is another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_networks import HEIGHT, WIDTH, BlockBoxes, Blocks, as_onnx
from torch import Tensor

from app.detection import registry
from app.detection.detector import Detector
from app.detection.model_formats.declaration import Declaration
from app.detection.model_formats.onnx import load_onnx
from app.detection.network import Network, NetworkDetector
from app.detection.network_input import NetworkInput
from app.detection.network_output import DEFAULT_MAX_OVERLAP, BoxFormat, Coordinates, Layout, grid_cells
from app.detection.recognition.pipelines import processor_keys
from app.detection.recognition.recognise import declared_network, recognise
from app.detection.registry import load_detector
from app.detection.resize import InputSize, ResizePolicy
from app.errors import ModelFault

NAMES = {0: "dark", 1: "bright"}
ULTRALYTICS: dict[str, object] = {
    "author": "Ultralytics",
    "task": "detect",
    "head": "Detect",
    "names": NAMES,
    "imgsz": [64, 96],
}
BLOCK = (16, 16, 32, 32)  # left, top, right, bottom in the network's input
BOX = (14.0, 18.0, 34.0, 30.0)
CENTRE, CORNER, STRETCH = ResizePolicy.LETTERBOX_CENTRE, ResizePolicy.LETTERBOX, ResizePolicy.STRETCH
Red = Callable[[Tensor], Tensor]


def red_of_bgr_255(pictures: Tensor) -> Tensor:
    return pictures[:, 2] / 255


def red_of_imagenet(pictures: Tensor) -> Tensor:
    return pictures[:, 0] * 0.229 + 0.485


def red_of_bgr_imagenet(pictures: Tensor) -> Tensor:
    return pictures[:, 2] * 0.229 + 0.485


def red_of_bytes_last(pictures: Tensor) -> Tensor:
    return pictures[..., 0].float() / 255


def red_of_rgb(pictures: Tensor) -> Tensor:
    return pictures[:, 0]


def yolo(found: BlockBoxes) -> Tensor:
    return torch.cat([found.centre_sizes, found.of_two(found.scores)], 2).transpose(1, 2)


def with_columns(found: BlockBoxes, count: int) -> Tensor:
    """A YOLO output whose boxes have `count` numbers more, all of them large."""
    more = torch.full((*found.scores.shape, count), 7.0)
    return torch.cat([found.centre_sizes, found.of_two(found.scores), more], 2).transpose(1, 2)


def segmentation(found: BlockBoxes) -> tuple[Tensor, Tensor]:
    return with_columns(found, 32), torch.zeros(found.scores.shape[0], 32, 16, 24)


def rotated(found: BlockBoxes) -> Tensor:
    """The box lies on its side, turned by a quarter."""
    centres, sizes = found.centre_sizes[..., :2], found.centre_sizes[..., 2:].flip(-1)
    angles = torch.full((*found.scores.shape, 1), torch.pi / 2)
    return torch.cat([centres, sizes, found.of_two(found.scores), angles], 2).transpose(1, 2)


def objectness(found: BlockBoxes) -> Tensor:
    objects = torch.full_like(found.scores, 0.9)[..., None]
    return torch.cat([found.centre_sizes, objects, found.of_two(found.scores)], 2)


def three_anchors(found: BlockBoxes) -> Tensor:
    """As YOLOv5: three boxes a cell, all of a level before the next; only the first of each scores."""
    rows = objectness(found)
    levels = []
    for begin, end in ((0, 96), (96, 120), (120, 126)):
        level = rows[:, begin:end]
        low = torch.cat([level[..., :4], level[..., 4:] * 0.01], 2)
        levels += [level, low, low]
    return torch.cat(levels, 1)


def grid(found: BlockBoxes) -> Tensor:
    objects = torch.full_like(found.scores, 0.9)[..., None]
    return torch.cat([found.offsets, found.log_sizes, objects, found.of_two(found.scores)], 2)


def coco_grid(found: BlockBoxes) -> Tensor:
    """80 classes, of which the second is found."""
    rest = torch.zeros(*found.scores.shape, 78)
    return torch.cat([grid(found), rest], 2)


def coco_decoded(found: BlockBoxes) -> Tensor:
    return torch.cat([objectness(found), torch.zeros(*found.scores.shape, 78)], 2)


def coco_without_objectness(found: BlockBoxes) -> Tensor:
    output = coco_decoded(found)
    return torch.cat([output[..., :4], output[..., 4:5] * 0 + 1, output[..., 5:]], 2)


def end_to_end(found: BlockBoxes) -> Tensor:
    columns = [found.top_scores[..., None], found.top_classes[..., None].float()]
    return torch.cat([found.top_corners, *columns], 2)


def end_to_end_fractions(found: BlockBoxes) -> Tensor:
    columns = [found.top_scores[..., None], found.top_classes[..., None].float()]
    return torch.cat([found.top_centre_sizes / found.unit, *columns], 2)


def box_scores(found: BlockBoxes) -> Tensor:
    return torch.cat([found.top_centre_sizes / found.unit, found.of_two(found.top_scores)], 2)


def with_idle_queries(logits: Tensor, boxes: Tensor, idle: list[float]) -> tuple[Tensor, Tensor]:
    """As in trained networks, most queries find nothing."""
    more = torch.tensor(idle).expand(logits.shape[0], 60, -1)
    return torch.cat([logits, more], 1), torch.cat([boxes, boxes, boxes, boxes], 1)


def sigmoid_queries(found: BlockBoxes) -> tuple[Tensor, Tensor]:
    logits = found.of_two(found.top_scores).logit()
    return with_idle_queries(logits, found.top_centre_sizes / found.unit, [-6.0, -5.0])


def boxes_first(found: BlockBoxes) -> tuple[Tensor, Tensor]:
    logits, boxes = sigmoid_queries(found)
    return boxes, logits


def softmax_queries(found: BlockBoxes) -> tuple[Tensor, Tensor]:
    scores = found.top_scores[..., None]
    logits = torch.cat([scores * 0 + 1e-6, scores, 1 - scores], 2).log() + 8  # any constant
    return with_idle_queries(logits, found.top_centre_sizes / found.unit, [-1.0, 0.0, 9.0])


def labels_boxes_scores(found: BlockBoxes) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes as fractions: the network is told that the picture is one by one."""
    return found.top_classes, found.top_corners / found.unit, found.top_scores


def sized(found: BlockBoxes) -> tuple[Tensor, Tensor, Tensor]:
    labels, boxes, scores = labels_boxes_scores(found)
    return boxes, labels, scores


def counted(found: BlockBoxes) -> tuple[Tensor, ...]:
    """Only the first box counts: what follows is padding, whatever it holds."""
    count = found.top_classes[:, :1]
    best_last = found.top_scores.clone()
    return count, found.top_corners, best_last, found.top_classes.int()


def padded(found: BlockBoxes) -> tuple[Tensor, ...]:
    """As YOLO-NAS: what follows the three best boxes is -1."""
    filling = (torch.arange(20) >= 3).float()
    boxes = found.top_corners * (1 - filling[:, None]) - filling[:, None]
    scores = found.top_scores * (1 - filling) - filling
    classes = (found.top_classes * (1 - filling) - filling).long()
    return found.top_classes[:, :1] * 3, boxes, scores, classes


def scored_boxes(found: BlockBoxes) -> tuple[Tensor, Tensor]:
    return torch.cat([found.top_corners, found.top_scores[..., None]], 2), found.top_classes


def frame_rows(found: BlockBoxes) -> Tensor:
    n, k = found.top_scores.shape
    frames = torch.arange(n)[:, None].expand(n, k).float()
    columns = [frames[..., None], found.top_corners, found.top_classes[..., None].float()]
    return torch.cat([*columns, found.top_scores[..., None]], 2).flatten(0, 1)


def tensorflow(found: BlockBoxes) -> tuple[Tensor, ...]:
    """Classes are counted from 1."""
    boxes = (found.top_corners / found.unit)[..., [1, 0, 3, 2]]
    count = torch.full((found.scores.shape[0],), 20.0)
    return boxes, (found.top_classes + 1).float(), found.top_scores, count


def one_frame(found: BlockBoxes) -> tuple[Tensor, Tensor, Tensor]:
    return found.top_corners[0], found.top_scores[0], found.top_classes[0]


@dataclass(frozen=True)
class Export:
    """How an exporter writes a network, and what is expected of the reading."""

    head: Callable[[BlockBoxes], Any]
    outputs: tuple[str, ...] = ("output0",)
    metadata: Mapping[str, object] = field(default_factory=dict)
    policy: ResizePolicy = CENTRE
    red: Red = red_of_rgb
    layout: Layout = Layout.YOLO
    label: str = "bright"
    score: float = 0.8
    left_out: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # of as_onnx


def pictures(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape or (2, 3, HEIGHT, WIDTH), dtype=dtype)


DYNAMIC = {
    "images": {0: "n"},
    "orig_target_sizes": {0: "n"},
    "pixel_values": {0: "n"},
    "pixel_mask": {0: "n"},
}
SIZES: dict[str, Any] = {
    "inputs": (pictures(), torch.ones(2, 2, dtype=torch.int64)),
    "input_names": ("images", "orig_target_sizes"),
    "dynamic_axes": {name: DYNAMIC[name] for name in ("images", "orig_target_sizes")},
}
MASK: dict[str, Any] = {
    "inputs": (pictures(), torch.ones(2, HEIGHT, WIDTH, dtype=torch.int64)),
    "input_names": ("pixel_values", "pixel_mask"),
    "dynamic_axes": {name: DYNAMIC[name] for name in ("pixel_values", "pixel_mask")},
}
PIXELS: dict[str, Any] = {"input_names": ("pixel_values",), "dynamic_axes": {"pixel_values": {0: "n"}}}
OBJECTNESS = Layout.YOLO_OBJECTNESS

EXPORTS: dict[str, Export] = {
    "yolov8": Export(yolo, metadata=ULTRALYTICS),
    "yolov8-own-conversion": Export(yolo, metadata={"names": NAMES}, policy=CORNER),
    "yolov8-segment": Export(
        segmentation,
        ("output0", "output1"),
        ULTRALYTICS | {"task": "segment", "head": "Segment"},
        left_out=("masks",),
    ),
    "yolov8-pose": Export(
        lambda found: with_columns(found, 51),
        metadata=ULTRALYTICS | {"task": "pose", "kpt_shape": [17, 3]},
        left_out=("key points",),
    ),
    "yolov8-obb": Export(rotated, metadata=ULTRALYTICS | {"task": "obb"}, left_out=("angles",)),
    "yolov8-nms": Export(
        end_to_end, metadata=ULTRALYTICS | {"args": {"nms": True}}, layout=Layout.END_TO_END
    ),
    "yolov10": Export(end_to_end, metadata=ULTRALYTICS | {"end2end": True}, layout=Layout.END_TO_END),
    "rt-detr-ultralytics": Export(
        end_to_end_fractions,
        metadata=ULTRALYTICS | {"head": "RTDETRDecoder"},
        policy=STRETCH,
        layout=Layout.END_TO_END,
    ),
    "rt-detr-ultralytics-2024": Export(
        box_scores,
        metadata={key: value for key, value in ULTRALYTICS.items() if key != "head"},
        policy=STRETCH,
        layout=Layout.BOX_SCORES,
    ),
    "yolov5": Export(three_anchors, metadata={"names": NAMES, "stride": 32}, layout=OBJECTNESS, score=0.72),
    "yolov9": Export(yolo, metadata={"names": NAMES, "stride": 32}),
    "yolov7": Export(three_anchors, ("output",), layout=OBJECTNESS, score=0.72, label="1"),
    "yolov7-end2end": Export(frame_rows, ("output",), layout=Layout.FRAME_ROWS, label="1"),
    "yolov7-tensorrt": Export(
        counted,
        ("num_dets", "det_boxes", "det_scores", "det_classes"),
        layout=Layout.SEPARATE,
        label="1",
    ),
    "yolox": Export(
        grid, ("output",), policy=CORNER, red=red_of_bgr_255, layout=OBJECTNESS, score=0.72, label="1"
    ),
    "yolox-coco": Export(
        coco_grid, ("output",), policy=CORNER, red=red_of_bgr_255, layout=OBJECTNESS, score=0.72, label="1"
    ),
    "yolox-decoded-coco": Export(
        coco_decoded,
        ("output",),
        policy=CORNER,
        red=red_of_bgr_255,
        layout=OBJECTNESS,
        score=0.72,
        label="1",
    ),
    "yolox-named": Export(
        grid,
        ("output",),
        {"names": NAMES},
        policy=CORNER,
        red=red_of_bgr_255,
        layout=OBJECTNESS,
        score=0.72,
    ),
    "yolov6": Export(coco_without_objectness, ("outputs",), layout=OBJECTNESS, label="1"),
    "yolo-nas": Export(
        padded,
        tuple(f"graph2_{name}" for name in ("num_predictions", "pred_boxes", "pred_scores", "pred_classes")),
        policy=CORNER,
        layout=Layout.SEPARATE,
        label="1",
    ),
    "rt-detr": Export(
        labels_boxes_scores,
        ("labels", "boxes", "scores"),
        policy=STRETCH,
        layout=Layout.SEPARATE,
        options=SIZES,
        label="1",
    ),
    "rf-detr": Export(
        boxes_first,
        ("dets", "labels"),
        policy=STRETCH,
        red=red_of_imagenet,
        layout=Layout.DETR_SIGMOID,
        label="1",
    ),
    "detr": Export(
        softmax_queries,
        ("pred_logits", "pred_boxes"),
        policy=STRETCH,
        red=red_of_imagenet,
        layout=Layout.DETR,
        label="1",
    ),
    "detr-named": Export(
        softmax_queries,
        ("pred_logits", "pred_boxes"),
        {"names": NAMES},
        policy=CORNER,
        layout=Layout.DETR,
    ),
    "detr-huggingface": Export(
        softmax_queries,
        ("logits", "pred_boxes"),
        policy=STRETCH,
        red=red_of_imagenet,
        layout=Layout.DETR,
        options=MASK,
        label="1",
    ),
    "rt-detr-huggingface": Export(
        sigmoid_queries,
        ("logits", "pred_boxes"),
        policy=STRETCH,
        layout=Layout.DETR_SIGMOID,
        options=PIXELS,
        label="1",
    ),
    "mmdeploy": Export(
        scored_boxes,
        ("dets", "labels"),
        policy=CORNER,
        red=red_of_bgr_imagenet,
        layout=Layout.SEPARATE,
        label="1",
    ),
    "tensorflow": Export(
        tensorflow,
        ("detection_boxes", "detection_classes", "detection_scores", "num_detections"),
        policy=STRETCH,
        red=red_of_bytes_last,
        layout=Layout.SEPARATE,
        options={"dtype": torch.uint8, "channels_last": True},
        label="1",
    ),
    "tensorflow-graph": Export(
        tensorflow,
        ("detection_boxes:0", "detection_classes:0", "detection_scores:0", "num_detections:0"),
        policy=STRETCH,
        red=red_of_bytes_last,
        layout=Layout.SEPARATE,
        options={"dtype": torch.uint8, "channels_last": True},
        label="1",
    ),
    "torchvision": Export(
        one_frame,
        ("boxes", "scores", "labels"),
        policy=STRETCH,
        red=lambda picture: picture[:1],
        layout=Layout.TORCHVISION,
        options={"inputs": (pictures(3, HEIGHT, WIDTH),), "dynamic_axes": {"images": {}}},
        label="1",
    ),
    "torchvision-nameless": Export(
        one_frame,
        ("boxes.7", "onnx_41", "onnx_45"),
        policy=STRETCH,
        red=lambda picture: picture[:1],
        layout=Layout.TORCHVISION,
        options={"inputs": (pictures(3, HEIGHT, WIDTH),), "dynamic_axes": {"images": {}}},
        label="1",
    ),
}


def written(export: Export) -> bytes:
    return as_onnx(
        Blocks(export.head, red=export.red),
        export.outputs,
        metadata=export.metadata,
        **export.options,
    )


def frame_with_block(policy: ResizePolicy) -> Tensor:
    """Return a frame of another shape than the network's input, with the block where it belongs."""
    width, height = (48, 64) if policy is STRETCH else (64, 64)
    placement = InputSize(WIDTH, HEIGHT, policy).place(width, height)
    frame = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    scale = placement.width / width
    left, right = (round((side - placement.left) / scale) for side in (BLOCK[0], BLOCK[2]))
    frame[:, BLOCK[1] : BLOCK[3], left:right, 0] = 204
    return frame


def expected_box(policy: ResizePolicy) -> list[float]:
    frame = frame_with_block(policy)
    size = InputSize(WIDTH, HEIGHT, policy)
    (box,) = size.boxes_to_frame(np.array([BOX], np.float32), frame.shape[2], frame.shape[1])
    return [float(side) for side in box]


def network_of(content: bytes) -> Network:
    return load_onnx("model", content, "cpu")


def assert_finds_the_block(detector: Detector, export: Export) -> None:
    frames = frame_with_block(export.policy).expand(min(2, detector.batch_size), -1, -1, -1)
    with torch.inference_mode():
        answers = detector.detect(frames)
    assert len(answers) == len(frames)
    for found in answers:
        assert found.boxes_xyxy[0].tolist() == pytest.approx(expected_box(export.policy), abs=0.01)
        assert found.scores[0].item() == pytest.approx(export.score, abs=0.06)  # scaling blurs
        assert detector.class_names[int(found.class_ids[0])] == export.label


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_read_as_its_exporter_does(tmp_path: Path, name: str) -> None:
    export = EXPORTS[name]
    content = written(export)
    (tmp_path / "model.onnx").write_bytes(content)
    assert_finds_the_block(load_detector("model", device="cpu", models_folder=tmp_path), export)
    declaration = recognise("model", network_of(content), {}, "cpu")
    assert declaration.layout is export.layout
    assert declaration.left_out == export.left_out


@pytest.mark.parametrize("name", ["yolov8-obb", "yolox", "rt-detr", "tensorflow", "detr"])
def test_what_was_recognised_is_taken_without_running_anything(name: str) -> None:
    network = network_of(written(EXPORTS[name]))
    declaration = recognise("model", network, {}, "cpu")

    def fail(_: Tensor) -> object:
        raise AssertionError("it runs")

    idle = Network(network.takes, fail, network.metadata)
    kept = declaration.model_dump(mode="json")
    again = recognise("model", idle, kept, "cpu")
    assert again == declaration
    assert again.model_dump(mode="json") == kept


def recognised(export: Export, **declared: object) -> Declaration:
    return recognise("model", network_of(written(export)), declared, "cpu")


def test_the_administrators_word_goes_first() -> None:
    declared = {"resize": "stretch", "max_overlap": 0.3, "min_score": 0.4, "labels": ["a", "b"]}
    declaration = recognised(EXPORTS["yolov8"], **declared)
    assert declaration.resize is STRETCH
    assert (declaration.max_overlap, declaration.min_score) == (0.3, 0.4)
    assert declaration.labels == ("a", "b")


def test_what_the_file_does_not_say_is_named() -> None:
    assert recognised(EXPORTS["yolox"]).assumed == ("BGR from 0 to 255 in a letterbox, as YOLOX",)
    assert recognised(EXPORTS["yolov8"]).assumed == ()


def test_what_an_output_counts_as_padding_is_no_box(tmp_path: Path) -> None:
    export = EXPORTS["yolov7-tensorrt"]
    (tmp_path / "model.onnx").write_bytes(written(export))
    detector = load_detector("model", device="cpu", models_folder=tmp_path)
    with torch.inference_mode():
        (found,) = detector.detect(torch.full((1, HEIGHT, WIDTH, 3), 204, dtype=torch.uint8))
    assert len(found.scores) == 1


class FindsLate(Blocks):
    """Finds nothing in dark pictures, which then hold zeros only."""

    def forward(self, pictures: Tensor, *further: Tensor) -> Any:
        output = super().forward(pictures, *further)
        finds = (pictures[:, 0].mean(dim=(1, 2)) > 0.5673)[:, None, None]
        return output * finds


def test_boxes_are_looked_for_in_further_pictures() -> None:
    """The first two are the darkest."""
    for head, coordinates in ((end_to_end, "pixels"), (end_to_end_fractions, "fractions")):
        content = as_onnx(FindsLate(head), metadata={"names": NAMES})
        declaration = recognise("model", network_of(content), {}, "cpu")
        assert declaration.coordinates == coordinates
    nothing = as_onnx(Blocks(lambda found: end_to_end(found) * 0), metadata={"names": NAMES})
    with pytest.raises(ModelFault, match="finds nothing in the trial pictures"):
        recognise("model", network_of(nothing), {}, "cpu")


def test_the_filter_of_ultralytics_is_taken_where_the_network_has_none() -> None:
    assert recognised(EXPORTS["yolov8"]).max_overlap == 0.7
    assert recognised(EXPORTS["yolov8-nms"]).max_overlap is None


@pytest.mark.parametrize("task", ["classify", "semantic"])
def test_a_network_without_boxes_is_refused(task: str) -> None:
    with pytest.raises(ModelFault, match=f"for the task {task!r}, which gives no boxes"):
        recognised(Export(yolo, metadata=ULTRALYTICS | {"task": task}))


def five_columns_and_more(found: BlockBoxes) -> Tensor:
    return torch.cat([found.centre_sizes, found.of_two(found.scores), found.scores[..., None]], 2)


def test_an_output_that_could_be_read_in_two_ways_is_refused_with_both() -> None:
    """In the picture, a box a cell: with an objectness and two classes, or with three classes."""
    export = Export(five_columns_and_more)
    with pytest.raises(ModelFault) as caught:
        recognised(export)
    assert caught.value.detail == (
        "Model 'model' gives {output0: (2, 126, 7)} for 2 frames, which could be "
        'layout = "yolo-objectness" with 2 labels or layout = "box-scores" with 3 labels. '
        "Write the right one in framebox.toml."
    )
    assert recognised(export, labels=["a", "b"]).layout is OBJECTNESS
    assert recognised(export, labels=["a", "b", "c"]).layout is Layout.BOX_SCORES


def test_queries_of_which_nothing_tells_softmax_from_sigmoid_are_refused() -> None:
    def undecided(found: BlockBoxes) -> tuple[Tensor, Tensor]:
        logits, boxes = sigmoid_queries(found)
        return torch.cat([logits, logits[..., :1]], 2) + 9, boxes

    export = Export(undecided, ("logits", "pred_boxes"))
    with pytest.raises(ModelFault, match=r'"detr-sigmoid" with 3 labels or layout = "detr" with 2 labels'):
        recognised(export)
    assert recognised(export, labels=["a", "b"]).layout is Layout.DETR


def test_raw_maps_are_refused_with_what_to_export() -> None:
    export = Export(lambda found: found.scores[:, :96].reshape(-1, 1, 8, 12).expand(-1, 255, -1, -1))
    with pytest.raises(ModelFault, match=r"no known layout\. Export it with its boxes decoded"):
        recognised(export)


def test_advice_names_what_was_tried() -> None:
    export = Export(yolo, metadata=ULTRALYTICS | {"names": {0: "a", 1: "b", 2: "c"}})
    with pytest.raises(ModelFault) as caught:
        recognised(export)
    assert caught.value.detail == (
        "Model 'model' gives {output0: (2, 6, 126)} for 2 frames, which is no known layout for 3 labels. "
        'With layout = "yolo" and 2 labels it gives sensible boxes: write that in framebox.toml.'
    )


# ---- numbers that names and shapes do not tell apart

SIDE = 320  # of the input, with 2100 cells


def constant(
    outputs: Mapping[str, Tensor],
    metadata: Mapping[str, object] | None = None,
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
) -> Network:
    """Gives the same for every picture."""

    def run(pictures: Tensor) -> dict[str, Tensor]:
        return {
            name: tensor if batch else tensor.expand(len(pictures), *tensor.shape)
            for name, tensor in outputs.items()
        }

    return Network(NetworkInput(batch, SIDE, SIDE, dtype, name="images"), run, metadata or {})


def read(network: Network, **declared: object) -> Declaration:
    return recognise("model", network, declared, "cpu")


def refusal(network: Network, **declared: object) -> str:
    with pytest.raises(ModelFault) as caught:
        read(network, **declared)
    return caught.value.detail


def cell_boxes() -> Tensor:
    """Boxes as centre and size, (2100, 4) pixels, each in its cell."""
    cells = grid_cells((SIDE, SIDE), (8, 16, 32), torch.device("cpu"))
    sizes = cells[:, 2:] * torch.tensor([2.0, 3.0])
    return torch.cat([(cells[:, :2] + 0.5) * cells[:, 2:], sizes], 1)


def class_scores(count: int) -> Tensor:
    scores = torch.full((2100, count), 0.01)
    scores[500:520, count // 2] = 0.9
    return scores


def few(*boxes: tuple[float, ...], rows: int = 100) -> dict[str, Tensor]:
    """Boxes, scores and classes apart, under names that nobody knows."""
    padding = rows - len(boxes)
    return {
        "a": torch.cat([torch.tensor(boxes), torch.zeros(padding, 4)]),
        "b": torch.cat([torch.full((len(boxes),), 0.9), torch.zeros(padding)]),
        "c": torch.cat([torch.full((len(boxes),), 3.0), torch.zeros(padding)]),
    }


def joined(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"output0": torch.cat([outputs["a"], outputs["b"][:, None], outputs["c"][:, None]], 1)}


CORNERS = ((10.0, 20.0, 100.0, 120.0), (30.0, 40.0, 90.0, 200.0), (50.0, 60.0, 200.0, 220.0))
FRACTIONS = tuple(tuple(side / SIDE for side in box) for box in CORNERS)
ROWS = torch.tensor([[0.0, *CORNERS[0], 3.0, 0.9], [1.0, *CORNERS[1], 3.0, 0.6]])


def test_corners_may_have_either_axis_first_if_nobody_knows_the_names() -> None:
    text = refusal(constant(few(*FRACTIONS)))
    assert text.endswith(
        'could be boxes = "corners" or boxes = "corners-y-first". Write the right one in framebox.toml.'
    )
    assert read(constant(few(*FRACTIONS)), boxes="corners-y-first").coordinates is Coordinates.FRACTIONS


def test_rows_of_frames_in_another_order_are_refused() -> None:
    assert read(constant({"rows": ROWS}, batch=2)).layout is Layout.FRAME_ROWS
    for order in ([0, 1, 2, 3, 4, 6, 5], [0, 5, 6, 1, 2, 3, 4]):
        assert "no known layout" in refusal(constant({"rows": ROWS[:, order]}, batch=2))
    assert "finds nothing" in refusal(constant({"rows": ROWS[:0]}, batch=2))
    assert read(constant({"output": ROWS[:0]}, batch=2)).layout is Layout.FRAME_ROWS


def test_an_output_of_very_many_boxes_is_not_suppressed_yet() -> None:
    decoded = torch.cat([cell_boxes(), class_scores(80)], 1)
    declaration = read(constant({"output0": decoded}))
    assert (declaration.layout, len(declaration.labels)) == (Layout.BOX_SCORES, 80)
    assert declaration.max_overlap == DEFAULT_MAX_OVERLAP
    more = torch.cat([cell_boxes(), class_scores(80), torch.full((2100, 32), -3.0)], 1)
    assert "no known layout" in refusal(constant({"output": more}))
    apart = {"boxes": cell_boxes(), "scores": class_scores(80)}
    assert "no known layout" in refusal(constant(apart))
    declared = read(constant(apart), layout="detr-sigmoid")
    assert (declared.mean, declared.max_overlap) == (None, DEFAULT_MAX_OVERLAP)


def test_a_single_class_that_is_always_sure_is_no_number_of_a_class() -> None:
    anchors = torch.cat([cell_boxes(), class_scores(1), torch.ones(2100, 1)], 1).repeat(3, 1)
    assert read(constant({"output0": anchors})).layout is OBJECTNESS


def test_a_map_is_no_detector() -> None:
    assert "no known layout" in refusal(constant({"depth": torch.rand(192, 320)}))


def test_a_few_boxes_outside_do_not_make_pixels_of_fractions() -> None:
    boxes = torch.full((100, 4), 0.3)
    boxes[7, 2] = 1.6
    logits = torch.full((100, 91), -5.0)
    logits[:5, 3] = 2
    declaration = read(constant({"pred_logits": logits, "pred_boxes": boxes}))
    assert declaration.coordinates is Coordinates.FRACTIONS


@pytest.mark.parametrize(
    ("boxes", "declared"),
    [
        (CORNERS, {"coordinates": "fractions"}),
        (FRACTIONS, {"coordinates": "pixels"}),
        (((150.0, 150.0, 60.0, 40.0), (250.0, 100.0, 60.0, 60.0)), {"boxes": "corners"}),
    ],
)
def test_a_declared_reading_that_makes_no_sense_is_refused(
    boxes: tuple[tuple[float, ...], ...], declared: dict[str, object]
) -> None:
    assert "most would be inverted, outside the picture or smaller than a pixel" in refusal(
        constant(joined(few(*boxes))), **declared
    )


def test_a_single_box_does_not_tell_corners_from_sizes() -> None:
    network = constant(joined(few((100.0, 90.0, 180.0, 170.0))))
    assert 'boxes = "corners" or boxes = "centre-size"' in refusal(network)
    assert read(network, boxes="centre-size").boxes is BoxFormat.CENTRE_SIZE


def test_outputs_are_told_apart_by_pictures_with_boxes() -> None:
    """Of the first two, scores and classes are all 0."""
    found = few(*CORNERS)
    swapped = {"a": found["a"], "b": found["c"], "c": found["b"]}
    full, calls = constant(swapped), []

    def run(pictures: Tensor) -> dict[str, Tensor]:
        calls.append(len(pictures))
        output: dict[str, Tensor] = full.run(pictures)  # type: ignore[assignment]
        return output if len(calls) > 1 else {name: tensor * 0 for name, tensor in output.items()}

    declaration = read(Network(full.takes, run))
    assert declaration.outputs == {"boxes": "a", "scores": "c", "classes": "b"}
    nothing = few(rows=100) | {"a": torch.zeros(100, 4)}
    assert "Write layout, outputs, boxes and coordinates" in refusal(constant(nothing), coordinates="pixels")


def test_labels_do_not_overrule_what_the_scores_are_of() -> None:
    logits = torch.full((100, 91), -5.0)
    logits[:5, 3] = 2
    network = constant({"pred_logits": logits, "pred_boxes": torch.full((100, 4), 0.3)})
    assert 'layout = "detr-sigmoid" and 91 labels' in refusal(network, labels=[str(n) for n in range(90)])


def test_what_is_declared_is_not_assumed() -> None:
    network = constant({"output0": torch.cat([cell_boxes(), class_scores(80)], 1)})
    letterbox = "a letterbox, grey on the right or at the bottom"
    assert read(network).assumed == ("RGB", "colours from 0 to 1", letterbox)
    assert read(network, channels="bgr", white=255.0).assumed == (letterbox,)


def test_a_detr_with_labels_of_its_own_is_said_to_have_no_usual_pipeline() -> None:
    assert recognised(EXPORTS["detr-named"]).assumed[:2] == ("RGB", "colours from 0 to 1")


def test_the_labels_of_torchvision_are_taken_to_begin_with_the_background() -> None:
    assert recognised(EXPORTS["torchvision"], labels=["person", "car"]).assumed == (
        "the first label is the background",
    )
    assert recognised(EXPORTS["torchvision"], labels=["person"], first_class=1).assumed == ()


def test_too_few_labels_are_noticed_at_once() -> None:
    text = refusal(constant(joined(few(*CORNERS))), labels=["a", "b", "c"])
    assert "gives class 3, but has 3 labels, which are counted from 0" in text


def test_the_sum_of_a_float16_output_may_be_too_large_for_float16() -> None:
    output = torch.cat([cell_boxes(), class_scores(80)], 1).T.half()
    network = constant({"output0": output}, dtype=torch.float16)
    loaded = declared_network(network, read(network))
    detector = NetworkDetector(loaded, name="model", fingerprint="", device="cpu", batch_size=1)
    with torch.inference_mode():
        assert len(detector.detect(torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8))[0].scores)


def test_inverted_boxes_are_refused_even_if_they_are_few() -> None:
    network = constant(joined(few(*((200.0, 200.0, 50.0, 50.0),) * 3)))
    declaration = read(constant(joined(few(*CORNERS))))
    loaded = declared_network(network, declaration)
    detector = NetworkDetector(loaded, name="model", fingerprint="", device="cpu", batch_size=1)
    with torch.inference_mode(), pytest.raises(ModelFault, match="edge lies before"):
        detector.detect(torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8))


def test_declared_columns_and_outputs_count_when_the_layout_is_looked_for() -> None:
    more = torch.cat([cell_boxes(), class_scores(2), torch.full((2100, 32), -3.0)], 1).T
    declared: dict[str, object] = {"layout": "yolo", "labels": ["a", "b"]}
    assert read(constant({"output0": more}), **declared, extra_columns=32).extra_columns == 32
    plain = torch.cat([cell_boxes(), class_scores(2)], 1).T
    for other in (torch.zeros(32, 80), torch.zeros(32, 80, 80)):
        network = constant({"other": other, "found": plain})
        assert read(network, **declared, outputs={"boxes": "found"}).outputs == {"boxes": "found"}


def test_only_ultralytics_tasks_are_known() -> None:
    output = torch.cat([cell_boxes(), class_scores(80)], 1).T
    assert read(constant({"output0": output}, {"task": "object-detection"})).layout is Layout.YOLO


def test_weights_beside_another_file_are_of_hugging_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As training leaves them."""
    folder = tmp_path / "run"
    folder.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (folder / file).write_text("{}")
    for file in ("model.safetensors", "scheduler.pt"):
        (folder / file).write_bytes(b"x")

    def load(*_: object) -> None:
        raise ModelFault("of Hugging Face")

    monkeypatch.setattr(registry, "load_huggingface", load)
    with pytest.raises(ModelFault, match="of Hugging Face"):
        load_detector("run", device="cpu", models_folder=tmp_path)


def test_odd_settings_of_a_processor_are_passed_over() -> None:
    settings = {"image_mean": None, "rescale_factor": None, "size": 800, "max_size": 1333}
    keys = processor_keys({"id2label": {"a": "b"}}, settings)
    assert "labels" not in keys
    assert (keys["white"], keys["mean"], keys["std"]) == (1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (keys["resize"], keys["input"]) == (ResizePolicy.SHORT_SIDE, (1333, 800))
