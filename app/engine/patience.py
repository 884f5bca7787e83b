"""How long jobs are passed over because models in use hold their model's room."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

PATIENCE_SECONDS = 60.0  # others may overtake for so long: they need no model to be loaded


class Patience:
    """Tells whose turn it is when a model's jobs were passed over for too long: theirs alone.

    Nothing else begins then, so that the models in use come to be unused.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}  # longest waiting first

    @property
    def models(self) -> frozenset[str]:
        """The models whose jobs were passed over, and of which none has begun since."""
        return frozenset(self._since)

    def note(self, passed_over: Collection[str]) -> None:
        """Say for which models jobs wait that are, or were when last told, passed over."""
        now = self._clock()
        kept = {model: since for model, since in self._since.items() if model in passed_over}
        self._since = kept | {model: now for model in sorted(passed_over) if model not in kept}

    def begun(self, model: str) -> None:
        """Say that a job of `model` has begun."""
        self._since.pop(model, None)

    def overdue(self) -> str | None:
        """The model that has waited longest, if it waited for too long."""
        model = next(iter(self._since), None)
        if model is None or self._clock() - self._since[model] < PATIENCE_SECONDS:
            return None
        return model
