"""Recognise what a network takes and what its output means, so that files are served as exporters write them.

First counts what the administrator declares, then what the file's metadata say, then names, types and shapes
of inputs and outputs. Whatever they leave open is proven on trial pictures: what lies in the picture, which
numbers are whole, which are probabilities. What could be read in two ways is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from app.detection.detector import is_out_of_memory
from app.detection.golden import SCENE_COUNT, golden_scenes
from app.detection.model_files import reason
from app.detection.model_formats.declaration import Declaration, Metadata, check_input, read_metadata
from app.detection.network import LoadedNetwork, Network, NetworkDetector, layout_fault
from app.detection.network_input import FurtherInput
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
    named_tensors,
    read_columns,
    usual_output,
)
from app.detection.recognition.evidence import (
    COCO_CLASSES,
    MOST,
    PADDING,
    are_probabilities,
    box_count,
    first_of,
    fits_activation,
    format_of,
    found_boxes,
    grid_of,
    real_boxes,
    row_count,
    scores_of,
    share_sound,
)
from app.detection.recognition.forms import ANCHORS_A_CELL, Form, Seen, candidate_forms, grid_with, is_whole
from app.detection.recognition.pipelines import (
    BY_OUTPUT,
    DETR,
    IN_ITSELF,
    PLAIN,
    RT_DETR,
    ULTRALYTICS,
    ULTRALYTICS_RT_DETR,
    YOLOV5,
    YOLOV6,
    YOLOX,
    Pipeline,
)
from app.errors import ModelFault

TRIAL_FRAMES = 2
USUAL_SIZE = (640, 640)  # of the input of a network that takes any
LARGEST_FRACTION = 1.5  # of a box's side or corner: some reach out of the picture
MOST_SUPPRESSED = 1000  # boxes of a picture: networks that give more leave repeated ones to be dropped
FEW_BOXES = 3  # fewer do not tell corners from centres and sizes
SERVED_TASKS = ("detect", "segment", "pose", "obb")


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
            if row_count(form, seen) > MOST_SUPPRESSED:
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
        best = (box_count(form, seen), form, seen)
        is_open = {"boxes", "coordinates"} - form.keys.keys() - self._declared.keys()
        if not is_open and form.layout is not Layout.FRAME_ROWS:
            return form, seen
        for first in range(TRIAL_FRAMES, SCENE_COUNT, TRIAL_FRAMES):
            if best[0] >= FEW_BOXES:
                break
            seen = self._run(pipeline, first)
            form = self._form(seen)
            best = max(best, (box_count(form, seen), form, seen), key=lambda found: found[0])
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
        extra = self._declared.get("extra_columns")
        candidates = candidate_forms(
            seen,
            class_count=self._class_count,
            metadata=self._metadata,
            takes=self._network.takes,
            named=self._named,
            declared_extra=extra if isinstance(extra, int) else None,
        )
        forms = [
            form
            for form in candidates
            if self._declared.get("layout", form.layout) == form.layout and self._is_possible(form, seen)
        ]
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

    def _is_possible(self, form: Form, seen: Seen) -> bool:
        """Whether the numbers of the output can be those of the form."""
        columns = read_columns(seen.output, form.reading(), seen.frame_count)
        if columns is None:
            return False
        is_declared = "layout" in self._declared
        is_long = row_count(form, seen) > MOST_SUPPRESSED  # so that no network has suppressed its boxes
        match form.layout:
            case Layout.END_TO_END:
                classes = first_of(seen.output, form)[..., 5]
                is_class = is_whole(classes) and bool((classes >= -1).all())
                is_proven = is_class and are_probabilities(columns.scores[columns.scores != PADDING])
                return is_proven and (is_declared or not is_long)
            case Layout.FRAME_ROWS:
                rows = first_of(seen.output, form)
                return is_whole(rows[:, 0]) and is_whole(rows[:, 5]) and are_probabilities(rows[:, 6])
            case Layout.BOX_SCORES:
                is_known = self._class_count is not None or form.class_count in COCO_CLASSES or not is_long
                return is_known and bool((columns.scores != 0).any()) and not grid_of(columns, seen)
            case Layout.YOLO if self._class_count is None and not is_declared:
                return bool(grid_with(columns.boxes.shape[1], seen.input_size))
            case Layout.YOLO_OBJECTNESS if self._class_count is None:
                return scores_of(form, columns, seen.output) is Scores.PROBABILITIES
            case Layout.DETR | Layout.DETR_SIGMOID if not is_declared:
                # Networks that give a box for each place have no usual way to prepare pictures.
                return not is_long and fits_activation(
                    form, seen.output, knows_labels=self._class_count is not None
                )
        return True

    # ---- pipelines

    def _likely_pipeline(self) -> Pipeline:
        """Return the pipeline that metadata and inputs suggest, before anything runs."""
        if self._metadata.author == "Ultralytics":
            return ULTRALYTICS_RT_DETR if "RTDETR" in self._metadata.head else ULTRALYTICS
        if self._metadata.is_of_yolov5:
            return YOLOV5
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
            case Layout.DETR | Layout.DETR_SIGMOID if is_bare and row_count(form, seen) <= MOST_SUPPRESSED:
                is_huggingface = self._network.takes.name == "pixel_values"
                is_rt_detr = form.layout is Layout.DETR_SIGMOID and not self._network.takes.further
                return RT_DETR if is_huggingface and is_rt_detr else DETR
            case Layout.YOLO_OBJECTNESS:
                dense = first_of(seen.output, form)
                if grid_with(dense.shape[1], seen.input_size, ANCHORS_A_CELL):
                    return YOLOV5
                if bool((dense[..., 4] == 1).all()):
                    return YOLOV6  # it has no objectness, and exports it as 1
                if grid_with(dense.shape[1], seen.input_size):
                    return YOLOX
        return {Layout.TORCHVISION: IN_ITSELF, Layout.FRAME_ROWS: YOLOV5}.get(form.layout, PLAIN)

    # ---- proof on the trial pictures

    def _proven(self, form: Form, seen: Seen) -> dict[str, object]:
        """Return the keys that the numbers of the output settle. Raises ModelFault for what they do not."""
        columns = read_columns(seen.output, form.reading(), seen.frame_count)
        if columns is None:
            raise layout_fault(self._name, seen.output, form.reading(), seen.frame_count)
        keys: dict[str, object] = {"scores": scores_of(form, columns, seen.output)}
        strides = self._declared.get("strides")
        if strides is None and form.layout is Layout.YOLO_OBJECTNESS:
            strides = grid_of(columns, seen)
        if strides:
            return keys | {
                "strides": strides,
                "boxes": BoxFormat.CENTRE_SIZE,
                "coordinates": Coordinates.PIXELS,
            }
        rows = real_boxes(form, columns)
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
            box_format = format_of(boxes, usual.usual_format, unit, seen.input_size)
            self._check_order(form, box_format, unit, rows, seen)
        if box_format is None:
            raise ModelFault(
                f"Model {self._name!r} gives boxes that are neither corners nor centres and sizes. Write "
                "layout and boxes in framebox.toml."
            )
        reading = replace(usual, box_format=BoxFormat(str(box_format)), coordinates=unit)
        found = found_boxes(columns)
        if share_sound(found if len(found) else rows, reading, seen.input_size) < MOST:
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
            if share_sound(rows, reading, seen.input_size) == 1:
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
