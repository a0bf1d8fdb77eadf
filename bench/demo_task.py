"""How well does the demo checkpoint read? The demo task with its tiles, and with the thumbnail alone.

python bench/demo_task.py                  # 1,500 pictures of demo/checkpoint in float32, twice
python bench/demo_task.py --limit 2400

Writes bench/results/demo-fp32.json, from which demo/README.md has its table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ending import ending
from precisions import vitrail

from vitrail.benchmark.device import device_fields

ROOT = Path(__file__).parents[1]
MODELS, RESULT = ROOT / "models" / "demo", ROOT / "bench" / "results" / "demo-fp32.json"


@ending()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "demo" / "checkpoint")
    parser.add_argument("--limit", type=int, default=1500, help="pictures")
    arguments = parser.parse_args()
    vitrail("export", str(arguments.checkpoint), "--out", str(MODELS), "--precision", "fp32")
    tiled, single = (_answered(arguments.limit, *options) for options in ((), ("--max-tiles", "1")))
    rows = [
        {"skill": skill, **score, "thumbnail": single["skills"][skill]["score"]}
        for skill, score in sorted(tiled["skills"].items(), key=lambda each: -each[1]["score"])
    ]
    card = {"bench": "demo", **device_fields(), "limit": arguments.limit, "seed": 0, "stages": rows}
    RESULT.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card))


def _answered(limit: int, *options: str) -> dict[str, Any]:
    out = MODELS.with_name("demo-answers" + "".join(options) + ".jsonl")
    out.unlink(missing_ok=True)
    told = vitrail(
        "eval", "--task", "demo", "--model", str(MODELS), "--precision", "fp32", "--limit", str(limit),
        "--out", str(out), "--json", *options,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(told)
    return found


if __name__ == "__main__":
    main()
