from __future__ import annotations

import numpy as np
import pytest
import torch

from app.detection.model_formats.declaration import Declaration
from app.detection.network_output import Layout
from app.detection.resize import FILL, InputSize, ResizePolicy, ShortSide, fit_within

SIZES = [
    (1920, 1080),
    (1080, 1920),
    (768, 432),
    (641, 479),
    (101, 3000),
    (33, 17),
    (416, 416),
    (1, 1),
    (16384, 16),
]


@pytest.mark.parametrize("policy", ResizePolicy)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_box_comes_back_to_half_a_source_pixel(policy: ResizePolicy, width: int, height: int) -> None:
    """From the source to the frame as decoded, into the network's input, and back to the source."""
    size = InputSize(416, 320, policy)
    frame_width, frame_height = size.frame_size(width, height)
    box = np.array([0.1 * width, 0.2 * height, 0.7 * width, 0.95 * height])
    in_frame = box * ([frame_width / width, frame_height / height] * 2)
    placement = size.place(frame_width, frame_height)
    to_input = [placement.width / frame_width, placement.height / frame_height] * 2
    in_input = in_frame * to_input + [placement.left, placement.top] * 2
    assert (in_input[:2] >= 0).all()
    assert in_input[2] <= 416
    assert in_input[3] <= 320
    back = size.boxes_to_frame(in_input[None].astype(np.float32), frame_width, frame_height)[0]
    np.testing.assert_allclose(back * ([width / frame_width, height / frame_height] * 2), box, atol=0.5)


@pytest.mark.parametrize("policy", ResizePolicy)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_frame_of_the_wanted_size_is_placed_without_scaling(
    policy: ResizePolicy, width: int, height: int
) -> None:
    size = InputSize(416, 320, policy)
    wanted = size.frame_size(width, height)
    assert wanted[0] <= width
    assert wanted[1] <= height
    placement = size.place(*wanted)
    if width >= 416 and height >= 320:
        assert (placement.width, placement.height) == wanted


@pytest.mark.parametrize(
    ("policy", "left", "top"),
    [(ResizePolicy.LETTERBOX, 0, 0), (ResizePolicy.LETTERBOX_CENTRE, 0, 20)],
)
def test_a_letterbox_holds_the_frame_itself_and_grey(policy: ResizePolicy, left: int, top: int) -> None:
    frames = torch.randint(0, 256, (2, 60, 100, 3), dtype=torch.uint8)
    pictures = InputSize(100, 100, policy).fill(frames, "cpu")
    assert pictures.shape == (2, 3, 100, 100)
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    region = pictures[:, :, top : top + 60, left : left + 100]
    assert torch.equal(region, frames.permute(0, 3, 1, 2).float() / 255)
    assert torch.all(pictures[:, :, top + 60 :] == FILL)


def test_a_small_frame_is_scaled_up_to_fill_its_place() -> None:
    frames = torch.full((1, 10, 20, 3), 51, dtype=torch.uint8)
    pictures = InputSize(100, 100, ResizePolicy.LETTERBOX).fill(frames, "cpu")
    torch.testing.assert_close(pictures[:, :, :50], torch.full((1, 3, 50, 100), 0.2))
    assert torch.all(pictures[:, :, 50:] == FILL)


def test_boxes_in_the_grey_are_cut_off_at_the_frame() -> None:
    size = InputSize(100, 100, ResizePolicy.LETTERBOX)
    boxes = size.boxes_to_frame(np.array([[-5.0, 20, 120, 90]], np.float32), 200, 100)
    assert boxes.tolist() == [[0, 40, 200, 100]]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((1280, 720), (640, 360)), ((720, 1280), (360, 640)), ((640, 3), (640, 3)), ((10000, 3), (640, 1))],
)
def test_frames_are_fitted_and_never_enlarged(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert fit_within(*given, 640) == wanted


SHORT_SIDES = [
    ShortSide(800, 1333),
    ShortSide(800, 1333, multiple=16),
    ShortSide(128, 200),
    ShortSide(640, 640),
]


@pytest.mark.parametrize("fitting", SHORT_SIDES, ids=str)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_frame_that_was_scaled_to_its_short_side_is_not_scaled_again(
    fitting: ShortSide, width: int, height: int
) -> None:
    placement = fitting.place(width, height)
    assert fitting.place(placement.width, placement.height) == placement
    assert max(placement.width, placement.height) <= max(fitting.longest, fitting.multiple)
    assert placement.width % fitting.multiple == placement.height % fitting.multiple == 0
    assert (placement.width, placement.height) == (placement.input_width, placement.input_height)
    wanted = fitting.frame_size(width, height)
    assert fitting.frame_size(*wanted) == wanted


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1280, 720, (1333, 750)), (720, 1280, (750, 1333)), (640, 480, (1066, 800)), (800, 800, (800, 800))],
)
def test_the_shorter_side_has_its_length_unless_the_longer_gets_too_long(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    placement = ShortSide(800, 1333).place(width, height)
    assert (placement.width, placement.height) == expected


def test_a_sharp_stretch_takes_the_source_pixels_and_does_not_smooth() -> None:
    """Stripes of one pixel: only the two pixels next to each centre count."""
    declaration = Declaration(
        labels=("a",), input=(4, 4), layout=Layout.YOLO, resize=ResizePolicy.STRETCH_SHARP
    )
    fitting = declaration.fitting
    assert fitting.frame_size(16, 8) == (16, 8)
    columns = torch.tensor([0, 255, 0, 255] * 4, dtype=torch.uint8)
    frames = columns.expand(1, 8, 16)[..., None].expand(-1, -1, -1, 3)
    filled = fitting.fill(frames, "cpu")
    assert filled.shape == (1, 3, 4, 4)
    # A quarter of the width: centres lie between pixels 1 and 2, 5 and 6 …, whose mean is half of white.
    assert filled.unique().tolist() == [0.5]
    assert fitting.boxes_to_frame(np.array([1, 1, 2, 2], np.float32), 16, 8).tolist() == [4, 2, 8, 4]
