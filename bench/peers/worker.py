"""The far end: one contestant in a process of its own, asked by one JSON object a line, answering one a line.

python -m bench.peers.worker MODULE '{"work": ..., "precision": ..., "threads": 2, ...}'

    {"do": "prepare"}                                   writes what `load` reads, where it is missing
    {"do": "load", "part": "vision", "inputs": FILE}    -> {"versions": {...}}
    {"do": "check", "part": "vision", "outputs": FILE}  what it makes of the inputs, for comparing
    {"do": "begin", "stage": "decode", ...}             untimed: what a stage needs before it is measured
    {"do": "measure", "stage": "decode", ...}           -> {"seconds": ...}
    {"do": "quit"}

An error is answered by {"error": ...}. Whatever libraries print goes to stderr. Needs numpy alone, and what MODULE needs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = Any


@dataclass(frozen=True, slots=True)
class Options:
    """What a contestant is told. work: where models lie; threads it may use; context: tokens of a row, at most `rows`."""

    work: Path
    precision: str
    threads: int
    rows: int
    context: int
    tile_size: int
    extra: dict[str, str]

    @classmethod
    def read(cls, text: str) -> Options:
        fields = json.loads(text)
        return cls(**{**fields, "work": Path(fields["work"])})


class Contestant(Protocol):
    """What a module's `Contestant` class does. Ids are int32, of one prompt; tiles uint8 [n, 3, S, S]."""

    packages: tuple[str, ...]

    def __init__(self, options: Options) -> None: ...

    def prepare(self) -> None:
        """Write the model's files, where they are missing."""
        ...

    def load(self, part: str) -> None:
        """part: vision or language."""
        ...

    def see(self, tiles: Array) -> Array:
        """Embeds [n, tokens, d], float32, in host memory."""
        ...

    def first(self, ids: Array) -> int:
        """The most likely token behind a prompt that nothing is known of."""
        ...

    def logits(self, ids: Array) -> Array | None:
        """Of that token, float32 [vocab]; None where the engine does not tell."""
        ...

    def begin(self, ids: Array, *, rows: int, steps: int) -> None:
        """Cache the prompt in so many rows of their own, and leave room for so many tokens more."""
        ...

    def decode(self, steps: int) -> None:
        """Greedy steps over all rows that were begun."""
        ...


class Served:
    """A contestant and the requests that it can be asked."""

    def __init__(self, contestant: Contestant) -> None:
        self._contestant = contestant
        self._inputs: dict[str, Array] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        return getattr(self, f"_{request['do']}")(request) or {}

    def _prepare(self, _: dict[str, Any]) -> None:
        self._contestant.prepare()

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        with np.load(request["inputs"]) as file:
            self._inputs = dict(file)
        self._contestant.load(request["part"])
        return {"versions": {name: version(name) for name in self._contestant.packages}}

    def _check(self, request: dict[str, Any]) -> None:
        found: dict[str, Array] = {}
        if request["part"] == "vision":
            found["embeds"] = self._contestant.see(self._inputs["tiles"][:2])
        else:
            prompts = self._inputs["checks"]
            found["first"] = np.array([self._contestant.first(ids) for ids in prompts])
            logits = [self._contestant.logits(ids) for ids in prompts]
            if all(each is not None for each in logits):
                found["logits"] = np.stack(logits).astype(np.float32)
        np.savez(request["outputs"], **found)

    def _begin(self, request: dict[str, Any]) -> None:
        if request["stage"] == "decode":
            ids = self._inputs["prompt"][: request["past"]]
            self._contestant.begin(ids, rows=request["rows"], steps=request["room"])

    def _measure(self, request: dict[str, Any]) -> dict[str, float]:
        began_s = time.perf_counter()
        self._stage(request)()
        return {"seconds": time.perf_counter() - began_s}

    def _stage(self, request: dict[str, Any]) -> Callable[[], object]:
        contestant = self._contestant
        if request["stage"] == "vision":
            tiles = self._inputs["tiles"][: request["tiles"]]
            return lambda: contestant.see(tiles)
        if request["stage"] == "prefill":
            ids = self._inputs["prompt"][: request["tokens"]]
            return lambda: contestant.first(ids)
        return lambda: contestant.decode(request["steps"])


def main() -> None:
    module, options = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    served: Served | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "quit":
            break
        try:
            if served is None:
                served = Served(importlib.import_module(module).Contestant(Options.read(options)))
            answer = served.answer(request)
        except Exception as error:  # noqa: BLE001 - a contestant that fails is a result
            reason = str(error).strip().partition("\n")[0][:300]
            answer = {"error": f"{type(error).__name__}: {reason}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
