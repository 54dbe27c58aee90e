"""A filled declaration as the Python file that a person would write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from midsight.declaring.fill import Declaration, known_family
from midsight.families.family import Modules
from midsight.version import __version__

HEAD = '''"""{model_type}: {what}.

Filled by midsight {version} from config and modules of {source}; a proof of this content is beside it.
"""

'''
SQUARES = """from midsight.families.family import Family{modules_import}, StoredTensors
from midsight.families.llava import OLDER_NAMES
from midsight.families.squares import Squares
from midsight.prompts.declaration import FamilyPrompt

SQUARES = Squares(
    {squares},
)

FAMILY = Family(
    name={name},
    architecture={architecture},
{modules}    prompt=FamilyPrompt(
        {prompt},
    ),
    vision=SQUARES.vision(),
    stored=StoredTensors(older_names=OLDER_NAMES),
    reference=SQUARES.reference(),
)
"""
LIKE = """from dataclasses import replace

from midsight.families import {shape}

FAMILY = replace(
    {shape}.FAMILY,
    name={name},
    architecture={architecture},
{modules}    prompt=replace({shape}.FAMILY.prompt, {prompt}),
)
"""
LINE_BREAK = ",\n"
USUAL = {"class_tokens": 0, "pixels": "pil"}
"""Values that the file leaves out."""


def write_declaration(found: Declaration, source: str) -> str:
    """The text of a family file; `source` names the model."""
    about = {"model_type": found.model_type, "version": __version__, "source": re.sub(r"[^\w./:-]", "_", source)}
    names = {"name": spelled(found.model_type), "architecture": spelled(found.architecture)}
    prompt = {
        "image_token": found.image_token,
        "template_token": found.template_token,
        "placeholder": found.placeholder,
    }
    if found.squares is None:
        known = known_family(found.shape)
        tokens = {
            name: prompt[name]
            for name in ("image_token", "template_token")
            if prompt[name] != getattr(known.prompt, name)
        }
        return HEAD.format(**about, what=f"declared like {known.name}") + LIKE.format(
            **names,
            shape=found.shape,
            modules=modules_lines(f"replace({found.shape}.FAMILY.modules,", found.modules, known.modules),
            prompt=arguments({**tokens, "published": None}, ", "),
        )
    squares = {name: value for name, value in vars(found.squares).items() if value != USUAL.get(name)}
    modules = modules_lines("Modules(", found.modules, Modules())
    return HEAD.format(**about, what="squares through one encoder and one projector") + SQUARES.format(
        **names,
        squares=arguments(squares, LINE_BREAK + " " * 4),
        modules_import=", Modules" if modules else "",
        modules=modules,
        prompt=arguments({name: value for name, value in prompt.items() if value}, LINE_BREAK + " " * 8),
    )


def modules_lines(begin: str, modules: Modules, known: Modules) -> str:
    """The argument for the paths that are not those of `known`; empty if all are."""
    changed = {name: path for name, path in vars(modules).items() if path != getattr(known, name)}
    if not changed:
        return ""
    indented = arguments(changed, LINE_BREAK + " " * 8)
    return f"    modules={begin}\n        {indented},\n    ),\n"


def arguments(values: Mapping[str, object], between: str) -> str:
    """Values as Python writes arguments."""
    return between.join(f"{name}={spelled(value)}" for name, value in values.items())


def spelled(value: object) -> str:
    """A text or number in Python, texts in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
