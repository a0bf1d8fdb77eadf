"""What does a precision cost on the reference cases? Stages against float32, and the authors' greedy answers.

python bench/reference.py            # every precision on both tiny checkpoints of tests/data/reference
python bench/reference.py --only int4

Their weights are random, so that a single flipped token changes the rest of an answer: it is the harshest case, not a typical one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ending import ending

from vitrail.benchmark.device import device_fields
from vitrail.engine import Engine
from vitrail_export.exporter import ExportOptions, export_checkpoint
from vitrail_export.verify import verify

ROOT = Path(__file__).parents[1]
RESULTS, REFERENCE = ROOT / "bench" / "results", ROOT / "tests" / "data" / "reference"
PICTURES = REFERENCE / "images"
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "float32"},
    "fp16": {"precision": "float16", "vision_precision": "float16"},
    "int8": {"precision": "int8", "vision_precision": "int8"},
    "int8, int8 cache": {"precision": "int8", "cache": "int8", "calibration": PICTURES},
    "int4": {"precision": "int4"},
    "int4 gptq": {"precision": "int4", "quantizer": "gptq", "calibration": PICTURES},
    "w8a8": {"precision": "w8a8"},
    "int8, w8a8 prompts": {"precision": "int8", "prefill": "w8a8"},
    "int4, w8a8 prompts": {"precision": "int4", "prefill": "w8a8"},
}


@ending()
def main() -> None:
    sys.path.append(str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    for name in parser.parse_args().only:
        for model in ("internvl2-tiny", "internvl3-tiny"):
            card = measure(model, name)
            slug = f"{model}-{list(PRECISIONS).index(name)}-{name.replace(', ', '-').replace(' ', '-')}"
            (RESULTS / f"reference-{slug}.json").write_text(json.dumps(card) + "\n", encoding="utf-8")
            print(json.dumps(card), flush=True)


def measure(model: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "artifacts"
        export_checkpoint(REFERENCE / model, out, options=ExportOptions(**PRECISIONS[name]))
        cosines = {parity.stage: round(parity.cosine, 6) for parity in verify(out, REFERENCE / model)}
        return {
            "bench": "reference",
            "model": model,
            "precision": name,
            **device_fields(),
            **cosines,
            **answers(out, model),
        }


def answers(out: Path, model: str) -> dict[str, int]:
    """Of the authors' greedy tokens, how many come first and unbroken."""
    from tests.conftest import case_messages, case_options, expected_cases  # noqa: PLC0415

    kept = wanted = first = 0
    cases = [case for name, case in expected_cases(model).items() if name in ("text_only", "multi_turn")]
    with Engine.load(out, slots=1) as engine:
        for case in cases:
            ids = engine.chat(case_messages(case), **case_options(case)).choices[0].token_ids
            same = [a == b for a, b in zip(ids, case["greedy_ids"], strict=False)]
            kept += same.index(False) if False in same else len(same)
            first, wanted = first + same[0], wanted + len(case["greedy_ids"])
    return {"cases": len(cases), "first_tokens": first, "tokens_kept": kept, "tokens": wanted}


if __name__ == "__main__":
    main()
