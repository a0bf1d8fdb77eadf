"""How far is serving from what it is to reach? Four goals, each a ratio or a difference measured in turns.

python bench/goals.py --demo demo-artifacts                            # the small model
python bench/goals.py --model artifacts --only triton second --rounds 3 # published shapes

triton   a question through `vitrail serve` and the gRPC client, beside the same in this process
second   another question about the same picture: its time to first token, beside the first one's
streams  tokens per second of 16 questions at once, beside one at a time; one in four has a picture of one tile
steady   time per token of four answers while prompts are read, beside undisturbed; by pictures, and by text alone
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ending import ending

from vitrail.benchmark.device import device_fields
from vitrail.benchmark.load import Load, Tally
from vitrail.benchmark.measure import Asked, summarize
from vitrail.benchmark.sweep import run_sweep
from vitrail.benchmark.target import Target, artifacts, server
from vitrail.benchmark.workload import Workload, ask, questions, shapes
from vitrail.decoder import Settings
from vitrail.errors import ServerError
from vitrail.triton.options import ServerOptions
from vitrail.triton.repository import ServingSettings
from vitrail.triton.serve import serving

RESULTS = Path(__file__).parent / "results"
SLOTS = 16
GOALS = ("triton", "second", "streams", "steady")


class Reached(NamedTuple):
    """A goal: what was to be reached, what was, and the medians behind it."""

    goal: str
    wanted: str
    reached: str
    met: bool
    figures: dict[str, float]


@ending()
def main() -> None:
    options = read_arguments()
    if options.rounds < 1:
        raise SystemExit(f"error: --rounds is {options.rounds}; give at least 1")
    directory: Path = options.demo or options.model
    slots = SLOTS if "streams" in options.only else 4
    with open_targets(directory, triton="triton" in options.only, slots=slots) as (engine, client):
        measures: dict[str, Callable[[], list[Reached]]] = {
            "triton": lambda: triton(engine, client, rounds=options.rounds, small=options.demo is not None),
            "second": lambda: second(engine, rounds=options.rounds),
            "streams": lambda: streams(engine, rounds=options.rounds),
            "steady": lambda: steady(engine, rounds=options.rounds),
        }
        found = [reached for name in options.only for reached in measures[name]()]
        card = {
            "bench": "goals",
            **device_fields(),
            "target": engine.fields | ({"name": options.name} if options.name else {}),
            "rounds": options.rounds,
            "goals": [reached._asdict() for reached in found],
        }
    out = RESULTS / f"goals-{card['target']['name'].replace(' ', '-')}.json"
    out.write_text(json.dumps(card) + "\n", encoding="utf-8")
    for reached in found:
        print(
            f"{'met   ' if reached.met else 'missed'} {reached.goal}: {reached.reached} (wanted {reached.wanted})"
        )
    print(json.dumps(card))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--demo", type=Path, help="artifacts of a small model")
    which.add_argument("--model", type=Path, help="artifacts of published shapes")
    parser.add_argument("--only", nargs="+", choices=GOALS, default=GOALS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--name", help="what the result and its file are called; the artifacts' own name otherwise"
    )
    return parser.parse_args()


@contextmanager
def open_targets(directory: Path, *, triton: bool, slots: int) -> Iterator[tuple[Target, Target | None]]:
    """The artifacts in this process and, of the same settings, on a server."""
    with artifacts(directory, slots=slots) as engine:
        if not triton:
            yield engine, None
            return
        options = ServerOptions(grpc_port=0, http_port=0, metrics_port=0)
        settings = ServingSettings(decoder=Settings(slots=slots))
        with (
            serving(directory, options=options, settings=settings) as served,
            server(served.grpc_url, timeout_s=600) as client,
        ):
            yield engine, client


def triton(engine: Target, client: Target | None, *, rounds: int, small: bool) -> list[Reached]:
    """Latency of a question of 7 tiles and 32 tokens, on both routes; the small model's without picture, too."""
    assert client is not None
    found = []
    for tiles in (7, 0) if small else (7,):
        workload = Workload(tiles=(tiles,), output_tokens=32)
        pairs = [
            (latency_ms(engine.asked, one), latency_ms(client.asked, one))
            for one in asks(workload, engine, rounds + 1)
        ][1:]
        inside_ms, outside_ms = (median(column) for column in zip(*pairs, strict=True))
        more_ms = median(outside - inside for inside, outside in pairs)
        figures = {"in_process_ms": inside_ms, "triton_ms": outside_ms, "difference_ms": more_ms}
        name = f"through Triton, {tiles} tiles, 32 tokens"
        if small:
            found.append(Reached(name, "5 ms more", f"{more_ms:.1f} ms more", more_ms <= 5, figures))
        else:
            share = more_ms / inside_ms
            found.append(Reached(name, "5% more", f"{share:.1%} more", share <= 0.05, figures))
    return found


def second(engine: Target, *, rounds: int) -> list[Reached]:
    """The two questions of every conversation-to-be come one after the other."""
    pairs = []
    for one in asks(Workload(tiles=(13,), output_tokens=2), engine, rounds):
        picture, text = one.messages[0]["content"]
        again = [{"role": "user", "content": [picture, {"type": "text", "text": f"Or else: {text['text']}"}]}]
        pairs.append([ttft_ms(engine.asked, messages, one.options) for messages in (one.messages, again)])
    first_ms, second_ms = (median(column) for column in zip(*pairs, strict=True))
    share = second_ms / first_ms
    figures = {"first_ms": first_ms, "second_ms": second_ms}
    goal = "time to first token of a second question about 12 tiles"
    return [Reached(goal, "10% of the first's", f"{share:.1%}", share <= 0.1, figures)]


def streams(engine: Target, *, rounds: int) -> list[Reached]:
    """Rounds of one at a time and 16 at once, in turns."""
    speeds: dict[int, list[float]] = {1: [], SLOTS: []}
    for number in range(rounds):
        workload = Workload(tiles=(0, 0, 0, 1), output_tokens=64, seed=number)
        for count, requests in ((1, 8), (SLOTS, 4 * SLOTS)):
            (tally,) = run_sweep(
                engine, workload, [Load(concurrency=count, requests=requests)], timeout_s=600
            )
            speeds[count].append(sum(sample.tokens for sample in tally.answered) / tally.duration_s)
    one, many = median(speeds[1]), median(speeds[SLOTS])
    figures = {"one_tokens_per_s": one, "many_tokens_per_s": many}
    return [Reached("16 mixed streams", "3x one", f"{many / one:.1f}x", many >= 3 * one, figures)]


def steady(engine: Target, *, rounds: int) -> list[Reached]:
    """99th percentiles of the time per token of four streams, all rounds together."""
    found = []
    for what, disturbance in (
        ("12-tile pictures", {"tiles": (13,)}),
        ("prompts of text", {"tiles": (0,), "prompt_words": 250}),
    ):
        alone_ms: list[float] = []
        beside_ms: list[float] = []
        for number in range(rounds):
            workload = Workload(**disturbance, output_tokens=2, streams=4, stream_tokens=64, seed=number)  # type: ignore[arg-type]
            before, _, beside = tallies(engine, workload, Load(concurrency=1, requests=4))
            for tally, times in ((before, alone_ms), (beside, beside_ms)):
                times += [sample.tpot_ms for sample in tally.answered if sample.tpot_ms is not None]
        undisturbed, disturbed = summarize(alone_ms), summarize(beside_ms)
        assert undisturbed is not None
        assert disturbed is not None
        ratio = disturbed.p99 / undisturbed.p99
        figures = {
            "alone_p50_ms": undisturbed.p50,
            "alone_p99_ms": undisturbed.p99,
            "beside_p50_ms": disturbed.p50,
            "beside_p99_ms": disturbed.p99,
        }
        found.append(Reached(f"p99 TPOT beside {what}", "2x", f"{ratio:.2f}x", ratio <= 2, figures))
    return found


def tallies(target: Target, workload: Workload, load: Load) -> list[Tally]:
    """Every stage of a load. Raises what the first request that failed says."""
    found = run_sweep(target, workload, [load], timeout_s=600)
    for tally in found:
        for failure in tally.failures:
            raise ServerError(failure.message)
    return found


def asks(workload: Workload, target: Target, count: int) -> Iterator[Any]:
    drawn = questions(workload, shapes(workload, target.tiling), stage=f"goals {workload.tiles}")
    return (ask(next(drawn), workload) for _ in range(count))


def latency_ms(asked: Asked, one: Any) -> float:
    began_s = time.perf_counter()
    for _ in asked.stream(one.messages, **one.options):
        pass
    return 1e3 * (time.perf_counter() - began_s)


def ttft_ms(asked: Asked, messages: Any, options: dict[str, Any]) -> float:
    began_s = time.perf_counter()
    deltas = asked.stream(messages, **options)
    next(iter(deltas))
    found_ms = 1e3 * (time.perf_counter() - began_s)
    for _ in deltas:
        pass
    return found_ms


if __name__ == "__main__":
    main()
