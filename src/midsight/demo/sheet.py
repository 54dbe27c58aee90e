"""Pictures with questions and answers as one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from midsight.demo.score import Share, is_right

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>midsight demo: pictures and answers</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; }}
img {{ width: 100%; max-width: 17rem; image-rendering: pixelated; border: 1px solid #ccc; }}
ul {{ list-style: none; padding: 0; margin: .4rem 0 0; }}
.right b {{ color: #176b2c; }}
.wrong b {{ color: #b3261e; }}
td, th {{ padding: .1rem 1rem .1rem 0; text-align: left; }}
</style>
<h1>Pictures and answers</h1>
<p>{intro}</p>
<table><tr><th>kind</th><th>right</th><th>asked</th><th>share (95 % interval)</th></tr>
{shares}
</table>
<main>
{figures}
</main>
</html>
"""
FIGURE = '<figure><img alt="{name}" src="data:image/png;base64,{png}"><ul>\n{answers}</ul></figure>'


def contact_sheet(
    rows: Iterable[Mapping[str, Any]], images: Path, shares: Mapping[str, Share], *, intro: str, pictures: int
) -> str:
    """HTML with the first `pictures` pictures, each with all its questions and answers."""
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append(row)
    figures = [figure(images / name, of_image) for name, of_image in list(by_image.items())[:pictures]]
    table = "\n".join(
        f"<tr><td>{escape(kind)}</td><td>{share.right}</td><td>{share.asked}</td><td>{share}</td></tr>"
        for kind, share in shares.items()
    )
    return PAGE.format(intro=escape(intro), shares=table, figures="\n".join(figures))


def figure(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """One picture with its questions and answers."""
    png = base64.b64encode(path.read_bytes()).decode()
    return FIGURE.format(name=escape(path.name), png=png, answers="".join(map(answer_line, rows)))


def answer_line(row: Mapping[str, Any]) -> str:
    """A question with its answer, and the reference if the answer is wrong."""
    right = is_right(row["answer"], row["reference_answers"])
    correction = "" if right else f" (right: {escape(', '.join(row['reference_answers']))})"
    css_class, answer = "right" if right else "wrong", escape(row["answer"])
    return f'<li class="{css_class}">{escape(row["question"])} <b>{answer}</b>{correction}</li>\n'
