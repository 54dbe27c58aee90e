"""From a model folder to a family file, or to what is open: nothing is written without a proof."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from midsight.check.check import Check
from midsight.check.family_checks import SECTIONS, run_section, run_sections
from midsight.check.proof import NEW_TOKENS, Proof, as_loaded, render_example, shipped_samples
from midsight.check.subject import make_subject
from midsight.checkpoints.loading import LoadedModel, load_model
from midsight.checkpoints.quiet import quiet_transformers
from midsight.declaring.fill import fill
from midsight.declaring.folder import UnknownModel, read_model
from midsight.declaring.sensitivity import check_sensitivity
from midsight.declaring.small_copy import write_small_copy
from midsight.declaring.written import write_declaration
from midsight.errors import MidsightError, Option, SampleError, first_line
from midsight.families.family_file import (
    FamilyFile,
    proof_path,
    read_family_file,
    require_architecture,
    write_record,
)

LIMIT = 1e-5
"""Largest relative error on the copy, which computes in float32 on the CPU."""
OnSection = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a model."""

    model: str
    """Folder or hub id, as given."""
    model_type: str
    """As in config.json."""
    proof: Proof | None
    """The proof on the small copy; None if something was open before it."""
    open: tuple[str, ...]
    """What is open, one sentence each; a family file is proved if nothing is."""
    not_measured: tuple[str, ...]
    """What no proof on a copy can show, one sentence each."""
    file: Path | None
    """The family file that was proved; None if something is open."""


def declare(
    source: str | Path,
    *,
    out: str | Path | None = None,
    revision: str | None = None,
    prompt_template: str | Path = "auto",
    on_section: OnSection = lambda _: None,
) -> Outcome:
    """Fills a declaration for a model, proves it on a small copy, and writes it as a family file.

    `out` is the file; by default it is named for the model's type. Raises MidsightError for a model that cannot be
    read, or that midsight knows.
    """
    model = read_model(source, revision=revision)
    path = Path(out) if out is not None else Path(f"{model.model_type}.py")
    if path.exists():
        raise MidsightError(
            Option("out", str(path)),
            f" exists; give another, or prove it with `midsight adapter {source} --prove {path}`.",
        )
    if not path.parent.is_dir():
        raise MidsightError(Option("out", str(path)), f" is in {path.parent}, which is not a folder; give another.")

    def draft(copy: Path) -> FamilyFile:
        on_section("filling a declaration")
        text = write_declaration(fill(model, load_copy(model, copy), shipped_samples()[0].images[0]), str(source))
        written = copy.parent / path.name
        written.write_text(text, encoding="utf-8")
        return read_family_file(written)

    return prove(model, draft, path, prompt_template, on_section)


def prove_file(
    source: str | Path,
    file: str | Path,
    *,
    revision: str | None = None,
    prompt_template: str | Path = "auto",
    on_section: OnSection = lambda _: None,
) -> Outcome:
    """Proves a family file on a small copy of a model; raises MidsightError as `declare` does."""
    own = read_family_file(file, "prove")
    model = read_model(source, revision=revision)
    require_architecture(own, [model.architecture], str(source), "prove")
    return prove(model, lambda _copy: own, own.path, prompt_template, on_section)


def prove(
    model: UnknownModel,
    draft: Callable[[Path], FamilyFile],
    path: Path,
    prompt_template: str | Path,
    on_section: OnSection,
) -> Outcome:
    """Builds the copy, proves the family file that `draft` gives for it, and if all passes keeps it as `path`."""
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "model"
        try:
            on_section("building a small copy")
            write_copy(model, copy)
            file = draft(copy)
            loaded = load_model(copy, family=file, dtype="float32", device="cpu")
        except MidsightError as error:
            sentence = str(error).replace(str(copy), model.name)
            return Outcome(model.name, model.model_type, None, (sentence,), (), None)
        proof = prove_copy(replace(loaded, name=model.name), prompt_template, on_section)
        missed = tuple(describe_missed(check) for check in proof.checks if not check.passed)
        if missed:
            return Outcome(model.name, model.model_type, proof, missed, (), None)
        if file.path != path:
            path.write_bytes(file.path.read_bytes())
    kept = FamilyFile(path, file.sha256, file.family)
    write_record(kept, model.config, [asdict(check) for check in proof.checks])
    return Outcome(model.name, model.model_type, proof, (), describe_not_measured(kept, proof), path)


def write_copy(model: UnknownModel, folder: Path) -> None:
    """Writes the small copy; raises MidsightError if the class cannot be built small."""
    try:
        write_small_copy(model, folder)
    except Exception as error:  # configs and classes raise many types for numbers that do not fit each other
        raise MidsightError(
            f"{model.architecture} cannot be built with small numbers ({type(error).__name__}: {first_line(error)})."
        ) from error


@quiet_transformers()
def load_copy(model: UnknownModel, folder: Path) -> Any:
    """The small copy as transformers loads it; raises MidsightError."""
    kind = getattr(transformers, model.architecture)
    try:
        return kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).eval()
    except Exception as error:  # as above
        raise MidsightError(
            f"transformers does not load the small copy ({type(error).__name__}: {first_line(error)})."
        ) from error


def prove_copy(loaded: LoadedModel, prompt_template: str | Path, on_section: OnSection) -> Proof:
    """The proof of a small copy's family; raises MidsightError if the prompt template cannot be used."""
    samples = shipped_samples()
    subject = make_subject(loaded, samples, limit=LIMIT, max_new_tokens=NEW_TOKENS, prompt_template=prompt_template)
    try:
        checks = run_sections(subject, SECTIONS, on_section)
    except SampleError as error:
        checks = (Check("samples: could not be prepared", math.nan, 0, unit="count", error=str(error)),)
    else:
        on_section("what the copy tells apart")
        checks = (*checks, *run_section("sensitivity", lambda: check_sensitivity(subject)))
    return as_loaded(loaded, checks, render_example(loaded, samples[0], prompt_template))


def describe_missed(check: Check) -> str:
    """A check that did not pass, as a sentence."""
    if check.error:
        return f"{check.name} ({check.error})."
    bound = "at least" if check.must_differ else "at most"
    return f"{check.name}: {check.figure:.3g}, and {bound} {check.limit:.3g} passes."


def describe_not_measured(file: FamilyFile, proof: Proof) -> tuple[str, ...]:
    """What a proof on a small copy does not show."""
    pixels = file.family.vision.default_pixels
    has_several = any(check.name.startswith("two images") for check in proof.checks)
    return (
        "The model's own weights: `midsight check MODEL --family FILE --run` compares their numbers on your machine.",
        f"Which resizing the model was trained with: images are resized by {pixels}, and --pixels changes it.",
        *(() if has_several else ("Samples of several images: the processor takes one.",)),
    )


def files_of(outcome: Outcome) -> tuple[Path, ...]:
    """The files that an outcome left."""
    return () if outcome.file is None else (outcome.file, proof_path(outcome.file))
