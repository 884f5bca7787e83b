"""Recognise what a network takes and what its output means, so that files are served as exporters write them.

First counts what the administrator declares, then what the file's metadata say, then names, types and shapes
of inputs and outputs. Whatever they leave open is proven on trial pictures: what lies in the picture, which
numbers are whole, which are probabilities. What could be read in two ways is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from app.detection.detector import is_out_of_memory
from app.detection.golden import SCENE_COUNT, golden_scenes
from app.detection.model_files import reason
from app.detection.model_formats.declaration import (
    MAX_BOXES,
    Declaration,
    Metadata,
    check_input,
    numbered_labels,
    read_metadata,
)
from app.detection.network import LoadedNetwork, Network, NetworkDetector, layout_fault
from app.detection.network_input import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
    FurtherInput,
    NetworkInput,
    processor_pixels,
)
from app.detection.network_output import (
    DEFAULT_MAX_OVERLAP,
    FLOOR_SCORE,
    BoxFormat,
    Columns,
    Coordinates,
    Layout,
    Reading,
    Role,
    Scores,
    describe_output,
    frame_dictionaries,
    grid_cells,
    named_tensors,
    read_columns,
    usual_output,
)
from app.detection.resize import ResizePolicy
from app.errors import ModelFault

TRIAL_FRAMES = 2
NUMBERED_CLASSES = 2000  # of a network that gives class numbers, if no labels are known
USUAL_SIZE = (640, 640)  # of the input of a network that takes any
GRIDS = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32))  # strides of the grids of YOLO networks
ANCHORS_A_CELL = 3  # of YOLOv5 and YOLOv7
LARGEST_FRACTION = 1.5  # of a box's side or corner: some reach out of the picture
SCORE_SLACK = 1e-3  # of a probability, beyond 0 and 1
PADDING = -1.0  # the score of what only fills up, if it is not 0
MOST_SUPPRESSED = 1000  # boxes of a picture: networks that give more leave repeated ones to be dropped
FEW_BOXES = 3  # fewer do not tell corners from centres and sizes
MANY_BOXES = 50  # enough that their corners are not in order by chance
MOST, NEARLY_ALL = 0.7, 0.98  # share of boxes that have a format: untrained networks give a few others
CLEARLY_BETTER = 0.2  # share of the boxes' area that lies in the picture, in a format that is not the usual
ROTATED_OVERLAP = 0.5  # of upright rectangles, which drops what 0.7 of Ultralytics' own measure does
SERVED_TASKS = ("detect", "segment", "pose", "obb")
COCO_CLASSES = (80, 91)  # with and without the numbers that COCO left out


# ---- what exporters' own pipelines do


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What an exporter's own pipeline does before and after the network."""

    keys: Mapping[str, object] = field(default_factory=dict)  # of Declaration
    free_keys: Mapping[str, object] = field(default_factory=dict)  # if the input may have any size
    assumed: Mapping[str, str] = field(default_factory=dict)  # what the file does not say, by a key of it


_IMAGENET = MappingProxyType({"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
_SHORT_SIDE = MappingProxyType({"resize": ResizePolicy.SHORT_SIDE, "input": (1333, 800)})
_AS_IS = MappingProxyType({"resize": ResizePolicy.AS_IS, "input": (1333, 800)})

PLAIN = Pipeline(
    assumed={
        "channels": "RGB",
        "white": "colours from 0 to 1",
        "resize": "a letterbox, grey on the right or at the bottom",
    }
)
ULTRALYTICS = Pipeline({"resize": ResizePolicy.LETTERBOX_CENTRE, "max_overlap": 0.7})
ULTRALYTICS_RT_DETR = Pipeline({"resize": ResizePolicy.STRETCH})
YOLOV5 = Pipeline(
    {"resize": ResizePolicy.LETTERBOX_CENTRE},
    assumed={"resize": "letterbox in the centre, as YOLOv5 and YOLOv7"},
)
YOLOV6 = Pipeline(
    {"resize": ResizePolicy.LETTERBOX_CENTRE}, assumed={"resize": "letterbox in the centre, as YOLOv6"}
)
YOLOX = Pipeline(
    {"white": 255.0, "channels": Channels.BGR, "across_classes": True},
    assumed={"white": "BGR from 0 to 255 in a letterbox, as YOLOX"},
)
RT_DETR = Pipeline(
    {"resize": ResizePolicy.STRETCH}, assumed={"white": "RGB from 0 to 1, as RT-DETR and D-FINE"}
)
RF_DETR = Pipeline(
    {"resize": ResizePolicy.STRETCH, "min_score": 0.5, **_IMAGENET},
    assumed={"mean": "mean and std of ImageNet, as RF-DETR"},
)
DETR = Pipeline(
    {"resize": ResizePolicy.STRETCH, "min_score": 0.5, **_IMAGENET},
    _SHORT_SIDE,
    {"mean": "mean and std of ImageNet, as DETR"},
)
MMDEPLOY = Pipeline(
    {
        "min_score": 0.3,
        "channels": Channels.BGR,
        "mean": IMAGENET_MEAN[::-1],
        "std": IMAGENET_STD[::-1],
    },
    {**_SHORT_SIDE, **_IMAGENET, "channels": Channels.RGB},
    {
        "mean": "mean and std of ImageNet, as mmdetection: in BGR if the input has a fixed size (RTMDet), "
        "else in RGB"
    },
)
IN_ITSELF = Pipeline({"resize": ResizePolicy.STRETCH, "min_score": 0.5}, _AS_IS)  # it scales and normalises

BY_OUTPUT: Mapping[tuple[Layout, str], Pipeline] = MappingProxyType(  # by the name of the boxes
    {
        (Layout.SEPARATE, "detection_boxes"): IN_ITSELF,
        (Layout.SEPARATE, "det_boxes"): YOLOV5,
        (Layout.SEPARATE, "dets"): MMDEPLOY,
        (Layout.DETR_SIGMOID, "dets"): RF_DETR,
    }
)


# ---- what an output could be


@dataclass(frozen=True, slots=True)
class Form:
    """One way to read an output, as far as names and shapes tell."""

    layout: Layout
    class_count: int
    outputs: Mapping[Role, str] = field(default_factory=dict)
    extra_columns: int = 0
    keys: Mapping[str, object] = field(default_factory=dict)  # of Declaration, that names or metadata settle
    left_out: tuple[str, ...] = ()

    def reading(self) -> Reading:
        """Return how to read the numbers of this form as they are."""
        return Reading(
            self.layout,
            self.class_count,
            max_boxes=MAX_BOXES,
            scores=Scores.PROBABILITIES,
            outputs=self.outputs,
            extra_columns=self.extra_columns,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a network gave for trial pictures."""

    output: object
    frame_count: int
    input_size: tuple[int, int]


def recognise(
    name: str,
    network: Network,
    declared: Mapping[str, object],
    device: str,
    beside: Mapping[str, object] = MappingProxyType({}),
) -> Declaration:
    """Return all that has to be known of model `name`, which runs on trial pictures for it.

    `declared` is what the administrator says; it is never overruled. A whole declaration, as
    ``model_dump(mode="json")`` returns it, is taken as it is, and nothing runs. `beside`: what files beside
    the network say, as `processor_keys` reads them.

    Raises ModelFault, saying what was seen and what to write, for what cannot be read or in several ways.
    """
    if declared.keys() >= Declaration.model_fields.keys():
        declaration = Declaration.of(name, declared)
        check_input(name, declaration, network.takes)
        return declaration
    # What is declared is checked before anything runs.
    Declaration.of(name, {"labels": ("",), "input": (1, 1), "layout": Layout.YOLO, **declared})
    metadata = read_metadata(name, network.metadata)
    if metadata.author == "Ultralytics" and metadata.task not in SERVED_TASKS:
        raise ModelFault(
            f"Model {name!r} is for the task {metadata.task!r}, which gives no boxes; served are "
            f"{', '.join(SERVED_TASKS)}."
        )
    return _Recognition(name, network, dict(declared), metadata, device, beside).declaration()


def processor_keys(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the keys of a declaration that a network's and its image processor's settings hold.

    `config`, `settings`: the objects of ``config.json`` and ``preprocessor_config.json`` of Hugging Face.
    """
    keys: dict[str, object] = {"min_score": 0.5}  # as transformers' own pipeline has it
    labels = config.get("id2label")
    numbered = numbered_labels(labels) if isinstance(labels, Mapping) else None
    if numbered:
        keys["labels"] = numbered
    match settings.get("size") if settings.get("do_resize", True) else None:
        case {"height": int(height), "width": int(width)}:
            keys |= {"resize": ResizePolicy.STRETCH, "input": (width, height)}
        case {"shortest_edge": int(short), "longest_edge": int(longest)}:
            keys |= {"resize": ResizePolicy.SHORT_SIDE, "input": (longest, short)}
        case int(short) if isinstance(settings.get("max_size"), int):  # as older versions wrote it
            keys |= {"resize": ResizePolicy.SHORT_SIDE, "input": (settings["max_size"], short)}
    pixels = processor_pixels(settings)
    keys |= {"white": pixels.white, "mean": pixels.mean, "std": pixels.std}
    return keys


def declared_network(network: Network, declaration: Declaration) -> LoadedNetwork:
    """Return the network with its rules as declared."""
    return LoadedNetwork(
        network,
        declaration.fitting,
        declaration.pixels,
        declaration.reading,
        declaration.labels,
        declaration.min_score,
        declaration.precision,
        network.takes.batch or declaration.batch,
        declaration.model_dump(mode="json"),
    )


class _Recognition:
    """Recognises one network. `declared` overrules everything; what is found is added to `known`."""

    def __init__(
        self,
        name: str,
        network: Network,
        declared: dict[str, object],
        metadata: Metadata,
        device: str,
        beside: Mapping[str, object],
        *,
        advises: bool = True,  # on what is not recognised, after trying it
    ) -> None:
        self._advises = advises
        self._name = name
        self._network = network
        self._declared = declared
        self._metadata = metadata
        self._device = device
        takes = network.takes
        self._beside = dict(beside)
        if takes.width is not None and takes.height is not None:
            # Its own size counts, in which pictures of any shape can only be stretched.
            self._beside = {key: value for key, value in beside.items() if key not in ("input", "resize")}
        self._known: dict[str, object] = {}
        self._is_free = False
        if takes.width is not None and takes.height is not None:
            self._known["input"] = (takes.width, takes.height)
        elif metadata.input is not None:
            self._known["input"] = metadata.input
        elif takes.name:
            self._known["input"] = (takes.width or USUAL_SIZE[0], takes.height or USUAL_SIZE[1])
            self._is_free = "input" not in declared and takes.width is None and takes.height is None
        if takes.batch is not None:
            self._known["batch"] = takes.batch
        labels = declared.get("labels", self._beside.get("labels", metadata.labels))
        self._class_count = len(labels) if isinstance(labels, Sequence) else None
        outputs = declared.get("outputs")
        self._named = (
            {Role(role): str(output) for role, output in outputs.items()}
            if isinstance(outputs, Mapping)
            else {}
        )

    def declaration(self) -> Declaration:
        if "input" not in {**self._known, **self._declared}:
            raise ModelFault(
                f"Model {self._name!r} does not say for which size of pictures it is made. Write input = "
                "[width, height] in framebox.toml."
            )
        pipeline = self._likely_pipeline()
        seen = self._run(pipeline)
        form = self._form(seen)
        then = self._pipeline_of(form, seen)
        if then != pipeline:
            seen = self._run(then)
            form = self._form(seen)
        form, seen = self._with_boxes(form, seen, then)
        settled = set(self._declared)
        if self._network.takes.dtype is torch.uint8:
            settled |= {"white", "mean"}
        assumed = [] if self._beside else [text for key, text in then.assumed.items() if key not in settled]
        if self._is_free and not then.free_keys and not self._beside and "input" not in self._declared:
            assumed.append("an input of {} × {} pixels".format(*USUAL_SIZE))
        known = {**self._keys(then), **form.keys, **self._proven(form, seen)}
        if form.layout.is_suppressed:
            known.pop("max_overlap", None)
            if _row_count(form, seen) > MOST_SUPPRESSED:
                known["max_overlap"] = DEFAULT_MAX_OVERLAP
        labels = (
            self._beside.get("labels")
            or self._metadata.labels
            or tuple(str(number) for number in range(form.class_count))
        )
        if form.layout is Layout.TORCHVISION and self._class_count and "first_class" not in self._declared:
            assumed.append("the first label is the background")
        known |= {
            "labels": labels,
            "layout": form.layout,
            "outputs": form.outputs,
            "extra_columns": form.extra_columns,
            "left_out": form.left_out,
            "assumed": tuple(assumed),
        }
        declaration = Declaration.of(self._name, {**known, **self._declared, "outputs": form.outputs})
        check_input(self._name, declaration, self._network.takes)
        return declaration

    def _keys(self, pipeline: Pipeline) -> dict[str, object]:
        free = pipeline.free_keys if self._is_free else {}
        keys = {**pipeline.keys, **self._known, **free, **self._beside}
        if self._network.takes.dtype is torch.uint8:
            keys = {key: value for key, value in keys.items() if key not in ("white", "mean", "std")}
        return keys

    # ---- trial runs

    def _with_boxes(self, form: Form, seen: Seen, pipeline: Pipeline) -> tuple[Form, Seen]:
        """Run further scenes until there are boxes enough to prove what is open; else those with the most."""
        best = (_box_count(form, seen), form, seen)
        is_open = {"boxes", "coordinates"} - form.keys.keys() - self._declared.keys()
        if not is_open and form.layout is not Layout.FRAME_ROWS:
            return form, seen
        for first in range(TRIAL_FRAMES, SCENE_COUNT, TRIAL_FRAMES):
            if best[0] >= FEW_BOXES:
                break
            seen = self._run(pipeline, first)
            form = self._form(seen)
            best = max(best, (_box_count(form, seen), form, seen), key=lambda found: found[0])
        return best[1:]

    def _run(self, pipeline: Pipeline, first: int = 0) -> Seen:
        """Run two drawn scenes; one, if the network takes only one, which is then known."""
        keys = {"labels": ("",), "layout": Layout.YOLO, **self._keys(pipeline), **self._declared}
        keys["labels"] = ("",)
        declaration = Declaration.of(self._name, keys)
        check_input(self._name, declaration, self._network.takes)
        try:
            seen = self._run_scenes(declaration, TRIAL_FRAMES, first)
            shapes = [tensor.shape for _, tensor in named_tensors(seen.output) if tensor.ndim == 3]
            gives_one = declaration.batch is None and shapes and all(shape[0] == 1 for shape in shapes)
            if not gives_one:
                return seen
        except Exception as error:
            if isinstance(error, ModelFault) or is_out_of_memory(error):
                raise
            if declaration.batch is not None:
                raise self._failure(error, declaration.batch) from error
        alone = declaration.model_copy(update={"batch": 1})
        try:
            seen = self._run_scenes(alone, 1, first)
        except Exception as error:
            if isinstance(error, ModelFault) or is_out_of_memory(error):
                raise
            raise self._failure(error, 1) from error
        self._known["batch"] = 1
        return seen

    def _run_scenes(self, declaration: Declaration, count: int, first: int) -> Seen:
        loaded = declared_network(self._network, declaration)
        detector = NetworkDetector(
            loaded, name=self._name, fingerprint="", device=self._device, batch_size=count
        )
        scenes = golden_scenes(*detector.frame_size(1280, 720))[first:][: min(count, detector.call_size)]
        placement = loaded.fitting.place(scenes.shape[2], scenes.shape[1])
        with torch.inference_mode():
            output = detector.output(scenes)
        count = max(len(scenes), loaded.batch or 0)
        return Seen(output, count, (placement.input_width, placement.input_height))

    def _failure(self, error: Exception, count: int) -> ModelFault:
        return ModelFault(
            f"Model {self._name!r} fails on a batch of {count}: {reason(error)}. Write the input that it was "
            "made for in framebox.toml."
        )

    # ---- names and shapes

    def _form(self, seen: Seen) -> Form:
        """Return the one form that the output has. Raises ModelFault for none, or several."""
        forms = [form for form in self._forms(seen) if self._is_possible(form, seen)]
        # A column of whole numbers beside one of probabilities is not found by chance.
        specific = [form for form in forms if form.layout is Layout.END_TO_END]
        forms = specific or forms
        if len(forms) > 1 and self._class_count is None:
            forms = [form for form in forms if form.class_count in COCO_CLASSES] or forms
        if len(forms) == 1:
            return forms[0]
        given = f"Model {self._name!r} gives {describe_output(seen.output)} for {seen.frame_count} frames"
        if forms:
            could = " or ".join(
                f'layout = "{form.layout.value}" with {form.class_count} labels' for form in forms
            )
            raise ModelFault(f"{given}, which could be {could}. Write the right one in framebox.toml.")
        raise self._unread(seen, given)

    def _unread(self, seen: Seen, given: str) -> ModelFault:
        """Return the fault of an output that has no form, with what was tried and works."""
        layout = self._declared.get("layout")
        if layout is None and self._class_count is None:
            maps = [tensor for _, tensor in named_tensors(seen.output) if tensor.ndim >= 4]
            advice = "Export it with its boxes decoded" if maps else "Write its layout in framebox.toml"
            return ModelFault(f"{given}, which is no known layout. {advice}.")
        loose = {key: value for key, value in self._declared.items() if key in ("input", "batch", "labels")}
        for has_labels in (True, False) if self._advises else ():
            tried = {key: value for key, value in loose.items() if has_labels or key != "labels"}
            metadata = self._metadata if has_labels else replace(self._metadata, labels=None)
            try:
                found = _Recognition(
                    self._name, self._network, tried, metadata, self._device, self._beside, advises=False
                ).declaration()
                self._check_boxes(found)
            except ModelFault:
                continue
            labels = "" if has_labels else f"and {len(found.labels)} labels "
            advice = f'With layout = "{found.layout.value}" {labels}it gives sensible boxes: write that'
            break
        else:
            advice = "Write the right layout and labels"
        count = self._class_count or 1
        if layout is not None:
            fault = layout_fault(
                self._name, seen.output, Reading(Layout(str(layout)), count), seen.frame_count
            )
            return ModelFault(f"{fault.detail} {advice} in framebox.toml.")
        return ModelFault(f"{given}, which is no known layout for {count} labels. {advice} in framebox.toml.")

    def _check_boxes(self, declaration: Declaration) -> None:
        loaded = declared_network(self._network, declaration)
        detector = NetworkDetector(loaded, name=self._name, fingerprint="", device=self._device, batch_size=1)
        with torch.inference_mode():
            detector.detect(golden_scenes(*detector.frame_size(1280, 720))[:1])

    def _forms(self, seen: Seen) -> list[Form]:
        """Return the forms that the output could have by its names and shapes, and what is declared."""
        tensors = dict(named_tensors(seen.output))
        extra = self._declared.get("extra_columns")
        forms = _forms_of_several(seen.output, tensors, self._class_count, self._network.takes, self._named)
        if not forms:
            forms = _forms_of_one(
                tensors,
                self._class_count,
                self._metadata,
                seen,
                self._named.get(Role.BOXES),
                extra if isinstance(extra, int) else None,
            )
        left_out = _left_out(tensors)
        return [
            replace(
                form,
                left_out=tuple(dict.fromkeys([*form.left_out, *left_out])),
                outputs={**form.outputs, **self._named},
            )
            for form in forms
            if self._declared.get("layout", form.layout) == form.layout
        ]

    def _is_possible(self, form: Form, seen: Seen) -> bool:
        """Whether the numbers of the output can be those of the form."""
        columns = read_columns(seen.output, form.reading(), seen.frame_count)
        if columns is None:
            return False
        is_declared = "layout" in self._declared
        is_long = _row_count(form, seen) > MOST_SUPPRESSED  # so that no network has suppressed its boxes
        match form.layout:
            case Layout.END_TO_END:
                classes = _first_of(seen.output, form)[..., 5]
                is_class = _is_whole(classes) and bool((classes >= -1).all())
                is_proven = is_class and _are_probabilities(columns.scores[columns.scores != PADDING])
                return is_proven and (is_declared or not is_long)
            case Layout.FRAME_ROWS:
                rows = _first_of(seen.output, form)
                return _is_whole(rows[:, 0]) and _is_whole(rows[:, 5]) and _are_probabilities(rows[:, 6])
            case Layout.BOX_SCORES:
                is_known = self._class_count is not None or form.class_count in COCO_CLASSES or not is_long
                return is_known and bool((columns.scores != 0).any()) and not _grid_of(columns, seen)
            case Layout.YOLO if self._class_count is None and not is_declared:
                return bool(_grid_with(columns.boxes.shape[1], seen.input_size))
            case Layout.YOLO_OBJECTNESS if self._class_count is None:
                return _scores_of(form, columns, seen.output) is Scores.PROBABILITIES
            case Layout.DETR | Layout.DETR_SIGMOID if not is_declared:
                # Networks that give a box for each place have no usual way to prepare pictures.
                return not is_long and _fits_activation(
                    form, seen.output, knows_labels=self._class_count is not None
                )
        return True

    # ---- pipelines

    def _likely_pipeline(self) -> Pipeline:
        """Return the pipeline that metadata and inputs suggest, before anything runs."""
        if self._metadata.author == "Ultralytics":
            return ULTRALYTICS_RT_DETR if "RTDETR" in self._metadata.head else ULTRALYTICS
        kinds = [kind for kind, _ in self._network.takes.further]
        return RT_DETR if FurtherInput.SIZES in kinds else PLAIN

    def _pipeline_of(self, form: Form, seen: Seen) -> Pipeline:
        """Return the pipeline of whoever exports networks of this form."""
        likely = self._likely_pipeline()
        if likely is ULTRALYTICS:
            proven = {**form.keys, **self._proven(form, seen)}
            is_fraction = proven.get("coordinates") == Coordinates.FRACTIONS
            return ULTRALYTICS_RT_DETR if is_fraction and form.layout.is_suppressed else ULTRALYTICS
        if likely is not PLAIN:
            return likely
        known = BY_OUTPUT.get((form.layout, form.outputs.get(Role.BOXES, "")))
        if known is not None:
            return known
        # Labels in metadata are of somebody's own export, who may have put the normalisation into it.
        is_bare = bool(self._beside) or not self._metadata.labels
        match form.layout:
            case Layout.DETR | Layout.DETR_SIGMOID if is_bare and _row_count(form, seen) <= MOST_SUPPRESSED:
                is_huggingface = self._network.takes.name == "pixel_values"
                is_rt_detr = form.layout is Layout.DETR_SIGMOID and not self._network.takes.further
                return RT_DETR if is_huggingface and is_rt_detr else DETR
            case Layout.YOLO_OBJECTNESS:
                dense = _first_of(seen.output, form)
                if _grid_with(dense.shape[1], seen.input_size, ANCHORS_A_CELL):
                    return YOLOV5
                if bool((dense[..., 4] == 1).all()):
                    return YOLOV6  # it has no objectness, and exports it as 1
                if _grid_with(dense.shape[1], seen.input_size):
                    return YOLOX
        return {Layout.TORCHVISION: IN_ITSELF, Layout.FRAME_ROWS: YOLOV5}.get(form.layout, PLAIN)

    # ---- proof on the trial pictures

    def _proven(self, form: Form, seen: Seen) -> dict[str, object]:
        """Return the keys that the numbers of the output settle. Raises ModelFault for what they do not."""
        columns = read_columns(seen.output, form.reading(), seen.frame_count)
        if columns is None:
            raise layout_fault(self._name, seen.output, form.reading(), seen.frame_count)
        keys: dict[str, object] = {"scores": _scores_of(form, columns, seen.output)}
        strides = self._declared.get("strides")
        if strides is None and form.layout is Layout.YOLO_OBJECTNESS:
            strides = _grid_of(columns, seen)
        if strides:
            return keys | {
                "strides": strides,
                "boxes": BoxFormat.CENTRE_SIZE,
                "coordinates": Coordinates.PIXELS,
            }
        rows = _real_boxes(form, columns)
        boxes = rows[:, :4]
        if not bool((boxes.sum() + columns.scores.sum()).isfinite()):
            raise ModelFault(f"Model {self._name!r} gives numbers that are not finite.")
        self._check_classes(form, columns)
        known = {**form.keys, **self._declared}
        box_format, coordinates = known.get("boxes"), known.get("coordinates")
        usual = form.reading()
        if not len(boxes):
            self._check_nothing_is_open(form)
            return keys | {
                "boxes": box_format or usual.usual_format,
                "coordinates": coordinates or usual.usual_coordinates,
            }
        if coordinates is None:
            within = (boxes.abs() <= LARGEST_FRACTION).all(dim=1)
            is_fraction = float(within.float().mean()) >= MOST
            coordinates = Coordinates.FRACTIONS if is_fraction else Coordinates.PIXELS
        unit = Coordinates(str(coordinates))
        if box_format is None:
            box_format = _format_of(boxes, usual.usual_format, unit, seen.input_size)
            self._check_order(form, box_format, unit, rows, seen)
        if box_format is None:
            raise ModelFault(
                f"Model {self._name!r} gives boxes that are neither corners nor centres and sizes. Write "
                "layout and boxes in framebox.toml."
            )
        reading = replace(usual, box_format=BoxFormat(str(box_format)), coordinates=unit)
        found = _found_boxes(columns)
        if _share_sound(found if len(found) else rows, reading, seen.input_size) < MOST:
            raise ModelFault(
                f"Model {self._name!r} gives boxes that are no {reading.usual_format.value} in {unit.value}: "
                "most would be inverted, outside the picture or smaller than a pixel. Write layout, outputs, "
                "boxes and coordinates in framebox.toml."
            )
        return keys | {"boxes": box_format, "coordinates": coordinates}

    def _check_nothing_is_open(self, form: Form) -> None:
        """Raise ModelFault if something had to be proven on boxes, of which there are none."""
        if form.layout is Layout.FRAME_ROWS:
            # Six numbers and a score stand in any order; those of YOLOv7 are known by the output's name.
            is_open = form.outputs[Role.BOXES] != "output" and "layout" not in self._declared
        elif form.layout is Layout.TORCHVISION or self._metadata.author == "Ultralytics":
            is_open = False
        else:
            wanted = {"layout", "boxes", "coordinates"}
            if form.layout is Layout.SEPARATE:
                wanted.add("outputs")
            is_open = not {"boxes", "coordinates"} <= form.keys.keys() and not wanted <= self._declared.keys()
        if is_open:
            raise ModelFault(
                f"Model {self._name!r} finds nothing in the trial pictures, so that its numbers cannot be "
                "told apart. Write layout, outputs, boxes and coordinates in framebox.toml, such as layout = "
                f'"{form.layout.value}", boxes = "corners" and coordinates = "pixels".'
            )

    def _check_order(
        self, form: Form, box_format: BoxFormat | None, unit: Coordinates, rows: Tensor, seen: Seen
    ) -> None:
        """Raise ModelFault if boxes have another format too, of which nothing tells them."""
        if form.layout not in (Layout.END_TO_END, Layout.SEPARATE) or box_format is not BoxFormat.CORNERS:
            return
        other = None
        has_usual_name = usual_output([form.outputs[Role.BOXES]], Role.BOXES) is not None
        if form.layout is Layout.SEPARATE and unit is Coordinates.FRACTIONS and not has_usual_name:
            other = BoxFormat.CORNERS_Y_FIRST  # as TensorFlow has them
        elif len(rows) < FEW_BOXES and "layout" not in self._declared and self._advises:
            reading = replace(form.reading(), box_format=BoxFormat.CENTRE_SIZE, coordinates=unit)
            if _share_sound(rows, reading, seen.input_size) == 1:
                other = BoxFormat.CENTRE_SIZE
        if other is not None:
            raise ModelFault(
                f'Model {self._name!r} gives boxes that could be boxes = "corners" or boxes = '
                f'"{other.value}". Write the right one in framebox.toml.'
            )

    def _check_classes(self, form: Form, columns: Columns) -> None:
        """Raise ModelFault if the network gives numbers of classes that have no labels."""
        first = self._declared.get("first_class", form.keys.get("first_class", 0))
        if self._class_count is None or columns.class_ids.ndim != 2 or columns.box_ids is not None:
            return
        found = columns.class_ids[columns.scores >= FLOOR_SCORE]
        if not isinstance(first, int) or not len(found) or int(found.max()) - first < self._class_count:
            return
        raise ModelFault(
            f"Model {self._name!r} gives class {int(found.max())}, but has {self._class_count} labels, which "
            f"are counted from {first}. Write all labels in framebox.toml."
        )


# ---- forms by names and shapes


def _forms_of_several(
    output: object,
    tensors: Mapping[str, Tensor],
    class_count: int | None,
    takes: NetworkInput,
    named: Mapping[Role, str],
) -> list[Form]:
    """Return the forms of an output with boxes, scores and classes apart, or of dictionaries."""
    if frame_dictionaries(output, Reading(Layout.TORCHVISION, 1)) is not None:
        return [Form(Layout.TORCHVISION, class_count or NUMBERED_CLASSES)]

    def find(tensors: Mapping[str, Tensor], role: Role, *fits: Callable[[Tensor], bool]) -> str | None:
        """Return which tensor has a role: as declared, by a usual name, or else the first that `fits`."""
        if named.get(role) in tensors:
            return named[role]
        found = (name for fit in fits for name, tensor in tensors.items() if fit(tensor))
        return usual_output(tensors, role) or next(found, None)

    boxes = find(tensors, Role.BOXES, lambda tensor: tensor.ndim in (2, 3) and tensor.shape[-1] in (4, 5))
    if boxes is None:
        return []
    rows = tensors[boxes].shape[:-1]
    flat = {name: tensor for name, tensor in tensors.items() if tensor.shape == rows}
    classes = find(flat, Role.CLASSES, lambda tensor: not tensor.is_floating_point(), _is_whole)
    rest = {name: tensor for name, tensor in flat.items() if name != classes}
    scores = find(rest, Role.SCORES, lambda tensor: tensor.is_floating_point())
    outputs = {Role.BOXES: boxes}
    if classes is not None and (scores is not None or tensors[boxes].shape[-1] == 5):
        outputs[Role.CLASSES] = classes
        if tensors[boxes].shape[-1] == 4 and scores is not None:
            outputs[Role.SCORES] = scores
        if len(rows) == 1:
            return [Form(Layout.TORCHVISION, class_count or NUMBERED_CLASSES, outputs)]
        counts = {name: tensor for name, tensor in tensors.items() if tensor.numel() == rows[0]}
        count = find(counts, Role.COUNT)
        if count is not None:
            outputs[Role.COUNT] = count
        return [
            Form(Layout.SEPARATE, class_count or NUMBERED_CLASSES, outputs, keys=_keys_by_name(boxes, takes))
        ]
    matrices = {
        name: tensor
        for name, tensor in tensors.items()
        if name != boxes and tensor.ndim == 3 and tensor.shape[:-1] == rows and tensor.is_floating_point()
    }
    if len(rows) != 2 or tensors[boxes].shape[-1] != 4 or not matrices:
        return []
    matrix = find(matrices, Role.SCORES, lambda _: True)
    if matrix is None:
        return []
    outputs[Role.SCORES] = matrix
    columns = tensors[matrix].shape[-1]
    forms = [Form(Layout.DETR_SIGMOID, columns, outputs)]
    if columns > 1 and boxes != "dets":
        forms.append(Form(Layout.DETR, columns - 1, outputs))
    return [form for form in forms if class_count in (None, form.class_count)]


def _keys_by_name(boxes: str, takes: NetworkInput) -> dict[str, object]:
    """Return what the name of the boxes settles in the layout `separate`, or that the sizes are given."""
    if boxes == "detection_boxes":  # of TensorFlow's zoo, which counts from 1
        return {
            "boxes": BoxFormat.CORNERS_Y_FIRST,
            "coordinates": Coordinates.FRACTIONS,
            "first_class": 1,
        }
    if boxes in ("dets", "det_boxes"):
        return {"boxes": BoxFormat.CORNERS, "coordinates": Coordinates.PIXELS}
    if any(kind is FurtherInput.SIZES for kind, _ in takes.further):
        return {"boxes": BoxFormat.CORNERS, "coordinates": Coordinates.FRACTIONS}
    return {"boxes": BoxFormat.CORNERS} if boxes.endswith("pred_boxes") else {}  # of YOLO-NAS


def _forms_of_one(
    tensors: Mapping[str, Tensor],
    class_count: int | None,
    metadata: Metadata,
    seen: Seen,
    named: str | None,
    declared_extra: int | None,
) -> list[Form]:
    """Return the forms of an output of which one tensor holds everything: the named one, or the first."""
    name = named if named is not None and named in tensors else next(iter(tensors), "")
    dense = tensors.get(name, torch.empty(0))
    outputs = {Role.BOXES: name}
    if dense.ndim == 2 and dense.shape[1] == 7:
        rows = {"boxes": BoxFormat.CORNERS, "coordinates": Coordinates.PIXELS}
        return [Form(Layout.FRAME_ROWS, class_count or NUMBERED_CLASSES, outputs, keys=rows)]
    if dense.ndim != 3 or dense.shape[0] != seen.frame_count:
        return []
    _, first, second = dense.shape
    extra = 0
    left_out: tuple[str, ...] = ()
    keys: dict[str, object] = {}
    prototypes = [tensor for tensor in tensors.values() if tensor.ndim == 4]
    if metadata.task == "obb":
        extra, left_out = 1, ("angles",)
        keys = {"boxes": BoxFormat.ROTATED, "max_overlap": ROTATED_OVERLAP}
    elif metadata.task == "pose":
        extra, left_out = metadata.key_point_columns, ("key points",)
    elif prototypes and (metadata.task == "segment" or (len(tensors) == 2 and named is None)):
        extra, left_out = prototypes[0].shape[1], ("masks",)
    if declared_extra is not None:
        extra = declared_extra
    forms = []

    def add(layout: Layout, count: int) -> None:
        if count > 0 and class_count in (None, count):
            forms.append(Form(layout, count, outputs, extra, keys, left_out))

    if second == 6 + extra:
        settled = keys
        if metadata.author == "Ultralytics" and metadata.head and "boxes" not in keys:
            is_query = "RTDETR" in metadata.head
            settled = {
                "boxes": BoxFormat.CENTRE_SIZE if is_query else BoxFormat.CORNERS,
                "coordinates": Coordinates.FRACTIONS if is_query else Coordinates.PIXELS,
            }
        count = class_count or NUMBERED_CLASSES
        forms.append(Form(Layout.END_TO_END, count, outputs, extra, settled, left_out))
    if class_count is not None or first < second:
        add(Layout.YOLO, first - 4 - extra)
    if class_count is not None or first > second:
        of_anchors = bool(_grid_with(first, seen.input_size, ANCHORS_A_CELL))
        if class_count is not None or of_anchors or _grid_with(first, seen.input_size):
            add(Layout.YOLO_OBJECTNESS, second - 5 - extra)
        if class_count is not None or not of_anchors:
            add(Layout.BOX_SCORES, second - 4 - extra)
    return forms


def _left_out(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name what outputs hold beside boxes, as far as their names tell."""
    words = {"mask": "masks", "keypoint": "key points", "kpt": "key points", "angle": "angles"}
    return [what for name in tensors for word, what in words.items() if word in name]


# ---- what the numbers of an output tell


def _first_of(output: object, form: Form) -> Tensor:
    return dict(named_tensors(output))[form.outputs[Role.BOXES]].float()


def _row_count(form: Form, seen: Seen) -> int:
    """Return how many boxes a picture has at most; 0 if that is not fixed."""
    if form.layout in (Layout.FRAME_ROWS, Layout.TORCHVISION):
        return 0
    return _first_of(seen.output, form).shape[2 if form.layout is Layout.YOLO else 1]


def _real_boxes(form: Form, columns: Columns) -> Tensor:
    """Return the boxes that do not only fill up, (m, 4 or more) float32."""
    boxes = columns.boxes
    if form.layout.is_suppressed and columns.box_ids is None:
        boxes = boxes[(columns.scores != 0) & (columns.scores != PADDING)]
    return boxes.reshape(-1, boxes.shape[-1]).float()


def _found_boxes(columns: Columns) -> Tensor:
    """Return the boxes that reach the lowest score, (m, 4 or more) float32."""
    frames, places = (columns.scores >= FLOOR_SCORE).nonzero(as_tuple=True)
    ids = places if columns.box_ids is None else columns.box_ids[frames, places]
    return columns.boxes[frames, ids].float()


def _box_count(form: Form, seen: Seen) -> int:
    columns = read_columns(seen.output, form.reading(), seen.frame_count)
    return 0 if columns is None else len(_real_boxes(form, columns))


def _is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool((tensor == tensor.round()).all())


def _are_probabilities(scores: Tensor) -> bool:
    return bool(((scores >= -SCORE_SLACK) & (scores <= 1 + SCORE_SLACK)).all())


def _scores_of(form: Form, columns: Columns, output: object) -> Scores:
    scores = columns.scores
    if form.layout is Layout.YOLO_OBJECTNESS:
        scores = _first_of(output, form)[..., 4 : 5 + form.class_count]
    elif form.layout in (Layout.DETR, Layout.DETR_SIGMOID):
        scores = dict(named_tensors(output))[form.outputs[Role.SCORES]]
    elif form.layout.is_suppressed:
        scores = scores[scores != PADDING]
    return Scores.PROBABILITIES if _are_probabilities(scores) else Scores.LOGITS


def _fits_activation(form: Form, output: object, *, knows_labels: bool) -> bool:
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


def _grid_with(rows: int, input_size: tuple[int, int], anchors: int = 1) -> tuple[int, ...]:
    """Return the strides of the usual grids that have `rows` boxes, `anchors` of them in a cell; or ()."""
    for strides in GRIDS:
        if len(grid_cells(input_size, strides, torch.device("cpu"))) * anchors == rows:
            return strides
    return ()


def _grid_of(columns: Columns, seen: Seen) -> tuple[int, ...]:
    """Return the strides of the grids in whose cells boxes are given; () if they are given in the picture.

    In the picture, boxes lie near their cells: their places correlate. In cells, they do not.
    """
    strides = _grid_with(columns.boxes.shape[1], seen.input_size)
    if not strides:
        return ()
    cells = grid_cells(seen.input_size, strides, columns.boxes.device)
    places = cells[:, :2] * cells[:, 2:]
    centres = columns.boxes[..., :2].float().mean(dim=0)
    pairs = torch.stack([places.flatten(), centres.flatten()])
    # Places that are the same in all cells have no correlation at all: NaN.
    return () if float(torch.corrcoef(pairs)[0, 1]) >= 0.5 else strides


def _format_of(
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


def _share_sound(boxes: Tensor, reading: Reading, input_size: tuple[int, int]) -> float:
    """Return which share of boxes, (m, 4 or more), lie in the picture, and are not inverted."""
    corners = reading.boxes_to_xyxy(boxes, input_size)
    near, far = corners[:, :2], corners[:, 2:]
    is_sound = (far >= near) & (far > 1) & (near < corners.new_tensor(input_size))
    return float(is_sound.all(dim=1).float().mean())
