"""Fitted probes as files: safetensors for the numbers, JSON for what they mean and what they were trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from midsight.buckets.path import Place, to_place
from midsight.errors import DamagedRunError, MidsightError, Option
from midsight.store.files import open_seal, read_json, sealed_json
from midsight.store.hub import download_finding, is_hub_address
from midsight.store.spec import RunSpec
from midsight.store.typed_json import from_json, to_json

PROBE_FORMAT = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "probe.json"
ROWS = 4096
"""Vectors that are scored at a time."""

RiskOf = Literal["false", "true"]
"""The value of the label whose probability is the risk."""


@dataclass(frozen=True, kw_only=True)
class ProbeOrigin:
    """What made the vectors that a probe was trained on. Vectors that anything else made mean something else."""

    model: str
    """Name of the model, as the run has it."""
    fingerprint: str | None
    """Hash of its weights and of the files that shape the numbers; None for an imported run."""
    lora: str | None
    """The LoRA that was applied; None if unknown, as below."""
    dtype: str | None
    """Type of the weights in memory."""
    pixels: str | None
    """How images were resized."""
    prompt: str | None
    """The user's text, with {question} in it."""
    system: str | None
    """Text of the system turn; None is the chat template's own choice."""
    template_sha256: str | None
    """SHA-256 of the chat template's text; None for a raw prompt."""

    @classmethod
    def of(cls, spec: RunSpec) -> Self:
        """Where the vectors of a run come from."""
        return cls(
            model=spec.model.name,
            fingerprint=spec.model.fingerprint,
            lora=spec.model.lora,
            dtype=spec.model.dtype,
            pixels=spec.request.pixels,
            prompt=spec.prompt.user,
            system=spec.prompt.system,
            template_sha256=spec.prompt.template_sha256,
        )


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe of one vector column.

    The logit of a vector x is `slope * ((x - shift) * weight).sum() + intercept`.
    """

    column: str
    """The vector column that it reads."""
    label: str
    """What it predicts."""
    shift: np.ndarray = field(repr=False)
    """Mean of the training vectors, float64 [width]."""
    weight: np.ndarray = field(repr=False)
    """float64 [width]."""
    slope: float
    """Calibration: logit per unit of score."""
    intercept: float
    """Calibration: logit at score 0."""
    facts: Mapping[str, Any] = field(repr=False)
    """Where it comes from: run, model, judge, penalty, versions."""
    origin: ProbeOrigin | None = field(default=None, repr=False)
    """What made its training vectors; None for a probe of an earlier midsight, which did not store that."""
    source: str = ""
    """The folder that it was read from."""

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Calibrated probabilities that the label is true.

        Each row's bits depend on that row alone, not on how many there are.

        Args:
            vectors: The column's vectors, float [n, width].

        Returns:
            float64 [n].

        Raises:
            MidsightError: The vectors have another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.weight):
            raise MidsightError(
                f"The probe of {self.column} reads vectors [n, {len(self.weight)}], and these are "
                f"{[*vectors.shape]}; give those of {self.column}."
            )
        logits = np.empty(len(vectors))
        for start in range(0, len(vectors), ROWS):
            rows = np.ascontiguousarray(vectors[start : start + ROWS], np.float64)
            with np.errstate(invalid="ignore"):  # vectors that are not finite have no score
                logits[start : start + ROWS] = ((rows - self.shift) * self.weight).sum(axis=1)
        from scipy.special import expit  # slow to import, and needed only where a probe is

        return expit(self.slope * logits + self.intercept)

    def risk(self, vectors: np.ndarray, of: RiskOf = "false") -> np.ndarray:
        """Probabilities of what is to be warned of.

        Args:
            vectors: The column's vectors, float [n, width].
            of: `false` if a label that is false is the risk, as for `correct`; `true` for a label like `hallucinated`.

        Returns:
            float64 [n], from 0 to 1.

        Raises:
            MidsightError: The vectors have another width.
        """
        return self.score(vectors) if of == "true" else 1 - self.score(vectors)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides its scores."""
        numbers = np.array([self.slope, self.intercept], np.float64)
        names = f"{self.column}\0{self.label}\0".encode()
        return hashlib.sha256(names + numbers.tobytes() + self.shift.tobytes() + self.weight.tobytes()).hexdigest()

    @classmethod
    def load(cls, path: str | Place, column: str | None = None) -> Probe:
        """Reads a probe.

        Args:
            path: The folder `findings/NAME/probe` of a run, or the finding's; also in a bucket or on the hub.
            column: The column; by default the one that inner folds chose most often.

        Returns:
            The probe.

        Raises:
            MidsightError: There is no such probe, or a file is damaged.
        """
        folder = download_finding(path) if is_hub_address(path) else to_place(path)
        folder = folder / "probe" if (folder / "probe").is_dir() else folder
        try:
            described = _read_description(folder)
            data = (folder / WEIGHTS).read_bytes()
            digest = described.pop("weights_sha256", None)
            if digest is not None and digest != hashlib.sha256(data).hexdigest():
                raise ValueError(f"{WEIGHTS} is not what was written")
            tensors = load(data)
            column = column or str(described["default"])
            own = described["columns"].get(column)
            if own is None:
                raise MidsightError(
                    f"{folder} has no probe of {column!r}; it has {', '.join(described['columns'])}: choose one of "
                    "these."
                )
            origin = described.pop("origin", None)
            return cls(
                column=column,
                label=str(described["label"]),
                shift=_numbers(tensors[f"{column}.shift"]),
                weight=_numbers(tensors[f"{column}.weight"], len(tensors[f"{column}.shift"])),
                slope=float(_numbers(np.array([own["slope"]]))[0]),
                intercept=float(_numbers(np.array([own["intercept"]]))[0]),
                facts={key: value for key, value in described.items() if key != "columns"} | own,
                origin=None if origin is None else from_json(ProbeOrigin, origin, "origin"),
                source=str(path),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise MidsightError(
                f"{folder} does not hold a probe ({error}); give the folder `findings/NAME/probe` of a run."
            ) from error


def _read_description(folder: Place) -> dict[str, Any]:
    """What probe.json says; raises ValueError if it is damaged, OSError if there is none."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"there is no {DESCRIPTION}")
    try:
        described = read_json(path)
        return open_seal(path, described) if "seal" in described else described
    except DamagedRunError:
        raise ValueError(f"{DESCRIPTION} is not what was written") from None


def _numbers(values: np.ndarray, width: int | None = None) -> np.ndarray:
    """The values as float64 [width]; raises ValueError if they are not finite numbers."""
    numbers = np.ascontiguousarray(values, np.float64)
    if numbers.ndim != 1 or (width is not None and len(numbers) != width) or not np.isfinite(numbers).all():
        raise ValueError("its weights are not finite numbers of one width")
    return numbers


def probe_files(
    probes: Mapping[str, Probe], default: str, origin: ProbeOrigin, facts: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files of a folder of probes by name, as `Probe.load` reads them."""
    tensors: dict[str, np.ndarray] = {}
    for name, probe in probes.items():
        tensors |= {f"{name}.shift": probe.shift, f"{name}.weight": np.ascontiguousarray(probe.weight)}
    data = save(tensors)
    load(data)  # what cannot be read back is not written
    described = {
        "format": PROBE_FORMAT,
        "default": default,
        **facts,
        "origin": to_json(origin),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "columns": {
            name: {"slope": probe.slope, "intercept": probe.intercept, **probe.facts} for name, probe in probes.items()
        },
    }
    return {WEIGHTS: data, DESCRIPTION: sealed_json(described, indent=2)}


OPTION_OF: Mapping[str, str] = {
    "fingerprint": "model",
    "lora": "lora",
    "dtype": "dtype",
    "pixels": "pixels",
    "prompt": "prompt",
    "system": "system",
    "template_sha256": "prompt_template",
}
"""The argument of the call that sets each fact of an origin."""


def known_origin(probe: Probe) -> ProbeOrigin:
    """What made the vectors that a probe was trained on; raises MidsightError if nobody knows."""
    name = named(probe)
    if probe.origin is None:
        raise MidsightError(
            f"The probe {name} does not say which model and prompt it was trained on, because an earlier midsight "
            "saved it; make its finding again with `midsight probe`."
        )
    if probe.origin.fingerprint is None:
        raise MidsightError(
            f"The probe {name} was trained on an imported run of {probe.origin.model}, and nobody knows how its "
            "vectors were made; extract the samples with midsight, and probe that run."
        )
    return probe.origin


def require_own(probe: Probe, call: ProbeOrigin) -> None:
    """Raises MidsightError, naming the first difference, if a call makes other vectors than the probe's."""
    own = known_origin(probe)
    for fact in OPTION_OF:
        if getattr(own, fact) != getattr(call, fact):
            raise _other(named(probe), own, call, fact)


def named(probe: Probe) -> str:
    """The probe in a sentence: its folder, or its column."""
    return probe.source or f"of {probe.column}"


def _other(name: str, own: ProbeOrigin, call: ProbeOrigin, fact: str) -> MidsightError:
    trained = f"The probe {name} was trained on vectors of "
    if fact == "fingerprint":
        same = own.model == call.model
        return MidsightError(
            f"{trained}{own.model} (fingerprint {str(own.fingerprint)[:16]}), and this call has ",
            Option("model", call.model),
            f" (fingerprint {str(call.fingerprint)[:16]})" + (", whose content has changed" if same else ""),
            "; a probe reads no other model's states.",
        )
    if fact == "template_sha256":
        return MidsightError(
            f"{trained}prompts of another chat template (SHA-256 {str(own.template_sha256)[:16]}) than this call's "
            f"({str(call.template_sha256)[:16]}); choose it with ", Option("prompt_template"), ".",
        )  # fmt: skip
    option, before, now = OPTION_OF[fact], getattr(own, fact), getattr(call, fact)
    return MidsightError(
        f"The probe {name} was trained {'without' if before is None else 'with'} ", Option(option, before),
        f", and this call has {'no ' if now is None else ''}", Option(option, now), "; use the probe's.",
    )  # fmt: skip
