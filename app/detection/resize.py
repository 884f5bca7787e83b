"""How a frame is brought to the size that a model wants."""

from __future__ import annotations


def fit_within(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Return the largest (width, height) of that shape with no side over `max_side`; never enlarged.

    Rounded to whole pixels, at least 1 × 1: a very long frame loses its shape rather than its width.
    """
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
