"""Takes the picture of a page that ``greenback-trace export --format html`` has written.

    python demo/migrate/run.py /tmp/orders
    cd /tmp/orders && greenback-trace export --format html --weight bridges -o page.html 0.jsonl
    cd - && python docs/make_page_picture.py /tmp/orders/page.html docs/_static/page.png

It needs Playwright, Chromium and Pillow.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SIZE = {"width": 1000, "height": 1270}


def take(page_path: Path, picture: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=SIZE)
        page.goto(page_path.resolve().as_uri())
        page.wait_for_selector("#plan-note", state="attached")
        page.screenshot(path=str(picture))
        browser.close()
    # Fewer colours, which look the same, make the file a third of the size.
    with Image.open(picture) as image:
        image.convert("RGB").quantize(128).save(picture, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
