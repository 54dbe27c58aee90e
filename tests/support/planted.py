"""Runs with vectors that no model made, in which it is known what can be found."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from midsight.probes.crossval import Design, cross_validation
from midsight.probes.folds import deal_folds, permuted_labels
from midsight.records import Record
from midsight.store import RunSpec, open_run
from midsight.store.schema import StoreDtype
from support.made_up import make_model_spec, make_record, make_request, make_spec, write_run

QUERY = "query_token_representation.layer_{}"
IMAGE = "vision_token_representation.layer_0"
LAYERS = 3
WIDTH = 12


def planted(
    seed: int = 0,
    *,
    images: int = 60,
    questions: int = 4,
    signal: float = 2.0,
    layer: int = 1,
    image_effect: float = 1.0,
    confidence: float = 1.0,
    layers: int = LAYERS,
    width: int = WIDTH,
) -> dict[str, np.ndarray]:
    """Labels and vectors of a made-up model.

    Args:
        seed: Of everything.
        images: Number of images.
        questions: Questions on each image.
        signal: How far right and wrong answers are apart in the planted column.
        layer: The query layer that has the signal.
        image_effect: How much an image's difficulty, which image vectors show, decides.
        confidence: How far the first token's distribution tells right from wrong answers.
        layers: Number of query columns.
        width: Width of every column.

    Returns:
        `right` bool [n], `image` int [n], `logprob` [n], and float32 [n, width] by column.
    """
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), questions)
    difficulty = image_effect * rng.standard_normal(images)
    right = rng.random(len(image)) < 1 / (1 + np.exp(-0.8 - difficulty[image]))
    vectors = {}
    for number in range(layers):
        vectors[QUERY.format(number)] = rng.standard_normal((len(image), width))
    vectors[QUERY.format(layer)][:, 0] += signal * right
    vectors[IMAGE] = rng.standard_normal((images, width))[image]
    vectors[IMAGE][:, 0] += 0.7 * difficulty[image]
    logprob = -np.exp(-1.5 + rng.standard_normal(len(image)) - confidence * right)
    return {"right": right, "image": image, "logprob": logprob} | {
        name: values.astype(np.float32) for name, values in vectors.items()
    }


def write_planted(path: str | Path, *, answers: bool = True, run_id: str = "0123456789abcdef" * 2, **options):
    """A run of `planted` samples: yes/no questions whose answers are right or wrong as planted."""
    spec = planted_spec(answers=answers, run_id=run_id, **options)
    write_run(path, planted_records(spec, **options), spec)
    return open_run(path)


def planted_spec(
    *,
    answers: bool = True,
    run_id: str = "0123456789abcdef" * 2,
    layers: int = LAYERS,
    width: int = WIDTH,
    store_dtype: StoreDtype = "float32",
    **_,
) -> RunSpec:
    """The definition of a run of `planted` samples."""
    return make_spec(
        answers=answers,
        run_id=run_id,
        vectors=dict.fromkeys([*(QUERY.format(layer) for layer in range(layers)), IMAGE], width),
        extras={"kind": "string"},
        model=make_model_spec(layers=layers),
        request=make_request(
            layers=tuple(range(layers)),
            positions=("vision_token", "query_token"),
            residual=False,
            vision="none",
            answers=answers,
            max_new_tokens=200 if answers else None,
            store_dtype=store_dtype,
        ),
    )


def planted_records(spec: RunSpec, first: int = 0, **options) -> Iterator[Record]:
    """`planted` samples as records of a run; `first` is the place of the first of them in the dataset."""
    made = planted(**options)
    rng = np.random.default_rng(1)
    wanted = rng.random(len(made["right"])) < 0.5
    for index, (right, yes) in enumerate(zip(made["right"], wanted, strict=True)):
        said = yes == right
        logprob = float(made["logprob"][index])
        rest = float(np.log1p(-np.exp(logprob)))
        heard = {
            "answer": "yes" if said else "no",
            "answer_token_ids": (1 if said else 2, 9),
            "answer_logprobs": (logprob, -0.01),
            "first_token_entropy": float(-(np.exp(logprob) * logprob + np.exp(rest) * rest)),
            "first_token_top_ids": (1, 2) if said else (2, 1),
            "first_token_top_logprobs": (logprob, rest),
        }
        yield make_record(
            first + index,
            spec,
            image_id=f"image-{options.get('seed', 0)}-{made['image'][index]}",
            question=f"is there a {'dog' if index % 3 else 'cat'}?",
            reference_answers=("yes" if yes else "no",),
            extras={"kind": "dog" if index % 3 else "cat"},
            vectors={name: made[name][index] for name in spec.vectors},
            prompt_tokens=40 + index % 7,
            **(heard if spec.request.answers else dict.fromkeys((*heard, "finish_reason"))),
        )


def design_of(made, *, folds=5, permutations=0, seed=0, by_image=True) -> Design:
    """The design of `planted` samples; rows are in `design.rows`. Without `by_image`, images are torn apart."""
    y = made["right"].astype(np.float32)
    groups = made["image"] if by_image else np.arange(len(y))
    fold = deal_folds(y, groups, folds, seed)
    order = np.argsort(fold, kind="stable")
    labels, _ = permuted_labels(y, groups, np.zeros(len(y), np.int64), permutations, seed + 1)
    bounds = tuple(np.concatenate([[0], np.cumsum(np.bincount(fold))]).tolist())
    return Design(order, bounds, cross_validation(folds), labels[:, order], groups[order])


def columns_of(made, design) -> dict[str, np.ndarray]:
    """Copies of the vectors in the design's order, by column."""
    return {name: values[design.rows].copy() for name, values in made.items() if "." in name}
