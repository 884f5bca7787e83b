"""What the numbers of an output tell, for the pictures of a trial."""

from __future__ import annotations

import torch
from torch import Tensor

from app.detection.network_output import (
    FLOOR_SCORE,
    BoxFormat,
    Columns,
    Coordinates,
    Layout,
    Reading,
    Role,
    Scores,
    grid_cells,
    named_tensors,
    read_columns,
)
from app.detection.recognition.forms import Form, Seen, grid_with

SCORE_SLACK = 1e-3  # of a probability, beyond 0 and 1
PADDING = -1.0  # the score of what only fills up, if it is not 0
MANY_BOXES = 50  # enough that their corners are not in order by chance
MOST, NEARLY_ALL = 0.7, 0.98  # share of boxes that have a format: untrained networks give a few others
CLEARLY_BETTER = 0.2  # share of the boxes' area that lies in the picture, in a format that is not the usual
COCO_CLASSES = (80, 91)  # with and without the numbers that COCO left out


def first_of(output: object, form: Form) -> Tensor:
    return dict(named_tensors(output))[form.outputs[Role.BOXES]].float()


def row_count(form: Form, seen: Seen) -> int:
    """Return how many boxes a picture has at most; 0 if that is not fixed."""
    if form.layout in (Layout.FRAME_ROWS, Layout.TORCHVISION):
        return 0
    return first_of(seen.output, form).shape[2 if form.layout is Layout.YOLO else 1]


def real_boxes(form: Form, columns: Columns) -> Tensor:
    """Return the boxes that do not only fill up, (m, 4 or more) float32."""
    boxes = columns.boxes
    if form.layout.is_suppressed and columns.box_ids is None:
        boxes = boxes[(columns.scores != 0) & (columns.scores != PADDING)]
    return boxes.reshape(-1, boxes.shape[-1]).float()


def found_boxes(columns: Columns) -> Tensor:
    """Return the boxes that reach the lowest score, (m, 4 or more) float32."""
    frames, places = (columns.scores >= FLOOR_SCORE).nonzero(as_tuple=True)
    ids = places if columns.box_ids is None else columns.box_ids[frames, places]
    return columns.boxes[frames, ids].float()


def box_count(form: Form, seen: Seen) -> int:
    columns = read_columns(seen.output, form.reading(), seen.frame_count)
    return 0 if columns is None else len(real_boxes(form, columns))


def are_probabilities(scores: Tensor) -> bool:
    return bool(((scores >= -SCORE_SLACK) & (scores <= 1 + SCORE_SLACK)).all())


def scores_of(form: Form, columns: Columns, output: object) -> Scores:
    scores = columns.scores
    if form.layout is Layout.YOLO_OBJECTNESS:
        scores = first_of(output, form)[..., 4 : 5 + form.class_count]
    elif form.layout in (Layout.DETR, Layout.DETR_SIGMOID):
        scores = dict(named_tensors(output))[form.outputs[Role.SCORES]]
    elif form.layout.is_suppressed:
        scores = scores[scores != PADDING]
    return Scores.PROBABILITIES if are_probabilities(scores) else Scores.LOGITS


def fits_activation(form: Form, output: object, *, knows_labels: bool) -> bool:
    """Whether class scores are of softmax with "no object" last (layout `detr`), or of sigmoid.

    With softmax, most queries of a trained network have their largest score in the last column; with sigmoid,
    nearly all scores are below a half. Without labels, COCO's networks are known by their number.
    """
    logits = dict(named_tensors(output))[form.outputs[Role.SCORES]].float()
    columns = logits.shape[-1]
    if form.outputs[Role.BOXES] == "dets":
        return form.layout is Layout.DETR_SIGMOID
    if not knows_labels and {columns, columns - 1} & set(COCO_CLASSES):
        return form.layout is (Layout.DETR_SIGMOID if columns in COCO_CLASSES else Layout.DETR)
    is_nothing = (logits.argmax(dim=-1) == columns - 1) & (logits[..., -1] > 0)
    mostly_nothing = bool(is_nothing.float().mean() > 0.5)
    mostly_low = bool((logits.amax(dim=-1) < 0).float().mean() > 0.5)
    if mostly_nothing == mostly_low:
        return True  # it does not tell
    return mostly_nothing if form.layout is Layout.DETR else mostly_low


def grid_of(columns: Columns, seen: Seen) -> tuple[int, ...]:
    """Return the strides of the grids in whose cells boxes are given; () if they are given in the picture.

    In the picture, boxes lie near their cells: their places correlate. In cells, they do not.
    """
    strides = grid_with(columns.boxes.shape[1], seen.input_size)
    if not strides:
        return ()
    cells = grid_cells(seen.input_size, strides, columns.boxes.device)
    places = cells[:, :2] * cells[:, 2:]
    centres = columns.boxes[..., :2].float().mean(dim=0)
    pairs = torch.stack([places.flatten(), centres.flatten()])
    # Places that are the same in all cells have no correlation at all: NaN.
    return () if float(torch.corrcoef(pairs)[0, 1]) >= 0.5 else strides


def format_of(
    boxes: Tensor, usual: BoxFormat, coordinates: Coordinates, input_size: tuple[int, int]
) -> BoxFormat | None:
    """Return the format of boxes, (m, 4): the usual one, unless the numbers contradict it. None: neither."""
    if not len(boxes):
        return usual
    first, second = boxes[:, :2], boxes[:, 2:4]
    ordered = float((second >= first).all(dim=1).float().mean())
    with_sizes = float((second >= 0).all(dim=1).float().mean())
    if usual is BoxFormat.CORNERS:
        if ordered >= MOST:
            return usual
        return BoxFormat.CENTRE_SIZE if with_sizes >= NEARLY_ALL else None
    limits = boxes.new_tensor(input_size if coordinates is Coordinates.PIXELS else (1, 1))
    as_corners = _share_inside(first, second, limits)
    as_sizes = _share_inside(first - second / 2, first + second / 2, limits)
    is_better = len(boxes) >= MANY_BOXES and as_corners > as_sizes + CLEARLY_BETTER
    if ordered >= NEARLY_ALL and is_better:
        return BoxFormat.CORNERS
    return usual if with_sizes >= MOST else None


def _share_inside(near: Tensor, far: Tensor, limits: Tensor) -> float:
    """Return which share of the boxes' area lies in the picture, on average."""
    inside = (torch.minimum(far, limits) - near.clamp(min=0)).clamp(min=0).prod(dim=1)
    return float((inside / (far - near).prod(dim=1).clamp(min=1e-9)).clamp(max=1).mean())


def share_sound(boxes: Tensor, reading: Reading, input_size: tuple[int, int]) -> float:
    """Return which share of boxes, (m, 4 or more), lie in the picture, and are not inverted."""
    corners = reading.boxes_to_xyxy(boxes, input_size)
    near, far = corners[:, :2], corners[:, 2:]
    is_sound = (far >= near) & (far > 1) & (near < corners.new_tensor(input_size))
    return float(is_sound.all(dim=1).float().mean())
