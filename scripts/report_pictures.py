"""Makes the pictures of the report in docs/, from the run of the demo.

Usage: PYTHONPATH=tests .venv/bin/python scripts/report_pictures.py [FOLDER]

It needs Chromium. FOLDER keeps the demo, and PNG files of the whole page at each width, light and dark, to look at.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console

from midsight.commands.demo import extract_questions
from midsight.demo.show import run_demo
from support.browser import Browser, Page, find_chromium, running_browser

DOCS = Path(__file__).parents[1] / "docs"
WIDTHS = (390, 1280, 1920)
HEIGHT = 900
SHOWN = {"report-findings.webp": "#findings", "report-samples.webp": "#samples"}
"""Pictures in docs/, and what each shows."""
QUALITY = 80


def main() -> None:
    """Runs the demo, unless its report is there, and takes the pictures."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit("Chromium was not found; install it, for example with apt-get install chromium.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        report = folder / "report.html"
        if not report.exists():
            run_demo(folder, extract_questions, Console())
        with running_browser(chromium) as browser:
            for name, section in SHOWN.items():
                save(section_picture(browser, report, section), DOCS / name)
            if len(sys.argv) > 1:
                whole_pages(browser, report, folder)


def section_picture(browser: Browser, report: Path, section: str) -> bytes:
    """PNG of the page from the top of a section."""
    page = Page(browser, report, 1280, HEIGHT, dark=False)
    page.run(f"document.querySelector('{section}').scrollIntoView({{behavior: 'instant'}})")
    png = page.screenshot()
    page.close()
    return png


def whole_pages(browser: Browser, report: Path, folder: Path) -> None:
    """PNG of the whole page at every width, light and dark."""
    for width in WIDTHS:
        for dark in (False, True):
            page = Page(browser, report, width, HEIGHT, dark=dark)
            (folder / f"page-{width}-{'dark' if dark else 'light'}.png").write_bytes(page.screenshot(whole=True))
            page.close()


def save(png: bytes, target: Path) -> None:
    """Writes the picture as WebP."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(target, "WEBP", quality=QUALITY)


if __name__ == "__main__":
    main()
