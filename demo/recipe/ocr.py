"""python -m demo.recipe.ocr: what another reader finds on the pages of the evaluation, whole and as thumbnails.

Tesseract (Debian's tesseract-ocr) reads each receipt at the size at which the tiles show it, and squeezed into one tile as
the thumbnail shows it. A price that it finds on the page and not in the thumbnail is there to be read, and only there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

from PIL import Image

from demo.recipe.evaluation import samples
from demo.recipe.render.dense import TILE

RESULT = Path("bench/results/ocr-receipts.json")
# As one block of text: what a receipt is, and what keeps its columns together.
LAYOUT = "6"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="pages")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if shutil.which("tesseract") is None:
        parser.exit(2, "tesseract is not installed: apt-get install tesseract-ocr\n")
    card = {"bench": "ocr", "reader": version(), **shares(arguments.count)}
    arguments.out.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card))  # noqa: T201


def shares(count: int) -> dict[str, float]:
    """Shares of the values that answers give, in prices and totals that are printed, which are found."""
    asked = [sample for sample in samples("receipts", count, seed=0) if is_price(sample.answers[0])]
    whole = thumbnail = 0
    for sample in asked:
        (image,) = sample.images
        whole += sample.answers[0] in read(image)
        thumbnail += sample.answers[0] in read(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
    return {
        "values": len(asked),
        "found_on_page": whole / len(asked),
        "found_in_thumbnail": thumbnail / len(asked),
    }


def is_price(answer: str) -> bool:
    return answer.replace(".", "", 1).isdigit()


def read(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return subprocess.run(  # noqa: S603 - fixed arguments
        ["tesseract", "stdin", "stdout", "--psm", LAYOUT],  # noqa: S607
        input=file.getvalue(),
        capture_output=True,
        check=True,
        env={**os.environ, "OMP_THREAD_LIMIT": "1"},
    ).stdout.decode()


def version() -> str:
    told = subprocess.run(["tesseract", "--version"], capture_output=True, check=True, text=True)  # noqa: S607
    return told.stdout.splitlines()[0]


if __name__ == "__main__":
    main()
