"""A risk for each sample, known before its first token: what a call asks for, and what extraction needs of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from midsight.errors import MidsightError, Option
from midsight.records import PROCESSOR_POOLED_PIXELS
from midsight.reports.abstention import Decoding
from midsight.store.probe import Probe, ProbeOrigin, RiskOf, named, require_own
from midsight.store.spec import RiskSpec
from midsight.taps.tap import Tap


@dataclass(frozen=True)
class Risk:
    """A function from the vectors of one column to risks, and what a high one means."""

    column: str
    """The vector column, which need not be stored."""
    of: Callable[[np.ndarray], np.ndarray]
    """From float32 [n, width] to float64 [n], from 0 to 1."""
    abstain_above: float | None = None
    """No answer is decoded for a higher risk; None decodes all."""
    decoding: Decoding = field(default_factory=Decoding, compare=False)
    """Counts what was decoded."""

    def abstains(self, risk: float) -> bool:
        """Whether a risk is too high for an answer; NaN is."""
        return self.abstain_above is not None and not risk <= self.abstain_above


@dataclass(frozen=True)
class RiskChoice:
    """What a call says about risks."""

    probe: Probe
    """The probe."""
    of: RiskOf
    """The value of the probe's label that is the risk."""
    abstain_above: float | None
    """The risk above which no answer is decoded."""

    def describe(self) -> RiskSpec:
        """What run.json says about it."""
        return RiskSpec(
            probe=self.probe.source or None,
            probe_sha256=self.probe.digest,
            column=self.probe.column,
            label=self.probe.label,
            of=self.of,
            abstain_above=None if self.abstain_above is None else float(self.abstain_above),
        )

    def notes(self, data_sha256: str) -> list[str]:
        """What a user should know about the risks of the data with a hash, one sentence each."""
        probe = self.probe
        notes = [
            f"The risk of a sample is the probability that the label {probe.label} is {self.of}, as the probe "
            f"{named(probe)} sees it in {probe.column}."
        ]
        if probe.facts.get("image_only"):
            notes.append("This column is the same for all questions on an image, and so is the risk.")
        if probe.facts.get("dataset_sha256") == data_sha256:
            notes.append("The probe was trained on these data, so that its risks look better here than on new samples.")
        return notes

    def resolve(self, call: ProbeOrigin, vectors: Mapping[str, int]) -> Risk:
        """The function from vectors to risks, which knows nothing of probes.

        Args:
            call: What will make the vectors.
            vectors: Width of every vector column of the call.

        Returns:
            The function.

        Raises:
            MidsightError: The probe was trained on vectors of another model, prompt, layer or kind; the sentence names
                it.
        """
        probe = self.probe
        require_own(probe, call)
        if probe.column not in vectors:
            raise _not_extracted(probe, vectors)
        if vectors[probe.column] != len(probe.weight):
            raise MidsightError(
                f"The probe {named(probe)} reads {probe.column} of width {len(probe.weight)}, and this call makes it "
                f"of width {vectors[probe.column]}; choose another probe."
            )
        return Risk(probe.column, lambda made: probe.risk(made, self.of), self.abstain_above)


def choose_risk(
    probe: Probe | str | Path | None, of: str, abstain_above: float | None, *, answers: bool
) -> RiskChoice | None:
    """What the options of a call say about risks; None without a probe.

    Raises MidsightError if there is no such probe, or if the options make no sense together.
    """
    if of not in get_args(RiskOf):
        raise MidsightError(Option("risk_of"), f" is {of!r}; give {' or '.join(get_args(RiskOf))}.")
    if probe is None:
        for name, given in (("abstain_above", abstain_above is not None), ("risk_of", of != "false")):
            if given:
                raise MidsightError(Option(name), " needs a ", Option("probe"), "; add it, or leave both out.")
        return None
    if not isinstance(probe, Probe | str | Path):
        raise MidsightError(Option("probe"), f" is a {type(probe).__name__}; give a probe, or its folder.")
    if abstain_above is not None:
        _validate_limit(abstain_above, answers=answers)
    loaded = probe if isinstance(probe, Probe) else Probe.load(probe)
    return RiskChoice(loaded, "true" if of == "true" else "false", abstain_above)


def _validate_limit(limit: float, *, answers: bool) -> None:
    """Raises MidsightError unless a risk can be above `limit`, or never is."""
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1:
        raise MidsightError(
            Option("abstain_above"), f" is {limit!r}, and a risk is a probability; give a number from 0 to 1."
        )
    if not answers:
        raise MidsightError(
            Option("abstain_above"), " leaves answers out, and with ", Option("answers", False),
            " there are none; leave one of the two out.",
        )  # fmt: skip


def _not_extracted(probe: Probe, vectors: Mapping[str, int]) -> MidsightError:
    tap = Tap.parse_or_none(probe.column)
    remedy: list[str | Option] = [Option("vision", "mean")]
    if tap is not None:
        also = [" and ", Option("residual", True)] if tap.stage == "residual" else []
        remedy = [Option("layers", tap.layer), " and ", Option("positions", tap.position), *also]
    elif probe.column == PROCESSOR_POOLED_PIXELS:
        remedy = [Option("processor_pooled_pixels", True)]
    return MidsightError(
        f"The probe {named(probe)} reads {probe.column}, and this call extracts {', '.join(vectors) or 'no vectors'}; "
        "extract it too, with ", *remedy, ".",
    )  # fmt: skip
