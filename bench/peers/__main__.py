"""Measure vitrail beside its peers on this CPU: same weights, in turns, in one run.

    make bench-peers                                     # or python -m bench.peers: installs, prepares, measures
    python -m bench.peers --stages vision                # a part of it; the results file keeps the other parts
    python -m bench.peers --stages decode --only vitrail "llama.cpp"
    python -m bench.peers --layers 0                     # full depth

Weights are random in the published widths. A peer that cannot be had is listed with the reason. Ends with one JSON line,
which is also in bench/results/peers-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.ending import ending
from bench.peers.card import Card
from bench.peers.contest import CONTESTANTS, STAGES, Entry, Part, Stage
from bench.peers.install import ROOT
from bench.peers.prepare import prepare
from bench.peers.probe import Probe
from bench.peers.process import WorkerError
from bench.peers.session import Contest

from vitrail.machine import physical_cores
from vitrail_export.config_json import read_config

KINDS = ("vision", "prefill", "decode")


@ending()
def main() -> None:
    args = arguments()
    name = args.model + (f"-{args.layers}-layers" if args.layers else "")
    work = args.work / name
    stages = [stage for stage in STAGES if stage.kind in args.stages and wanted(args.sizes, stage)]
    parts: list[Part] = list(dict.fromkeys(stage.part for stage in stages))
    entries = {part: [each for each in CONTESTANTS[part] if named(each, args.only)] for part in parts}
    require_contest(args, stages, entries)
    exports = {each.extra["artifacts"]: 0 for part in parts for each in entries[part] if each.ours}
    try:
        prepare(work, args.model, layers=args.layers or None, exports=exports)
    except WorkerError as error:
        sys.exit(f"nothing measured: {error}")
    card = Card(
        args.out / f"peers-{name}.json",
        name=name,
        layers=args.layers,
        threads=args.threads,
        rounds=args.rounds,
        config=read_config(work / "checkpoint"),
    )
    contest = Contest(
        work=work,
        card=card,
        probe=Probe(threads=args.threads),
        threads=args.threads,
        rounds=args.rounds,
        timeout_s=args.timeout,
        check=args.check,
    )
    for part in parts:
        contest.run(part, [stage for stage in stages if stage.part == part], entries[part])
    card.finish(plots=args.plots)
    print(card.text())
    print(json.dumps(card.fields))
    sys.exit(1 if card.ours_failed else 0)


def named(entry: Entry, only: list[str] | None) -> bool:
    return only is None or any(text.lower() in entry.name.lower() for text in only)


def require_contest(args: argparse.Namespace, stages: list[Stage], entries: dict[Part, list[Entry]]) -> None:
    """Exit, before any result is written again, where nothing would be measured."""
    if args.rounds < 1:
        sys.exit(f"nothing measured: --rounds is {args.rounds}; give at least 1")
    if not stages:
        sizes = sorted({stage.size for stage in STAGES if stage.kind in args.stages})
        sys.exit(f"nothing measured: no stage has a size of {args.sizes}; give some of {sizes}")
    if not any(entries.values()):
        names = ", ".join(each.name for part in entries for each in CONTESTANTS[part])
        sys.exit(f"nothing measured: no contestant is called {args.only}; there are {names}")


def wanted(sizes: list[int] | None, stage: Stage) -> bool:
    return sizes is None or stage.size in sizes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="internvl2-2b")
    parser.add_argument("--layers", type=int, default=4, help="of each tower; 0 for the published number [4]")
    parser.add_argument("--stages", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--sizes", nargs="+", type=int, help="of these stages only: tiles, tokens, rows")
    parser.add_argument("--only", nargs="+", help="contestants whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds for one action of one contestant"
    )
    parser.add_argument("--no-check", dest="check", action="store_false", help="leave accuracy out")
    parser.add_argument("--work", type=Path, default=ROOT / "models" / "peers", help="where models go")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs" / "benchmark")
    return parser.parse_args()


if __name__ == "__main__":
    main()
