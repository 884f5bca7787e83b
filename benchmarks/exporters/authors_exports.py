"""Networks whose authors publish a repository, no package, exported by the scripts in it. Random weights.

Each repository is expected as a clone in ``scratch/clones`` of the folder of exports; those that are not
there are left out. Each runs in a process of its own, because they all have packages `models` and `utils`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.exporters import random_weights, scenes
from benchmarks.exporters.expected import Box, Exports, frames_of

LEAST_SCORE = 0.05
SIDE = 320
YOLO_PIPELINE = (
    "Before: letterbox in the centre, 114, RGB in [0, 1]. After: suppression at 0.45 within a class."
)
YOLOX_PIPELINE = (
    "Before: letterbox, 114 on the right or at the bottom, BGR. After: suppression at 0.45, all classes."
)
QUERY_PIPELINE = "Before: stretched (Pillow, bilinear), RGB in [0, 1]. After: nothing."

Found = Iterator[tuple[Any, Any, Any]]  # box in pixels of the frame, score, number of the class
Find = Callable[[np.ndarray], Found]


def make(exports: Exports) -> None:
    for project in PROJECTS:
        clone = exports.scratch / "clones" / project
        if not clone.exists():
            print(f"{project}: not cloned into {clone}", flush=True)
            continue
        paths = os.pathsep.join([str(Path.cwd()), str(clone)])
        # Their checkpoints are pickles, which torch opens only if asked to.
        environment = os.environ | {"PYTHONPATH": paths, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
        command = [
            sys.executable,
            "-P",
            "-m",
            "benchmarks.exporters.authors_exports",
            str(exports.folder),
            project,
        ]
        subprocess.run(command, env=environment, cwd=clone, check=False)


def run_script(script: str, *arguments: object) -> None:
    """Run a script of the clone."""
    sys.argv = [script, *map(str, arguments)]
    runpy.run_path(script, run_name="__main__")


def pictures(white: float = 1.0, side: int = SIDE) -> Tensor:
    return scenes.padded_frames(side) * white


def small_picture() -> Tensor:
    """Return a frame of the video that most are tried on: scores of some differ much from scene to scene."""
    return pictures()[list(scenes.VIDEOS).index("small.mp4") - len(scenes.VIDEOS)][None]


def raise_products(scores: list[nn.Module], classes: list[nn.Module], run: Callable[[], object]) -> None:
    """Raise the scores of networks that multiply an objectness with the score of the class."""
    count = len(pictures())
    random_weights.raise_scores(scores, run, wanted=20 * count)
    random_weights.raise_scores(classes, run, wanted=20 * count)
    with torch.no_grad():
        for layer in (*scores, *classes):
            layer.bias += 1.5


def raise_anchors(heads: list[nn.Module], run: Callable[[], object], columns: int) -> None:
    """Raise objectness and class scores of each cell's first anchor; the others find nothing."""
    count = len(pictures())
    objectness, classes = slice(4, 5), slice(5, columns)
    with torch.no_grad():
        for channels in (objectness, classes):
            random_weights.raise_scores(heads, run, wanted=20 * count, channels=channels)
        for head in heads:
            head.bias[4:columns] += 1.5
            head.bias[columns + 4 :: columns] = -10


def session_of(file: Path) -> Callable[..., list[np.ndarray]]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    return lambda *values: session.run(None, dict(zip(names, values, strict=True)))


def found(find: Find, video: Path) -> list[list[Box]]:
    return [
        [
            {"label": str(int(number)), "score": float(score), "box": [float(side) for side in box]}
            for box, score, number in find(frame)
            if score >= LEAST_SCORE
        ]
        for frame in frames_of(video)
    ]


def put(
    exports: Exports,
    name: str,
    made: Path,
    command: str,
    pipeline: str,
    find: Callable[[Path], Find],
    video: str = "small.mp4",
) -> None:
    exports.put(name, made, command=command, pipeline=pipeline)
    exports.expect(name, lambda file, path: found(find(file), path), (video,))


# ---- YOLOv5 and YOLOv9: their own detect.py reads ONNX files


def detected(exports: Exports, file: Path, video: Path, *, side: int) -> list[list[Box]]:
    """Return what the clone's ``detect.py`` writes: a file for each frame: class, centre, size, score."""
    folder = exports.scratch / "detected" / file.name
    shutil.rmtree(folder, ignore_errors=True)  # it would append
    command = [
        "detect.py",
        "--weights",
        file,
        "--source",
        video,
        "--imgsz",
        side,
        "--conf-thres",
        LEAST_SCORE,
    ]
    command += ["--save-txt", "--save-conf", "--nosave", "--device", "cpu"]
    command += ["--project", folder.parent, "--name", folder.name, "--exist-ok"]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    frames = []
    for number, frame in enumerate(frames_of(video), 1):
        height, width, _ = frame.shape
        written = folder / "labels" / f"{video.stem}_{number}.txt"
        lines = written.read_text().splitlines() if written.exists() else []
        boxes = []
        for line in lines:
            class_id, x, y, w, h, score = map(float, line.split())
            corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            boxes.append({"label": str(int(class_id)), "score": score, "box": corners})
        frames.append(boxes)
    return frames


def yolov5(exports: Exports) -> None:
    network = importlib.import_module("models.yolo").DetectionModel("models/yolov5n.yaml").eval()
    random_weights.take_statistics(network, lambda: network(pictures()))
    raise_anchors(list(network.model[-1].m), lambda: network(pictures()), 85)
    for name, options in {"yolov5n": [], "yolov5n-dynamic": ["--dynamic"]}.items():
        _export_as_yolov5(exports, f"authors-{name}.onnx", network, ["--include", "onnx", *options])
    _export_as_yolov5(exports, "authors-yolov5n.torchscript", network, ["--include", "torchscript"])


def yolov9(exports: Exports) -> None:
    network = importlib.import_module("models.yolo").DetectionModel("models/detect/gelan-t.yaml").eval()
    random_weights.take_statistics(network, lambda: network(pictures()))
    heads = [branch[-1] for branch in network.model[-1].cv3]
    seen = small_picture()
    random_weights.raise_scores(heads, lambda: network(seen), wanted=20)
    _export_as_yolov5(exports, "authors-gelan-t.onnx", network, ["--include", "onnx"])


def _export_as_yolov5(exports: Exports, name: str, network: nn.Module, options: list[str]) -> None:
    if exports.has(name):
        return
    with exports.attempt(name):
        weights = exports.scratch / f"{Path(name).stem}.pt"
        torch.save({"model": network, "ema": None}, weights)
        arguments = ["--imgsz", SIDE, SIDE, *options]
        run_script("export.py", "--weights", weights, *arguments)
        made = weights.with_suffix(Path(name).suffix)
        exports.put(
            name, made, command=f"export.py --weights {weights.name} {arguments}", pipeline=YOLO_PIPELINE
        )
        # A file for any size does not say which one it was made for: then it is 640 × 640.
        video, side = ("wide.mp4", 640) if "--dynamic" in options else ("small.mp4", SIDE)
        exports.expect(name, partial(detected, exports, side=side), (video,))


# ---- YOLOv6 and YOLOv7: frames are prepared, and boxes chosen, by their own functions


def yolov7(exports: Exports) -> None:
    network = importlib.import_module("models.yolo").Model("cfg/deploy/yolov7-tiny.yaml").eval()
    random_weights.take_statistics(network, lambda: network(pictures()))
    raise_anchors(list(network.model[-1].m), lambda: network(pictures()), 85)
    variants = {
        "grid": ["--grid"],
        "grid-dynamic": ["--grid", "--dynamic-batch"],
        "end2end": ["--grid", "--end2end", "--max-wh", SIDE],
    }
    for variant, options in variants.items():
        name = f"authors-yolov7-tiny-{variant}.onnx"
        if not exports.has(name):
            with exports.attempt(name):
                weights = exports.scratch / f"{Path(name).stem}.pt"
                torch.save({"model": network, "ema": None}, weights)
                run_script("export.py", "--weights", weights, "--img-size", SIDE, SIDE, *options)
                find = found_by_rows if variant == "end2end" else found_by_yolov7
                put(exports, name, weights.with_suffix(".onnx"), f"export.py {options}", YOLO_PIPELINE, find)


def yolo_input(letterbox: Callable[..., Any], frame: np.ndarray) -> np.ndarray:
    """Return (1, 3, side, side) float32 RGB in [0, 1]."""
    square = letterbox(frame, (SIDE, SIDE), auto=False)[0]
    return np.ascontiguousarray(square[:, :, ::-1].transpose(2, 0, 1)[None], np.float32) / 255


def found_by_yolov7(file: Path) -> Find:
    general, letterbox = (
        importlib.import_module("utils.general"),
        importlib.import_module("utils.datasets").letterbox,
    )
    run = session_of(file)

    def find(frame: np.ndarray) -> Found:
        rows = torch.from_numpy(run(yolo_input(letterbox, frame))[0])
        best = general.non_max_suppression(rows, LEAST_SCORE, 0.45)[0]
        general.scale_coords((SIDE, SIDE), best[:, :4], frame.shape)
        return ((row[:4], row[4], row[5]) for row in best)

    return find


def found_by_rows(file: Path) -> Find:
    letterbox, run = importlib.import_module("utils.datasets").letterbox, session_of(file)

    def find(frame: np.ndarray) -> Found:
        _, (scale, _), corner = letterbox(frame, (SIDE, SIDE), auto=False)
        rows = run(yolo_input(letterbox, frame))[0]
        return (((row[1:5] - np.tile(corner, 2)) / scale, row[6], row[5]) for row in rows)

    return find


def yolov6(exports: Exports) -> None:
    config = importlib.import_module("yolov6.utils.config").Config.fromfile("configs/yolov6n.py")
    config.training_mode = "repvgg"  # as its training sets it
    network = importlib.import_module("yolov6.models.yolo").build_model(config, 80, "cpu").eval()
    random_weights.take_statistics(network, lambda: network(pictures()))
    for layer in network.detect.cls_preds:
        layer.weight.data.normal_()  # its authors begin with zeros
    seen = small_picture()
    random_weights.raise_scores(list(network.detect.cls_preds), lambda: network(seen), wanted=20)
    for layer in network.detect.reg_preds:  # distances to the sides: random ones may be negative
        layer.weight.data *= 0.2
        layer.bias.data.fill_(3.0)
    for variant, options in {"": [], "-end2end": ["--end2end", "--ort", "--conf-thres", LEAST_SCORE]}.items():
        name = f"authors-yolov6n{variant}.onnx"
        if not exports.has(name):
            with exports.attempt(name):
                weights = exports.scratch / f"{Path(name).stem}.pt"
                torch.save({"model": network, "ema": None}, weights)
                arguments = ["--img-size", SIDE, SIDE, "--device", "cpu", *options]
                run_script("deploy/ONNX/export_onnx.py", "--weights", weights, *arguments)
                find = found_by_counted if variant else found_by_yolov6
                put(
                    exports,
                    name,
                    weights.with_suffix(".onnx"),
                    f"export_onnx.py {arguments}",
                    YOLO_PIPELINE,
                    find,
                )


def found_by_yolov6(file: Path) -> Find:
    suppressed = importlib.import_module("yolov6.utils.nms").non_max_suppression
    letterbox = importlib.import_module("yolov6.data.data_augment").letterbox
    rescale = importlib.import_module("yolov6.core.inferer").Inferer.rescale
    run = session_of(file)

    def find(frame: np.ndarray) -> Found:
        rows = torch.from_numpy(run(yolo_input(letterbox, frame))[0])
        best = suppressed(rows, LEAST_SCORE, 0.45)[0]
        rescale((SIDE, SIDE), best[:, :4], frame.shape)
        return ((row[:4], row[4], row[5]) for row in best)

    return find


def found_by_counted(file: Path) -> Find:
    letterbox, run = importlib.import_module("yolov6.data.data_augment").letterbox, session_of(file)

    def find(frame: np.ndarray) -> Found:
        _, scale, corner = letterbox(frame, (SIDE, SIDE), auto=False)
        counts, boxes, scores, numbers = run(yolo_input(letterbox, frame))
        boxes = (boxes[0] - np.tile(corner, 2)) / scale
        return list(zip(boxes, scores[0], numbers[0], strict=True))[: int(counts.item())]

    return find


# ---- YOLOX


def yolox(exports: Exports) -> None:
    experiment = importlib.import_module("yolox.exp").get_exp(exp_name="yolox-nano")
    network = experiment.get_model().eval()

    def run() -> object:
        return network(pictures(255.0))

    random_weights.take_statistics(network, run)
    raise_products(list(network.head.obj_preds), list(network.head.cls_preds), run)
    for layer in network.head.reg_preds:  # logarithms of sizes
        layer.weight.data *= 0.2
    variants = {"": [], "-dynamic": ["--dynamic"], "-decoded": ["--decode_in_inference"]}
    for variant, options in variants.items():
        name = f"authors-yolox-nano{variant}.onnx"
        if not exports.has(name):
            with exports.attempt(name):
                weights, made = exports.scratch / "yolox.pth", exports.scratch / name
                torch.save({"model": network.state_dict()}, weights)
                arguments = ["-n", "yolox-nano", "-c", weights, "--output-name", made, *options]
                arguments += ["test_size", f"({SIDE},{SIDE})"]
                run_script("tools/export_onnx.py", *arguments)
                find = partial(found_by_yolox, decoded="decoded" in variant)
                put(exports, name, made, f"tools/export_onnx.py {arguments}", YOLOX_PIPELINE, find)


def found_by_yolox(file: Path, *, decoded: bool) -> Find:
    """Return what its demo of onnxruntime does."""
    prepared = importlib.import_module("yolox.data.data_augment").preproc
    utils, run = importlib.import_module("yolox.utils"), session_of(file)

    def find(frame: np.ndarray) -> Found:
        picture, scale = prepared(frame, (SIDE, SIDE))
        rows = run(picture[None])[0]
        rows = rows[0] if decoded else utils.demo_postprocess(rows, (SIDE, SIDE))[0]
        middle, half = rows[:, :2], rows[:, 2:4] / 2
        corners = np.concatenate([middle - half, middle + half], 1) / scale
        best = utils.multiclass_nms(corners, rows[:, 4:5] * rows[:, 5:], 0.45, LEAST_SCORE)
        return ((row[:4], row[4], row[5]) for row in ([] if best is None else best))

    return find


# ---- RT-DETR and D-FINE


def rt_detr(exports: Exports) -> None:
    _queries(exports, "rtdetrv2-r18", "configs/rtdetrv2/rtdetrv2_r18vd_120e_coco.yml", "tools/export_onnx.py")


def d_fine(exports: Exports) -> None:
    _queries(exports, "dfine-n", "configs/dfine/dfine_hgnetv2_n_coco.yml", "tools/deployment/export_onnx.py")


def _queries(exports: Exports, name: str, configuration: str, script: str) -> None:
    file = f"authors-{name}.onnx"
    if exports.has(file):
        return
    with exports.attempt(file):
        settings = importlib.import_module("src.core").YAMLConfig(configuration)
        for backbone in ("HGNetv2", "PResNet"):
            settings.yaml_cfg.get(backbone, {})["pretrained"] = False  # nothing is downloaded
        network = settings.model.eval()
        seen = pictures(side=640)
        random_weights.take_statistics(network, lambda: network(seen))
        heads = {id(head): head for head in (network.decoder.enc_score_head, *network.decoder.dec_score_head)}
        random_weights.raise_scores(heads.values(), lambda: network(seen), wanted=15 * len(seen))
        weights = exports.scratch / f"{name}.pth"
        torch.save({"model": network.state_dict()}, weights)
        made = weights.with_suffix(".onnx")
        options = ["-c", configuration, "-r", weights]
        if name.startswith("rtdetr"):
            options += ["-o", made, "-u", "PResNet.pretrained=False"]
        run_script(script, *options)
        put(exports, file, made, f"{script} {options}", QUERY_PIPELINE, found_by_queries, "tall.mp4")


def found_by_queries(file: Path) -> Find:
    """Return what their scripts for inference do."""
    transforms, run = importlib.import_module("torchvision.transforms"), session_of(file)
    prepared = transforms.Compose([transforms.Resize((640, 640)), transforms.ToTensor()])
    from_array = importlib.import_module("PIL.Image").fromarray

    def find(frame: np.ndarray) -> Found:
        height, width, _ = frame.shape
        picture = prepared(from_array(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)))[None].numpy()
        labels, boxes, scores = run(picture, np.array([[width, height]]))
        return zip(boxes[0], scores[0], labels[0], strict=True)

    return find


PROJECTS = {
    "yolov5": yolov5,
    "YOLOv6": yolov6,
    "yolov7": yolov7,
    "yolov9": yolov9,
    "YOLOX": yolox,
    "RT-DETR/rtdetrv2_pytorch": rt_detr,
    "D-FINE": d_fine,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("project", choices=PROJECTS)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    # The scripts were written for older versions of torch, which had only this way to export.
    torch.onnx.export = partial(torch.onnx.export, dynamo=False)
    torch.onnx._export = torch.onnx.export  # noqa: SLF001  # YOLOX calls it, and it is no more
    PROJECTS[chosen.project](Exports(chosen.folder))


if __name__ == "__main__":
    main()
