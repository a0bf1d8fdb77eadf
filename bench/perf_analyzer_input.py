"""Input data for NVIDIA's perf_analyzer: questions with tiles, for the models `internvl` and `decoder`.

    python bench/perf_analyzer_input.py --tiles 7 --entries 8 --output-tokens 32 --out input.json
    perf_analyzer -m internvl -u localhost:8001 -i grpc --streaming --async --input-data input.json --concurrency-range 1:4

Every entry is a picture of its own, drawn from the seed, unless --plain makes them one flat colour: that is how
bench/perf_analyzer.json, of one tile of 448 pixels and 16 tokens, stays small under version control.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from ending import ending

from vitrail.benchmark.workload import Tiling, Workload, ask, questions, shapes
from vitrail.images import open_image
from vitrail.tiling import split


@ending()
def main() -> None:
    args = arguments()
    tiling = Tiling(args.tile_size, max_tiles=12, thumbnail=True)
    workload = Workload(tiles=(args.tiles,), prompt_words=args.words, seed=args.seed)
    asked = questions(workload, shapes(workload, tiling), stage="perf_analyzer")
    entries = [
        entry(ask(question, workload), tiling, args)
        for question, _ in zip(asked, range(args.entries), strict=False)
    ]
    text = json.dumps({"data": entries}, indent=1)
    args.out.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {args.out}: {len(entries)} questions, {len(text) / 2**20:.1f} MiB")


def entry(asked: Any, tiling: Tiling, args: argparse.Namespace) -> dict[str, Any]:
    """A question as perf_analyzer reads it: text as it is, tensors of numbers as base64 with their shape.

    `options` makes every answer exactly as long as asked; `max_tokens` is left to those who want natural ends.
    """
    content = asked.messages[0]["content"]
    options = {"max_tokens": args.output_tokens, "ignore_eos": True}
    length = {"max_tokens": [args.output_tokens]} if args.stop_early else {"options": [json.dumps(options)]}
    if isinstance(content, str):
        return {"text_input": [content], **length}
    picture, text = content
    image = open_image(picture["image"])
    tiles = split(
        image, max_tiles=asked.options["max_tiles"], tile_size=tiling.tile_size, thumbnail=tiling.thumbnail
    )
    if args.plain:
        tiles = np.full_like(tiles, 127)
    return {
        "tiles": {"content": {"b64": base64.b64encode(tiles.tobytes()).decode()}, "shape": list(tiles.shape)},
        "num_tiles": {"content": [len(tiles)], "shape": [1]},
        "text_input": [text["text"]],
        **length,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tiles", type=int, default=1, help="of each picture, thumbnail included; 0 for none"
    )
    parser.add_argument("--tile-size", type=int, default=448, help="pixels of a tile's side")
    parser.add_argument("--entries", type=int, default=1, help="different questions")
    parser.add_argument("--words", type=int, default=16, help="of each question")
    parser.add_argument("--output-tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--stop-early", action="store_true", help="let the model end its answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="one flat colour instead of drawings")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("perf_analyzer.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
