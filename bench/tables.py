"""Write the tables between `<!-- bench: NAME -->` and `<!-- end -->` in the documents from bench/results.

python bench/tables.py           # rewrite
python bench/tables.py --check   # exit 1 where a table is stale
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "demo" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

COLUMNS = {
    "reference": [
        ("checkpoint", "{model}"),
        ("precision", "{precision}"),
        ("cosine: vision", "{vision_encoder:.6f}"),
        ("projector", "{projector:.6f}"),
        ("language model", "{decoder:.6f}"),
        ("first tokens kept", "{first_tokens} of {cases}"),
        ("tokens kept", "{tokens_kept} of {tokens}"),
    ],
    "export": [
        ("model", "{model}"),
        ("language model, vision", "{precision}, {vision_precision}"),
        ("checkpoint", "{checkpoint_gib} GiB"),
        ("artifacts", "{artifacts_gib} GiB"),
        ("time", "{seconds:.0f} s"),
        ("peak memory", "{peak_rss_gib} GiB"),
        ("largest tensor", "{largest_tensor_gib} GiB"),
    ],
    "memory": [
        ("model", "{model}"),
        ("decoder/vision", "{precision}"),
        ("run as", "{how}"),
        ("slots x context", "{slots} x {context}"),
        ("tiles of a picture, of a run", "{tiles}, {tiles_per_run}"),
        ("planned", "{planned_mib} MiB"),
        ("peak used", "{peak_mib} MiB"),
        ("planned / used", "{planned_over_used:.2f}"),
    ],
    "demo": [
        ("skill", "{skill}"),
        ("n", "{n}"),
        ("right", "{score:.1%}"),
        ("95% interval", "{interval[0]:.1%} to {interval[1]:.1%}"),
        ("with `--max-tiles 1`", "{thumbnail:.1%}"),
    ],
    "precision": [
        ("export options", "`{options}`"),
        ("size", "{artifacts_mib} MiB"),
        ("right", "{score:.1%}"),
        ("against the first", "{difference[difference]:+.1%}"),
        ("95% interval", "{difference[interval][0]:+.1%} to {difference[interval][1]:+.1%}"),
        ("McNemar's p", "{difference[p]:.2g}"),
        ("loss", "{loss:.4f}"),
    ],
    "goals": [
        ("model", "{target[name]}"),
        ("what", "{goal}"),
        ("goal", "{wanted}"),
        ("reached", "{reached}"),
        ("", "{verdict}"),
    ],
    "peers": [
        ("model", "{model}"),
        ("measured", "{what}"),
        ("by", "{who}"),
        ("speed", "{speed}"),
        ("to vitrail", "{ratio}"),
        ("of the limit", "{limit}"),
        ("peak memory", "{memory}"),
        ("accuracy", "{accuracy}"),
    ],
    "mixed": [
        ("bound", "{target[settings][tpot_slowdown]}"),
        ("", "{title}"),
        ("answered", "{request_count}"),
        (
            "TTFT p50, p99",
            "{metrics[time_to_first_token][p50]:.0f}, {metrics[time_to_first_token][p99]:.0f} ms",
        ),
        (
            "TPOT p50, p99",
            "{metrics[time_per_output_token][p50]:.1f}, {metrics[time_per_output_token][p99]:.1f} ms",
        ),
        ("longest gap in 100", "{metrics[inter_chunk_latency][p99]:.0f} ms"),
    ],
    "serve": [
        ("model", "{target[name]}"),
        ("asked", "{asked}"),
        ("load", "{title}"),
        ("requests/s", "{metrics[request_throughput][avg]:.2f}"),
        ("tokens/s", "{metrics[output_token_throughput][avg]:.1f}"),
        (
            "TTFT p50, p99",
            "{metrics[time_to_first_token][p50]:.0f}, {metrics[time_to_first_token][p99]:.0f} ms",
        ),
        (
            "TPOT p50, p99",
            "{metrics[time_per_output_token][p50]:.1f}, {metrics[time_per_output_token][p99]:.1f} ms",
        ),
        ("failed", "{error_request_count}"),
    ],
}


def main() -> None:
    stale = [
        document for document in DOCUMENTS if refreshed(document) != document.read_text(encoding="utf-8")
    ]
    if "--check" in sys.argv[1:]:
        sys.exit(f"stale tables, run bench/tables.py: {', '.join(map(str, stale))}" if stale else 0)
    for document in stale:
        document.write_text(refreshed(document), encoding="utf-8")
        print(f"rewrote {document}")


def refreshed(document: Path) -> str:
    text = document.read_text(encoding="utf-8")
    return BLOCK.sub(lambda found: found[1] + table(found[2]) + found[3], text)


def table(bench: str) -> str:
    """A Markdown table of every result of a bench, and a line on where it was measured; a column, where that was in several places."""
    cards = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted((ROOT / "bench" / "results").glob(f"{bench}-*.json"))
    ]
    several = len({card["cpu"] for card in cards}) > 1
    columns = [*COLUMNS[bench], *([("processor", "{cpu}")] if several else [])]
    rows = [" | ".join(name for name, _ in columns), " | ".join("---" for _ in columns)]
    rows += [" | ".join(cell.format(**record) for _, cell in columns) for record in records(cards)]
    where = sorted(
        {f"{card['cpu']}, {card['cores']} cores, onnxruntime {card['onnxruntime']}" for card in cards}
    )
    return "\n" + "".join(f"| {row} |\n" for row in rows) + f"\nMeasured on: {'; '.join(where)}.\n"


def records(cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the rows are made of: each card, or each stage, goal or line of a card that has some."""
    return [
        {**card, **part, "asked": asked(card), "verdict": verdict(part)}
        for card in cards
        for part in card.get("stages") or card.get("goals") or card.get("table") or [{}]
    ]


def verdict(goal: dict[str, Any]) -> str:
    return "met" if goal.get("met") else "missed"


def asked(card: dict[str, Any]) -> str:
    target = card.get("target", {})
    return f"gRPC, {target['route']}" if "route" in target else target.get("target", "")


if __name__ == "__main__":
    main()
