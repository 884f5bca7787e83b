"""What a network returns, in whatever form its format has: told in words, and taken apart by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

LONGEST_DESCRIPTION = 300


def describe_output(output: object) -> str:
    """Return `output` in words: the shape of a tensor, names and shapes of several."""
    told = _describe(output)
    return told if len(told) <= LONGEST_DESCRIPTION else f"{told[:LONGEST_DESCRIPTION]}…"


def _describe(output: object) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, Mapping):
        return f"{{{', '.join(f'{name}: {_describe(value)}' for name, value in output.items())}}}"
    if isinstance(output, list | tuple):
        return f"[{', '.join(map(_describe, output))}]"
    return type(output).__name__


def tensors_of(output: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in `output` with its name, empty where it has none; depth first."""
    if isinstance(output, Tensor):
        yield "", output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            for inner, tensor in tensors_of(value):
                yield inner or str(name), tensor
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_of(value)


def first_tensor(output: object) -> Tensor | None:
    """Return the output that matters where there is one: the first."""
    return next((tensor for _, tensor in tensors_of(output)), None)


def named_tensor(output: object, names: Sequence[str], place: int) -> Tensor | None:
    """Return the tensor that has one of `names`; of unnamed ones, the one at `place`."""
    found = list(tensors_of(output))
    for name, tensor in found:
        if name in names:
            return tensor
    unnamed = [tensor for name, tensor in found if not name]
    return unnamed[place] if len(unnamed) > place else None


def frame_dictionaries(output: object) -> list[Mapping[str, Tensor]] | None:
    """Return one dictionary of boxes, labels and scores a frame, as torchvision's detectors give them.

    Scripted ones give their losses before; exported ones may give the three tensors of a single frame.
    """
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], list):
        output = output[1]
    if isinstance(output, Mapping) or (isinstance(output, tuple) and len(output) == 3):
        return _one_frame(output)
    if isinstance(output, list | tuple) and output and all(map(_is_detection, output)):
        return list(output)
    return None


def _one_frame(output: object) -> list[Mapping[str, Tensor]] | None:
    names = ("boxes", "labels", "scores")
    found = {name: named_tensor(output, [name], place) for place, name in enumerate(names)}
    tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
    return [tensors] if len(tensors) == len(names) else None


def _is_detection(output: object) -> bool:
    return isinstance(output, Mapping) and all(
        isinstance(output.get(name), Tensor) for name in ("boxes", "labels", "scores")
    )
