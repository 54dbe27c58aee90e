"""What the bounded process does with data of strangers: chat templates, patterns, rules of tokenizers.

It is run by its path and imports nothing of midsight, so that it starts in a moment. Each line of its input is a piece
of work as JSON; it answers with one line.
"""

from __future__ import annotations

import json
import re
import signal
import string
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any, ClassVar

LONGEST_TEXT = 10_000_000
"""Characters that a template may render."""
REPEATS = 300
"""How often a character is repeated to try the rules of a tokenizer."""
LONGEST_PATTERN = 20_000
"""Characters of a tokenizer's rules whose letters are tried."""
LONGEST_MESSAGE = 2_000
"""Characters of an exception that are passed on."""


def main() -> None:
    """Does the work that comes in, one piece after the other, until the input ends."""
    most_memory, paths = json.loads(sys.argv[1])
    sys.path.extend(path for path in paths if path not in sys.path)
    limit_memory(most_memory)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for line in sys.stdin.buffer:
        work, seconds, arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process's CPU time; then it ends, whatever it does
        answer = answer_to(WORK[work], arguments)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def limit_memory(most: int) -> None:
    """Larger requests for memory raise MemoryError, where the system supports that."""
    import resource

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def answer_to(do: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a piece of work gives, or why it gives nothing."""
    try:
        return {"result": do(**arguments)}
    except MemoryError:
        return {"takes_too_much": True}
    except Exception as error:  # a stranger's program may raise anything
        return {"raised": (str(error).strip() or type(error).__name__)[:LONGEST_MESSAGE]}


def render(template: str, variables: Mapping[str, Any], time: str | None = None) -> str:
    """What a chat template renders, as transformers renders it; at the local `time`, as ISO writes it, if one is given.

    Otherwise a template that asks gets the present time.
    """
    at_time = {} if time is None else {"strftime_now": datetime.fromisoformat(time).strftime}
    text = compile_template(template).render(**variables, **at_time)
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"it renders {len(text)} characters")
    return text


@cache
def compile_template(template: str) -> Any:
    """A chat template in an environment like that of transformers' chat_template_utils."""
    from jinja2 import TemplateError, ext, nodes, pass_eval_context, sandbox, utils

    class Generation(ext.Extension):
        """The tag around what an assistant says."""

        tags: ClassVar = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        @pass_eval_context
        def _body(self, _context: Any, caller: Any) -> str:
            return caller()

    class Dict:
        """A dictionary without attributes that lead elsewhere."""

        def __call__(self, *args: Any, **options: Any) -> dict[Any, Any]:
            return dict(*args, **options)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Namespace(utils.Namespace):
        """A namespace without names that lead elsewhere."""

        def __init__(*args: Any, **options: Any) -> None:
            self, *given = args
            attributes = dict(*given, **options)
            for name in attributes:
                refuse_underscore(name)
            utils.Namespace.__init__(self, attributes)  # pyright: ignore[reportArgumentType]

        def __setitem__(self, name: str, value: Any) -> None:
            refuse_underscore(name)
            super().__setitem__(name, value)

    def refuse_underscore(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise TemplateError(f"a namespace has no attribute {name!r}")

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),  # local time, as transformers has it
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment.from_string(template)


def match(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Tries each pattern on all names, in the two ways in which PEFT uses patterns."""
    for pattern in patterns:
        with suppress(re.error, OverflowError, RecursionError):
            for name in names:
                re.fullmatch(pattern, name)
                re.match(rf"(.*\.)?({pattern})$", name)


def tokenise(rules: Mapping[str, Any], most: float) -> int:
    """How many characters or tokens the rules of a tokenizer.json make of one character, tried on hard texts.

    `rules` are its normalizer, pre_tokenizer, post_processor and decoder; its vocabulary is not needed. Ends where they
    make more than `most`.
    """
    from tokenizers import Tokenizer

    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **rules, "model": model}))
    growth = 0
    for text in hard_texts("".join(strings_in(rules))):
        with suppress(RuntimeError, ValueError):  # rules that refuse this text may take others
            normalised = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
            spelled = tokenizer.decoder.decode([text]) if tokenizer.decoder else text
            growth = max(
                growth, *(len(made) // len(text) for made in (normalised, spelled, tokenizer.encode(text).ids))
            )
        if growth > most:
            break
    return growth


def hard_texts(patterns: str) -> Iterator[str]:
    """Texts on which patterns that repeat much take for ever: each character many times, and all together."""
    letters = "".join(dict.fromkeys([*string.printable, *patterns[:LONGEST_PATTERN]]))
    for letter in letters:
        yield letter * REPEATS
        yield f"{letter * REPEATS}\0{letters}"  # what a pattern asks for is there, but not where it has to be


def strings_in(value: Any) -> Iterator[str]:
    """Every text inside lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from strings_in(inside)


WORK: Mapping[str, Callable[..., Any]] = {"render": render, "match": match, "tokenise": tokenise}

if __name__ == "__main__":
    main()
