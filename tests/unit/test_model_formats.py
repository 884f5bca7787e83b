"""Every layout in every format of one file, and the inputs that networks have: served, or refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import exported_networks as networks
import onnxruntime
import pytest
import torch
from exported_networks import BOX, METADATA, as_onnx, as_pt2, as_torchscript
from torch import Tensor

from app.detection.detector import Detector
from app.detection.model_formats.onnx import load_onnx
from app.detection.model_formats.torchscript import load_torchscript
from app.detection.registry import load_detector
from app.errors import ModelFault

DETR_OUTPUTS = ("logits", "pred_boxes")
DICTIONARY_OUTPUTS = ("boxes", "labels", "scores")

# (layout, suffix): the file's content
FILES: dict[tuple[str, str], Callable[[], bytes]] = {
    ("yolo", ".pt2"): lambda: as_pt2(networks.Yolo()),
    ("yolo", ".torchscript"): lambda: as_torchscript(networks.Yolo()),
    ("yolo", ".onnx"): lambda: as_onnx(networks.Yolo()),
    ("yolo-objectness", ".pt2"): lambda: as_pt2(networks.YoloObjectness()),
    ("yolo-objectness", ".torchscript"): lambda: as_torchscript(networks.YoloObjectness()),
    ("yolo-objectness", ".onnx"): lambda: as_onnx(networks.YoloObjectness()),
    ("end-to-end", ".pt2"): lambda: as_pt2(networks.EndToEnd()),
    ("end-to-end", ".torchscript"): lambda: as_torchscript(networks.EndToEnd()),
    ("end-to-end", ".onnx"): lambda: as_onnx(networks.EndToEnd()),
    ("detr", ".pt2"): lambda: as_pt2(networks.Detr()),
    ("detr", ".torchscript"): lambda: as_torchscript(networks.Detr()),
    ("detr", ".onnx"): lambda: as_onnx(networks.Detr(), DETR_OUTPUTS),
    ("detr-sigmoid", ".pt2"): lambda: as_pt2(networks.DetrSigmoid()),
    ("detr-sigmoid", ".torchscript"): lambda: as_torchscript(networks.DetrSigmoid()),
    ("detr-sigmoid", ".onnx"): lambda: as_onnx(networks.DetrSigmoid(), DETR_OUTPUTS),
    ("torchvision", ".pt2"): lambda: as_pt2(networks.Dictionaries(), batch=2),
    ("torchvision", ".torchscript"): lambda: as_torchscript(networks.Dictionaries()),
    ("torchvision", ".onnx"): lambda: as_onnx(networks.OneDictionary(), DICTIONARY_OUTPUTS, batch=1),
}
SUFFIXES = (".pt2", ".torchscript", ".onnx")


def load(folder: Path) -> Detector:
    return load_detector("model", device="cpu", models_folder=folder)


def assert_finds_the_box(detector: Detector, frames: int = 3, *, tolerance: float = 1e-3) -> None:
    """Frames of brightness 0.8 hold one bright box; in frames of half the size it has half the size."""
    count = min(frames, detector.batch_size)
    for scale in (1, 2):
        shape = (count, networks.HEIGHT // scale, networks.WIDTH // scale, 3)
        with torch.inference_mode():
            answers = detector.detect(torch.full(shape, 204, dtype=torch.uint8))
        assert len(answers) == count
        for found in answers:
            box = [side / scale for side in BOX]
            assert found.boxes_xyxy[0].tolist() == pytest.approx(box, abs=100 * tolerance)
            assert found.scores[0].item() == pytest.approx(0.8, abs=tolerance)
            assert found.class_ids[0].item() == 1


@pytest.mark.parametrize(("layout", "suffix"), FILES)
def test_every_layout_is_read_in_every_format(tmp_path: Path, layout: str, suffix: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(FILES[layout, suffix]())
    (tmp_path / "model.toml").write_text(f'layout = "{layout}"\n')
    detector = load(tmp_path)
    assert detector.class_names == ("dark", "bright")
    assert detector.frame_size(960, 640) == (96, 64)
    assert_finds_the_box(detector)


SHAPES = {
    "yolo": "(2, 6, 2)",
    "yolo-objectness": "(2, 2, 7)",
    "end-to-end": "(2, 2, 6)",
    "detr": "[(2, 2, 3), (2, 2, 4)]",
    "detr-sigmoid": "[(2, 2, 2), (2, 2, 4)]",
    "torchvision": "[{}, {}]".format(*["{boxes: (1, 4), labels: (1,), scores: (1,)}"] * 2),
}


@pytest.mark.parametrize("layout", SHAPES)
def test_a_wrong_layout_is_refused_with_what_was_seen_and_the_right_one(tmp_path: Path, layout: str) -> None:
    (tmp_path / "model.torchscript").write_bytes(FILES[layout, ".torchscript"]())
    (tmp_path / "model.toml").write_text(f'layout = "{layout}"\nlabels = ["a", "b", "c", "d"]\n')
    if layout not in ("end-to-end", "torchvision"):
        with pytest.raises(ModelFault) as caught:
            load(tmp_path)
        assert f"gives {SHAPES[layout]} for 2 frames" in caught.value.detail
        assert f"layout {layout!r} with 4 labels is" in caught.value.detail
    wrong = "yolo-objectness" if layout == "yolo" else "yolo"
    (tmp_path / "model.toml").write_text(f'layout = "{wrong}"\n')
    with pytest.raises(ModelFault) as caught:
        load(tmp_path)
    expected = {"yolo": "(n, 6, anchors)", "yolo-objectness": "(n, anchors, 7)"}[wrong]
    assert caught.value.detail == (
        f"Model 'model' gives {SHAPES[layout]} for 2 frames, but layout {wrong!r} with 2 labels is "
        f'{expected}. With layout = "{layout}" it gives sensible boxes: write that in framebox.toml.'
    )


def test_a_script_that_does_not_say_its_size_is_refused_with_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "model.torchscript").write_bytes(as_torchscript(networks.Yolo(), metadata=None))
    with pytest.raises(ModelFault) as caught:
        load(tmp_path)
    assert caught.value.detail == (
        "Model 'model' does not say for which size of pictures it is made. Write input = [width, height] in "
        "framebox.toml."
    )
    (tmp_path / "model.toml").write_text('labels = ["dark", "bright"]\ninput = [96, 64]\n')
    assert_finds_the_box(load(tmp_path))


def test_too_few_labels_are_noticed_where_the_shape_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "model.torchscript").write_bytes(as_torchscript(networks.Dictionaries()))
    (tmp_path / "model.toml").write_text('layout = "torchvision"\nlabels = ["only"]\n')
    with pytest.raises(ModelFault) as caught:
        load(tmp_path)
    assert caught.value.detail == (
        "Model 'model' gives class 1, but has 1 labels, which are counted from 0. "
        "Write all labels in framebox.toml."
    )


# ---- what goes in


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_filled_up(tmp_path: Path, suffix: str, batch: int) -> None:
    write = {".pt2": as_pt2, ".onnx": as_onnx}[suffix]
    (tmp_path / f"model{suffix}").write_bytes(write(networks.Yolo(), batch=batch))
    detector = load(tmp_path)
    assert detector.batch_size == batch
    for frames in range(1, detector.batch_size + 1):
        assert_finds_the_box(detector, frames)


class OneByOne(networks.Yolo):
    """A script that was traced with one picture, and takes no more."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return super().forward(pictures.reshape(1, 3, networks.HEIGHT, networks.WIDTH))


def traced(network: torch.nn.Module, *, batch: int, metadata: bool) -> bytes:
    file = io.BytesIO()
    extra = {"config.txt": '{"names": ["dark", "bright"], "imgsz": [64, 96], "batch": 1}'} if metadata else {}
    script = torch.jit.trace(network.eval(), networks.example(batch, torch.float32))
    torch.jit.save(script, file, _extra_files=extra)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_script_for_one_picture_says_so_in_its_metadata_or_is_tried(tmp_path: Path) -> None:
    (tmp_path / "model.torchscript").write_bytes(traced(OneByOne(), batch=1, metadata=True))
    detector = load(tmp_path)
    assert detector.batch_size == 1
    assert_finds_the_box(detector)
    (tmp_path / "model.torchscript").write_bytes(traced(OneByOne(), batch=1, metadata=False))
    declared = 'labels = ["dark", "bright"]\ninput = [96, 64]\n'
    (tmp_path / "model.toml").write_text(declared)
    detector = load(tmp_path)
    assert detector.batch_size == 1
    assert_finds_the_box(detector)
    (tmp_path / "model.toml").write_text(f"{declared}batch = 2\n")
    with pytest.raises(ModelFault, match="fails on a batch of 2: RuntimeError: "):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_network_may_take_half_precision(tmp_path: Path, suffix: str) -> None:
    write = {".pt2": as_pt2, ".onnx": as_onnx}[suffix]
    (tmp_path / f"model{suffix}").write_bytes(write(networks.Yolo(), dtype=torch.float16))
    detector = load(tmp_path)
    assert detector.precision == "float16"
    assert_finds_the_box(detector, tolerance=2e-3)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_network_may_take_bytes_and_normalise_them(tmp_path: Path, suffix: str) -> None:
    write = {".pt2": as_pt2, ".onnx": as_onnx}[suffix]
    (tmp_path / f"model{suffix}").write_bytes(write(networks.TakingBytes(), dtype=torch.uint8))
    assert_finds_the_box(load(tmp_path))
    (tmp_path / "model.toml").write_text("mean = [0.5, 0.5, 0.5]\n")
    with pytest.raises(ModelFault, match=r"takes pictures as bytes.*Leave white, mean and std out"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_network_may_take_its_channels_last(tmp_path: Path, suffix: str) -> None:
    write = {".pt2": as_pt2, ".onnx": as_onnx}[suffix]
    (tmp_path / f"model{suffix}").write_bytes(write(networks.Yolo(), channels_last=True))
    assert_finds_the_box(load(tmp_path))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_declared_input_that_is_not_the_networks_own_is_refused(tmp_path: Path, suffix: str) -> None:
    write = {".pt2": as_pt2, ".onnx": as_onnx}[suffix]
    swapped = METADATA | {"imgsz": [networks.WIDTH, networks.HEIGHT]}
    (tmp_path / f"model{suffix}").write_bytes(write(networks.Yolo(), metadata=swapped))
    assert_finds_the_box(load(tmp_path))  # its shapes go before its metadata
    (tmp_path / "model.toml").write_text("input = [64, 96]\n")
    with pytest.raises(ModelFault) as caught:
        load(tmp_path)
    assert caught.value.detail == (
        "Model 'model' takes pictures 96 wide and 64 high, but input = [64, 96] is declared. "
        "Write input = [96, 64] in framebox.toml."
    )


class Sees(networks.Yolo):
    """Its score is the mean of what it is given, turned back from mean, std and white by hand."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        blue_first = pictures * 0.5 + 100  # undoes std and mean
        weights = torch.tensor([1.0, 2.0, 3.0])[:, None, None]  # of blue, green, red
        return super().forward(blue_first * weights / 1.2 / 255)


def test_numbers_and_colours_are_handed_over_as_declared(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(as_pt2(Sees()))
    (tmp_path / "model.toml").write_text(
        'white = 255.0\nmean = [100, 100, 100]\nstd = [0.5, 0.5, 0.5]\nchannels = "bgr"\n'
    )
    frames = torch.zeros(1, networks.HEIGHT, networks.WIDTH, 3, dtype=torch.uint8)
    frames[..., 0] = 204  # red
    with torch.inference_mode():
        (found,) = load(tmp_path).detect(frames)
    assert found.scores[0].item() == pytest.approx(0.8 * 3 / 1.2 / 3, abs=1e-3)
    assert found.class_ids[0].item() == 1


@pytest.mark.parametrize(
    ("boxes", "coordinates", "expected"),
    [
        ("centre-size", "pixels", [28, 22, 68, 42]),
        ("corner-size", "pixels", [48, 32, 88, 52]),
        ("corners", "pixels", None),  # 48, 32, 40, 20: inverted
    ],
)
def test_boxes_are_read_as_declared(
    tmp_path: Path, boxes: str, coordinates: str, expected: list[float] | None
) -> None:
    (tmp_path / "model.torchscript").write_bytes(as_torchscript(networks.Yolo()))
    (tmp_path / "model.toml").write_text(f'boxes = "{boxes}"\ncoordinates = "{coordinates}"\n')
    if expected is None:
        with pytest.raises(ModelFault, match="most would be inverted"):
            load(tmp_path)
        return
    with torch.inference_mode():
        (found,) = load(tmp_path).detect(
            torch.full((1, networks.HEIGHT, networks.WIDTH, 3), 204, dtype=torch.uint8)
        )
    assert found.boxes_xyxy[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("network", [networks.Yolo, networks.EndToEnd, networks.MadeOnCpu])
def test_a_script_that_was_made_on_a_cpu_computes_on_another_device(
    network: type[torch.nn.Module], batch: int
) -> None:
    """Torch's device `meta` has shapes and no data, and refuses to mix with the CPU as CUDA does."""
    loaded = load_torchscript("model", as_torchscript(network()), "meta")
    found = loaded.run(torch.zeros((batch, 3, networks.HEIGHT, networks.WIDTH), device="meta"))
    assert isinstance(found, Tensor)
    assert found.device.type == "meta"


# ---- what is no TorchScript


def test_a_pickle_is_refused_unopened_with_what_to_do(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(ModelFault) as caught:
        load(tmp_path)
    assert caught.value.detail == (
        "Model 'model' is a pickle of torch.save, which is not opened: it holds no network, and may run any "
        "code. Export the network, for instance with: yolo export model=<file>.pt format=torchscript"
    )


def test_a_pt_file_of_torch_jit_is_served(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(as_torchscript(networks.Yolo()))
    assert_finds_the_box(load(tmp_path))


def test_a_program_of_torch_export_under_another_suffix_is_told_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(as_pt2(networks.Yolo()))
    with pytest.raises(ModelFault, match=r"is of torch\.export; give its file the suffix \.pt2"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x80\x02}q\x00."])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.torchscript").write_bytes(content)
    with pytest.raises(ModelFault, match="cannot be read as TorchScript"):
        load(tmp_path)


def test_onnx_without_a_runtime_for_the_device_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(as_onnx(networks.Yolo()))
    if torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this one can use CUDA")
    told = r"pip install -r requirements-onnx-gpu\.txt|cannot load what it needs of CUDA and cuDNN"
    with pytest.raises(ModelFault, match=told):
        load_detector("model", device="cuda:0", models_folder=tmp_path)


def test_onnx_on_a_gpu_computes_alike_in_each_session(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is for the CPU; requirements-onnx-gpu.txt has another")
    sessions = []

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            sessions.append(self)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    load_onnx("model", as_onnx(networks.Yolo()), cuda)
    used = sessions[0].get_provider_options()["CUDAExecutionProvider"]
    assert (used["cudnn_conv_algo_search"], used["use_tf32"]) == ("HEURISTIC", "0")
