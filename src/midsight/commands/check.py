"""`midsight check`: what a model folder is, and the proof of its numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from midsight.commands.outcome import SOME_FAILED, Debug, reported_errors
from midsight.errors import MidsightError, Option

if TYPE_CHECKING:
    from midsight.checkpoints.load_options import DeviceMap, Lora


def check(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model or an adapter.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model of an adapter; by default the one that it names.")
    ] = None,
    base_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the base model's hub id.")] = None,
    family: Annotated[
        str | None, typer.Option(metavar="FILE.py", help="File with the model's family and its proof beside it.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Load it and prove its numbers on this machine.")] = False,
    dtype: Annotated[str, typer.Option(help="With --run: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="With --run: auto, cpu, mps, cuda or cuda:N.")] = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(metavar="auto", help="With --run: auto: decoder layers on GPUs, in main memory and on disk."),
    ] = None,
    lora: Annotated[str, typer.Option(help="With --run: auto, merged, unmerged or off.")] = "auto",
    prompt_template: Annotated[
        str, typer.Option(metavar="auto|raw|FILE", help="With --run: the folder's chat template, none, or a file's.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a model folder or hub id is, without loading its weights; with --run, prove its numbers."""
    with reported_errors(debug=debug):
        from midsight.check.facts import read_facts
        from midsight.check.proof import prove
        from midsight.check.terminal import as_plain_data, render_facts, render_proof

        given = {"dtype": dtype, "device": device, "lora": lora, "prompt_template": prompt_template}
        chosen = {name: value for name, value in given.items() if value != "auto"}
        for name, value in (*chosen.items(), *([("device_map", device_map)] if device_map else [])):
            if not run:
                raise MidsightError(Option(name, value), " goes with ", Option("run"), "; add it, or leave both out.")
        facts = read_facts(model, revision=revision, base=base, base_revision=base_revision, family=family)
        proof = None
        if run:
            with show_section(Console(stderr=True)) as on_section:
                proof = prove(
                    facts.adapter_folder or facts.folder,
                    base=facts.folder if facts.adapter_folder else None,
                    family=family,
                    dtype=dtype,
                    device=device,
                    device_map=cast("DeviceMap | None", device_map),
                    lora=cast("Lora", lora),
                    prompt_template=prompt_template,
                    on_section=on_section,
                )
        if as_json:
            typer.echo(json.dumps(as_plain_data(facts, proof), indent=2, allow_nan=False))
        else:
            console = Console(highlight=False)
            console.print(render_facts(facts))
            console.print(render_proof(proof) if proof else "OK: every tensor is accounted for.")
        if proof and not proof.passed:
            raise typer.Exit(SOME_FAILED)


@contextmanager
def show_section(console: Console) -> Iterator[Callable[[str], None]]:
    """Shows what is measured: in one line that changes, and where there is no terminal in a line for each section."""
    if not console.is_terminal:
        yield lambda name: console.print(f"Measuring: {name}", markup=False, highlight=False)
        return
    with console.status("Measuring") as status:
        yield lambda name: status.update(f"Measuring: {name}")
