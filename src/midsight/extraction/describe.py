"""The description of a run: everything that decides its numbers, and where they come from."""

from __future__ import annotations

import json
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from midsight.checkpoints.loading import LoadedModel
from midsight.errors import SampleError
from midsight.extraction.request import Request, ResolvedRequest
from midsight.extraction.same_run import describe_dataset
from midsight.prompts.chat_template import default_prompt
from midsight.prompts.image_places import UserTurn, images_first
from midsight.prompts.prompt import PromptFormat
from midsight.samples.streams import SampleStream
from midsight.samples.tables import Dataset
from midsight.store.schema import StoreDtype
from midsight.store.spec import EnvironmentSpec, ModelSpec, PromptSpec, RequestSpec, RunSpec

RECORDED_PACKAGES = (
    "accelerate",
    "numpy",
    "peft",
    "pillow",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)
"""The packages that can change a number; accelerate and PEFT are only there for users of `midsight.wrap`."""
PACKAGE = Path(__file__).parents[1]


def describe_run(
    dataset: Dataset | SampleStream,
    model: LoadedModel,
    request: Request,
    resolved: ResolvedRequest,
    store_dtype: StoreDtype,
) -> RunSpec:
    """What run.json holds."""
    return RunSpec(
        request=RequestSpec(
            layers=tuple(sorted({tap.layer for tap in resolved.taps})),
            positions=tuple(dict.fromkeys(tap.position for tap in resolved.taps)),
            residual=request.residual,
            vision=request.vision,
            processor_pooled_pixels=resolved.processor_pooled_pixels,
            pixels=resolved.pixels,
            answers=resolved.answers,
            max_new_tokens=resolved.max_new_tokens if resolved.answers else None,
            plain_greedy=request.plain_greedy,
            share=resolved.share,
            store_dtype=store_dtype,
        ),
        model=describe_model(model),
        prompt=describe_prompt(dataset, model, resolved),
        dataset=describe_dataset(dataset),
        environment=EnvironmentSpec(
            device=str(model.device),
            python=platform.python_version(),
            platform=platform.platform(),
            packages=installed_versions(),
            midsight_commit=midsight_commit(),
        ),
        vectors=resolved.vectors,
        extras=dict(dataset.extras),
        risks=request.risk.describe() if request.risk else None,
    )


def installed_versions() -> dict[str, str]:
    """Version of every recorded package that is installed."""
    versions = {name: version_in_use(name) for name in RECORDED_PACKAGES}
    return {name: found for name, found in versions.items() if found is not None}


@cache
def version_in_use(package: str) -> str | None:
    """Version of an installed package, which stays the same in a process; None if it is not installed."""
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def describe_model(model: LoadedModel) -> ModelSpec:
    """The model as it was loaded."""
    return ModelSpec(
        name=model.name,
        family=model.family.name,
        family_file=str(model.family_file.path) if model.family_file else None,
        family_sha256=model.family_file.sha256 if model.family_file else None,
        architecture=model.family.architecture,
        format=model.format,
        revision=model.revision,
        fingerprint=model.fingerprint,
        lora=model.lora,
        base=model.adapter.base if model.adapter else None,
        base_revision=model.adapter.base_revision if model.adapter else None,
        base_fingerprint=model.adapter.base_fingerprint if model.adapter else None,
        adapter_fingerprint=model.adapter.adapter_fingerprint if model.adapter else None,
        adapters=model.adapters,
        fixes=model.fixes,
        notes=model.notes,
        dtype=str(model.dtype).removeprefix("torch."),
        device_type=model.device.type,
        attention=model.attention,
        layers=model.n_layers,
        hidden_size=model.hidden_size,
        stop_ids=model.stop_ids,
        answer_settings=json.dumps(dict(model.answer_settings.values)),
        longrope_threshold_tokens=model.longrope_threshold,
    )


def describe_prompt(dataset: Dataset | SampleStream, model: LoadedModel, resolved: ResolvedRequest) -> PromptSpec:
    """How a question becomes a prompt, with the first sample as the example."""
    prompt, declaration = resolved.prompt, model.family.prompt
    rendered = default_prompt(model.processor, declaration, prompt.template)
    return PromptSpec(
        user=prompt.user.spelled,
        system=prompt.system,
        template=prompt.template.source,
        template_sha256=prompt.template.sha256,
        is_published=declaration.is_published(rendered),
        rendered=prompt.render(model.processor, declaration, example_turn(dataset, prompt).places),
        time=prompt.template.time,
    )


def example_turn(dataset: Dataset | SampleStream, prompt: PromptFormat) -> UserTurn:
    """The turn of the first sample; the option `prompt` itself on one image if that is not known or has none."""
    try:
        if isinstance(dataset, Dataset) and dataset.samples:
            return prompt.turn(dataset.samples[0])
    except SampleError:
        pass
    return images_first(prompt.user.spelled)


def midsight_commit() -> str | None:
    """The git commit of the midsight in use, with `-dirty` if files were changed since; None if unknown.

    For an installed copy it is the commit that pip recorded, for a checkout the one that git reports.
    """
    try:
        recorded = distribution("midsight").read_text("direct_url.json")
        commit = json.loads(recorded or "{}").get("vcs_info", {}).get("commit_id")
        return commit or checkout_commit(PACKAGE)
    except (PackageNotFoundError, ValueError):
        return checkout_commit(PACKAGE)


@cache
def checkout_commit(package: Path) -> str | None:
    """The commit of the checkout that holds a package; None if its files are not under version control.

    Asked once in a process, because its code does not change with the files.
    """
    git = ["git", "-C", str(package)]
    try:
        tracked = subprocess.run(  # noqa: S603  (a fixed command)
            [*git, "ls-files", "--error-unmatch", "version.py"], capture_output=True, timeout=10
        )
        if tracked.returncode:
            return None
        described = subprocess.run(  # noqa: S603  (a fixed command)
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            timeout=10,
            text=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
