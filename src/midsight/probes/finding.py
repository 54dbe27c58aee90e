"""A finding as plain data. Its fields are those of result.json, which docs/findings.md specifies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from midsight.version import __version__

FINDING_FORMAT = 1

Pair = tuple[float, float]
"""Lower and upper end of a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """How well one probe or baseline tells the label's true samples from the false ones."""

    column: str
    """The vector column, or the name of the baseline."""
    layer: int | None
    """Decoder layer; None for other vectors and baselines."""
    position: str | None
    """Position in the prompt; None for other vectors and baselines."""
    method: str
    """`ridge`, `logistic`, `mlp`; `direct` for a score as it is."""
    when: str
    """When it is known: `before the answer`, `after the answer`, or `without the model`."""
    image_only: bool
    """Whether the vectors are equal for all questions on an image."""
    auroc: float
    """Probability that a true sample scores higher than a false one."""
    auroc_interval: Pair
    """Its 95 % interval."""
    p: float | None
    """Share of permutations that reach this AUROC; None where labels were not permuted."""
    p_familywise: float | None
    """The same for the best column of each permutation; None for baselines."""
    chance: Pair | None
    """AUROC that 95 % of the permutations stay within."""
    auprc: float
    """Average precision for true labels; by chance the share of true labels."""
    auprc_of_false: float
    """Average precision for false labels, by falling score."""
    accuracy: float
    """Accuracy if as many samples are called true as there are."""
    brier: float | None
    """Mean squared error of calibrated probabilities."""
    calibration_error: float | None
    """Mean distance of calibrated probabilities from shares, over ten bins."""
    within_strata: Mapping[str, float]
    """AUROC over pairs from the same stratum, by stratum column."""
    minus_confidence: float | None
    """AUROC minus that of the model's confidence; None without answers."""
    minus_confidence_interval: Pair | None
    """Its 95 % interval."""
    gain: float | None
    """AUROC of probe and confidence together minus confidence alone."""
    gain_interval: Pair | None
    """Its 95 % interval."""
    penalty: float | None
    """The ridge's penalty per sample."""


@dataclass(frozen=True, kw_only=True)
class StratumResult:
    """One stratum of the samples."""

    stratum: str
    """The stratum column."""
    value: str
    """Its value."""
    n: int
    """Samples."""
    positives: int
    """True labels."""
    auroc: Mapping[str, float]
    """By column or baseline; empty if the stratum holds one class only."""
    auroc_interval: Mapping[str, Pair]
    """95 % interval by column or baseline."""


@dataclass(frozen=True, kw_only=True)
class SkippedColumn:
    """A column that was not probed."""

    column: str
    """The column."""
    reason: str
    """Why."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Accuracy if only the surest samples are answered."""

    answered: float
    """Share of samples that are answered."""
    accuracy: float
    """Share of true labels among them."""


@dataclass(frozen=True, kw_only=True)
class HalpResult:
    """What the recipe of the HALP paper gives for one column; its leaks are part of it."""

    column: str
    """The column."""
    layer: int | None
    """As in ScoreResult."""
    position: str | None
    """As in ScoreResult."""
    auroc: float
    """On the test rows of the paper's split."""
    train_auroc: float
    """On the rows that the network was trained on."""
    tested: int
    """Test rows."""
    tested_on_training_images: int
    """Test rows whose image the network was trained on."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the probes of one label say."""

    format: int = FINDING_FORMAT
    """Version of these fields."""
    name: str
    """Name of the finding."""
    run: str
    """The run folder."""
    run_id: str
    """The run's id."""
    model: str
    """Name of the model."""
    model_fingerprint: str | None
    """Hash of the model; None for an imported run."""
    tested_on: str
    """`cross-validation`, `held-out groups`, or the folder of the other run."""
    label: str
    """The label."""
    label_source: str
    """The judge, or the file of verdicts."""
    n: int
    """Samples with a label, those of the other run included."""
    tested: int
    """Samples that were tested."""
    positives: int
    """True labels among the tested."""
    base_rate: float
    """Share of true labels among the tested."""
    groups: int
    """Groups of samples that stay together."""
    group_by: tuple[str, ...]
    """Columns that make the groups."""
    strata: tuple[StratumResult, ...]
    """Results within strata."""
    folds: int
    """Number of folds."""
    seed: int
    """The seed that draws folds and permutations."""
    permutations: int
    """How often labels were permuted."""
    interval_widening: float
    """What the standard errors of trained scores were multiplied with."""
    columns: tuple[ScoreResult, ...]
    """Every probed column, in the run's order."""
    chosen: ScoreResult | None
    """The column that inner folds choose, a fresh choice in every outer fold; None for fewer than two columns."""
    chosen_columns: tuple[str, ...]
    """What was chosen in each outer fold."""
    baselines: tuple[ScoreResult, ...]
    """What is known without a probe."""
    halp: tuple[HalpResult, ...]
    """What the paper's recipe gives, if it was asked for. Not comparable with the others."""
    skipped: tuple[SkippedColumn, ...]
    """Columns that were not probed."""
    abstention: tuple[CurvePoint, ...]
    """Accuracy by share answered, surest first by the model's confidence; empty without answers."""
    warnings: tuple[str, ...]
    """What a reader of the finding must know."""
    versions: Mapping[str, str]
    """Version by package."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When it was made: UTC, ISO 8601."""
    midsight_version: str = __version__
    """The midsight that made it."""

    @property
    def best(self) -> ScoreResult | None:
        """The column with the highest AUROC; its own AUROC is optimistic, `chosen` is not."""
        return max(self.columns, key=lambda one: one.auroc, default=None)

    def baseline(self, name: str) -> ScoreResult | None:
        """The baseline of that name, None if there is none."""
        return next((one for one in self.baselines if one.column == name), None)
