"""The models that a host may load: the built-in ones, and those of the folder that passed their trial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from app.detection.detector import Detector
from app.detection.measuring import MemoryMeter, ModelProfile, arrangement_of, measure
from app.detection.model_facts import UntriedModel, Verdict
from app.detection.model_files import find_models, read_model
from app.detection.model_pool import TriedModel
from app.detection.precision import Precision
from app.detection.registry import Tried, describe_detector, load_built_in, load_model
from app.detection.trial import cost_of
from app.host.verdicts import VerdictStore


def tried_by(verdict: Verdict, store: VerdictStore) -> Tried:
    """Return what a trial has found out. Raises UntriedModel if its converted file is not there any more."""
    if verdict.converted is None:
        return Tried(verdict.declaration)
    file = store.read_file(verdict.converted)
    if file is None:
        raise UntriedModel(verdict.name)
    return Tried(verdict.declaration, file)


@dataclass(frozen=True, slots=True)
class TriedModels:
    """Finds models for a ModelPool."""

    device: str
    folder: Path | None
    allowed_hashes: Path | None
    precision: Precision
    verdicts: VerdictStore
    runtime: str  # as in ModelFacts

    def __call__(self, name: str, verdict: Verdict | None) -> TriedModel:
        content = read_model(name, self.folder, self.allowed_hashes)
        if content is None:
            return self._built_in(name)
        if verdict is None or verdict.facts is None or verdict.content != content.fingerprint(0):
            raise UntriedModel(name)
        facts, profile = (
            verdict.facts.model_copy(update={"name": name}),
            cast("ModelProfile", verdict.profile),
        )

        def load() -> Detector:
            tried = tried_by(verdict, self.verdicts)
            tried = replace(tried, threads=profile["inner_threads"] or 1)
            detector = load_model(content, device=self.device, precision=self.precision, tried=tried)
            if detector.fingerprint != facts.sha256:  # code of an installed package has changed
                raise UntriedModel(name)
            return detector

        return TriedModel(facts, cost_of(profile), arrangement_of(profile), load)

    def _built_in(self, name: str) -> TriedModel:
        """Load a built-in detector, and measure it if it never was: seconds, and little memory."""
        meter = MemoryMeter(self.device)
        detector = load_built_in(name, self.device, find_models(self.folder))
        kept = self.verdicts.read(detector.fingerprint)
        if kept is None:
            profile = measure(detector, meter)
            facts = describe_detector(detector, profile, self.runtime)
            # Hosts that measure at the same time all use the first result: the batch size may change boxes.
            kept = self.verdicts.read(detector.fingerprint)
            kept = kept or Verdict(name=name, facts=facts, profile=dict(profile))
            self.verdicts.write(detector.fingerprint, kept)
        profile = cast("ModelProfile", kept.profile)
        facts = describe_detector(detector, profile, self.runtime)
        return TriedModel(facts, cost_of(profile), arrangement_of(profile), lambda: detector)
