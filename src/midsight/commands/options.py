"""Options that several commands have: which data, which model, and how it runs."""

from __future__ import annotations

from typing import Annotated

import typer

DATA, WHAT, MODEL, RUNNING, STORING = "Data", "What to extract", "Model", "Running", "Storing"
"""Groups of the options in the help."""

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A run folder, or its address in a bucket: s3://, gs:// or az://; to read it also hf://datasets/OWNER/NAME.",
    ),
]
DataArgument = Annotated[
    str,
    typer.Argument(
        help="JSONL, JSON, CSV, TSV, Parquet or tar file, pattern or folder of these, saved dataset, folder of "
        "images, also in a bucket (s3://, gs://, az://), or hf:// name."
    ),
]
ModelSource = Annotated[
    str, typer.Option("--model", help="Folder or hub id of the model, or of an adapter.", rich_help_panel=MODEL)
]
Images = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Folder, or its address, that image paths start from; by default the folder of the table.",
        rich_help_panel=DATA,
    ),
]
ImageColumn = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of images, repeated for several, or a pattern like {image_id:012}.jpg.", rich_help_panel=DATA
    ),
]
QuestionColumn = Annotated[
    str | None, typer.Option(help="Column of questions; by default question.", rich_help_panel=DATA)
]
AnswerColumn = Annotated[
    str | None, typer.Option(help="Column of right answers; by default answer or answers.", rich_help_panel=DATA)
]
IdColumn = Annotated[
    str | None,
    typer.Option(help="Column of unique ids, or none; by default id, else ids are made.", rich_help_panel=DATA),
]
AnswersFrom = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="File with the right answers, joined with --on.", rich_help_panel=DATA),
]
On = Annotated[
    str | None, typer.Option(help="Column that DATA and --answers-from have in common.", rich_help_panel=DATA)
]
Question = Annotated[
    str | None, typer.Option(help="One question for every image of a folder, or of a table.", rich_help_panel=DATA)
]
Split = Annotated[
    str | None, typer.Option(help="Which split, like test, if the data have several.", rich_help_panel=DATA)
]
AllowUrls = Annotated[
    bool, typer.Option("--allow-urls", help="Download images that are web addresses.", rich_help_panel=DATA)
]
FollowLinks = Annotated[
    bool,
    typer.Option(
        "--follow-links", help="Follow links that lead out of the folder of the images.", rich_help_panel=DATA
    ),
]
Limit = Annotated[int | None, typer.Option(help="Process only the first N rows.", rich_help_panel=DATA)]
PromptTemplate = Annotated[
    str,
    typer.Option(
        metavar="auto|raw|FILE",
        help="auto: the model folder's own chat template; raw: none; or a file with one.",
        rich_help_panel=WHAT,
    ),
]
ProbeColumn = Annotated[
    str | None,
    typer.Option(
        help="The probe's vector column; by default the one that inner folds chose most often.", rich_help_panel=WHAT
    ),
]
RiskOfLabel = Annotated[
    str,
    typer.Option(
        metavar="false|true",
        help="The value of the probe's label that is the risk: false for correct, true for hallucinated.",
        rich_help_panel=WHAT,
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=MODEL)]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision: float32, bfloat16 or float16; auto: the checkpoint's on a GPU, float32 on a CPU if that fits.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str, typer.Option(help="cpu, mps, cuda or cuda:N; auto: a GPU if there is one.", rich_help_panel=MODEL)
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="auto",
        help="auto: decoder layers on several GPUs, in main memory and on disk, as far as they fit.",
        rich_help_panel=MODEL,
    ),
]
LoraChoice = Annotated[
    str,
    typer.Option(
        "--lora",
        help="How an adapter, and the model's LoRA for images, are applied: auto, merged, unmerged or off.",
        rich_help_panel=MODEL,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(help="Base model of an adapter; by default the one that it names.", rich_help_panel=MODEL),
]
BaseRevision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the base model's hub id.", rich_help_panel=MODEL)
]
FamilyFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py",
        help="File with the family of a model that midsight does not know, proved by midsight adapter.",
        rich_help_panel=MODEL,
    ),
]
CallSizes = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="auto|N",
        help="Maximum number of samples in one call of the model; auto: the fastest that memory holds.",
        rich_help_panel=RUNNING,
    ),
]
Share = Annotated[
    bool, typer.Option(help="Whether questions on one image share its computation.", rich_help_panel=RUNNING)
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try failed samples again.", rich_help_panel=RUNNING)]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="Go on even if the first 100 samples all fail.", rich_help_panel=RUNNING)
]
CommitSeconds = Annotated[float, typer.Option(help="Maximum seconds between two commits.", rich_help_panel=STORING)]


def one_or_several(columns: list[str] | None) -> str | list[str] | None:
    """The value of --image-column, which may be repeated, as DatasetOptions takes it."""
    return columns[0] if columns and len(columns) == 1 else columns or None
