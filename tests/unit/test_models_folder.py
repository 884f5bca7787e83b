"""Small networks, exported here, through the models folder: what is served, and what is refused and why."""

from __future__ import annotations

import errno
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn

from app.detection.detector import Detector
from app.detection.model_files import file_marks, find_models, is_of_the_machine, read_model
from app.detection.model_pool import NO_BUDGET
from app.detection.network import NetworkDetector
from app.detection.precision import Precision
from app.detection.registry import check_model, load_detector, load_model
from app.detection.trial import try_model
from app.errors import InvalidOption, ModelFault

METADATA: dict[str, object] = {"names": {"0": "dark", "1": "bright"}, "imgsz": [64, 96], "task": "detect"}


class TwoBoxes(nn.Module):
    """Puts out a YOLO layout of two anchors: the whole picture, bright or not, and nothing."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.convolution.weight, 1 / 3)
        self.spoil = spoil

    def forward(self, pictures: Tensor) -> Tensor:
        bright = self.convolution(pictures).mean(dim=(1, 2, 3))  # (n,)
        box = torch.tensor([48.0, 32.0, 40.0, 20.0]).expand(pictures.shape[0], 4)
        scores = torch.stack([1 - bright, bright], dim=1)
        first = torch.cat([box, scores], dim=1)
        output = torch.stack([first, torch.zeros_like(first)], dim=2)
        return output if self.spoil is None else self.spoil(output)


def exported(
    network: nn.Module, *, metadata: dict[str, object] | None = METADATA, batch: int | None = None
) -> bytes:
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(network, (torch.zeros(batch or 2, 3, 64, 96),), dynamic_shapes=dynamic)
    file = io.BytesIO()
    extra = {} if metadata is None else {"config.json": json.dumps(metadata)}
    torch.export.save(program, file, extra_files=extra)
    return file.getvalue()


@pytest.fixture(scope="module")
def sound() -> bytes:
    return exported(TwoBoxes().eval())


def load(folder: Path, name: str = "model") -> Detector:
    return load_detector(name, device="cpu", models_folder=folder)


def bright_frames(count: int, width: int = 96, height: int = 64) -> Tensor:
    return torch.full((count, height, width, 3), 204, dtype=torch.uint8)


def test_a_file_in_the_folder_is_a_model(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(sound)
    assert [*find_models(tmp_path)] == ["model"]
    detector = load(tmp_path)
    assert detector.name == "model"
    assert detector.class_names == ("dark", "bright")
    assert detector.frame_size(960, 640) == (96, 64)
    with torch.inference_mode():
        (found,) = detector.detect(bright_frames(1))
    assert found.boxes_xyxy.tolist() == [[28.0, 22.0, 68.0, 42.0]]
    assert found.class_ids.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.8])


def test_boxes_are_in_pixels_of_the_frame_as_given(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(sound)
    with torch.inference_mode():
        (found,) = load(tmp_path).detect(bright_frames(1, 48, 32))
    assert found.boxes_xyxy.tolist() == [[14.0, 11.0, 34.0, 21.0]]


def test_a_folder_with_a_declaration_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "network.pt2").write_bytes(exported(TwoBoxes().eval(), metadata=None))
    with pytest.raises(ModelFault, match=r"gives \(2, 6, 2\).*no known layout\. Write its layout in"):
        load(tmp_path)
    (folder / "framebox.toml").write_text('labels = ["a", "b"]\ninput = [96, 64]\nmin_score = 0.4\n')
    detector = load(tmp_path)
    assert detector.class_names == ("a", "b")
    assert detector.default_min_score == 0.4


def test_a_network_of_a_fixed_batch_takes_fewer_frames_too(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(exported(TwoBoxes().eval(), batch=3))
    detector = load(tmp_path)
    assert detector.batch_size == 3
    with torch.inference_mode():
        assert [len(found.scores) for found in detector.detect(bright_frames(2))] == [1, 1]


def test_the_fingerprint_is_of_the_file_and_of_its_declaration(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(sound)
    (tmp_path / "same.pt2").write_bytes(sound)
    (tmp_path / "other.pt2").write_bytes(exported(TwoBoxes().eval(), metadata=METADATA | {"stride": 32}))
    first = load(tmp_path).fingerprint
    assert load(tmp_path, "same").fingerprint == first
    assert load(tmp_path, "other").fingerprint != first
    (tmp_path / "model.toml").write_text("min_score = 0.3\n")
    assert load(tmp_path).fingerprint != first


def test_an_unknown_model_is_answered_with_the_list(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(sound)
    for name in ("nothing", "../model", "model.pt2", ""):
        with pytest.raises(InvalidOption) as caught:
            load(tmp_path, name)
        assert caught.value.extensions["allowed"] == ["hog-people", "model", "none"]


def test_what_lies_outside_the_folder_or_is_no_model_is_passed_over(tmp_path: Path) -> None:
    models, outside = tmp_path / "models", tmp_path / "outside.pt2"
    models.mkdir()
    outside.write_bytes(b"x")
    (models / "link.pt2").symlink_to(outside)
    (models / "notes.txt").write_text("x")
    (models / "-option.pt2").write_bytes(b"x")
    (models / ".hidden.pt2").write_bytes(b"x")
    (models / "empty").mkdir()
    two = models / "two"
    two.mkdir()
    (two / "a.pt2").write_bytes(b"x")
    (two / "b.onnx").write_bytes(b"x")
    assert find_models(models) == {}


def test_a_folder_that_cannot_be_read_hides_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lost+found, or one that is being removed."""
    (tmp_path / "lost").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"x")
    entries = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder.name == "lost":
            raise PermissionError(errno.EACCES, "Permission denied")
        return entries(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with capture_logs() as logs:
        for _ in range(2):
            assert [*find_models(tmp_path)] == ["model"]
    assert [(log["name"], log["reason"]) for log in logs] == [("lost", "Permission denied")]


def test_hidden_files_are_no_part_of_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / ".git").mkdir(parents=True)
    (folder / "network.onnx").write_bytes(b"x")
    before = file_marks(folder)
    (folder / ".git" / "index").write_bytes(b"x" * 100)
    (folder / ".lock").write_bytes(b"x" * 100)
    assert file_marks(folder) == before
    content = read_model("model", tmp_path, None, most_bytes=50)
    assert content is not None
    assert [*content.digests] == ["network.onnx"]


def test_a_file_of_any_kind_that_is_too_large_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "network.onnx").write_bytes(b"x")
    with (folder / "pictures.tar").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelFault, match="has a file of 1048576 MiB, but a host may take 1024 MiB"):
        read_model("model", tmp_path, None, most_bytes=1 << 30)


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_a_fault_of_the_machine_is_told_from_one_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, may_pass: bool
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(ModelFault) as caught:
        read_model("model", tmp_path, None)
    assert is_of_the_machine(caught.value) is may_pass


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"x")
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "other.onnx").write_bytes(b"x")
    assert [*find_models(tmp_path)] == ["model", "other"]
    with pytest.raises(ModelFault, match=r"2 models are called 'model': model\.onnx, model\.pt2"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "cause"),
    [
        (".pt2", "torch.export's: BadZipFile: File is not a zip file"),
        (".onnx", "ONNX: InvalidProtobuf: .*protobuf parsing failed"),
        (".torchscript", "TorchScript: BadZipFile: File is not a zip file"),
    ],
)
def test_a_file_that_is_no_network_is_refused_with_the_cause(tmp_path: Path, suffix: str, cause: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(b"not a network at all")
    with pytest.raises(ModelFault, match=f"cannot be read as {cause}"):
        load(tmp_path)


def test_a_declaration_that_is_no_toml_is_refused(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(sound)
    (tmp_path / "model.toml").write_text("labels = [")
    with pytest.raises(ModelFault, match="not valid TOML"):
        load(tmp_path)


def test_a_file_that_cannot_be_read_for_now_gets_no_verdict(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(sound)
    content = read_model("model", tmp_path, None)
    assert content is not None
    (tmp_path / "model.pt2").unlink()
    with pytest.raises(ModelFault, match="cannot be read: No such file") as found:
        try_model(content, device="cpu", precision=Precision.FLOAT32, budget=NO_BUDGET, runtime="a test")
    assert is_of_the_machine(found.value)


def not_finite(output: Tensor) -> Tensor:
    return output / torch.zeros_like(output)


def mirrored(output: Tensor) -> Tensor:
    return torch.cat([output[:, :2], -output[:, 2:4], output[:, 4:]], dim=1)


def random(output: Tensor) -> Tensor:
    return torch.cat([output[:, :4], output[:, 4:] * torch.rand_like(output[:, 4:])], dim=1)


def of_the_batch(output: Tensor) -> Tensor:
    return output * torch.ones_like(output).sum(dim=0) / 4


def flat(output: Tensor) -> Tensor:
    return output.mean(dim=2)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (not_finite, "not finite"),
        (mirrored, "neither corners nor centres and sizes"),
        (random, "other numbers for the same picture each time"),
        (of_the_batch, "other numbers in a batch than for a single picture"),
        (flat, r"gives \(2, 6\) for 2 frames, which is no known layout for 2 labels"),
    ],
)
def test_a_network_that_cannot_be_trusted_is_refused_at_load(
    tmp_path: Path, spoil: Callable[[Tensor], Tensor], reason: str
) -> None:
    (tmp_path / "model.pt2").write_bytes(exported(TwoBoxes(spoil).eval()))
    with pytest.raises(ModelFault, match=reason):
        load(tmp_path)


def test_a_network_that_finds_memory_for_one_picture_only_takes_single_ones(
    tmp_path: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = NetworkDetector.output
    counts = []

    def tight(detector: NetworkDetector, frames: Tensor) -> object:
        counts.append(len(frames))
        if len(frames) > 1 and detector.call_size > 2:  # in its check
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes.")
        return output(detector, frames)

    monkeypatch.setattr(NetworkDetector, "output", tight)
    (tmp_path / "model.pt2").write_bytes(sound)
    detector = load(tmp_path)
    assert max(counts) == 2
    assert detector.batch_size == 1
    content = read_model("model", tmp_path, None)
    assert content is not None
    detector = load_model(content, device="cpu", precision=Precision.FLOAT32)
    with pytest.raises(RuntimeError, match="can't allocate memory"):  # there is more to be had
        check_model(detector, may_economise=False)


def test_a_wrong_number_of_labels_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    three = {"names": ["a", "b", "c"], "imgsz": [64, 96]}
    (tmp_path / "model.pt2").write_bytes(exported(TwoBoxes().eval(), metadata=three))
    with pytest.raises(ModelFault, match=r"gives \(2, 6, 2\).*no known layout for 3 labels"):
        load(tmp_path)


def test_a_network_of_something_else_than_pictures_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(4, 2), (torch.zeros(1, 4),))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(ModelFault, match=r"takes \(1, 4\) torch\.float32; what is served takes \(n, 3"):
        load(tmp_path)
