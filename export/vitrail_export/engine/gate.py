"""Before an engine is built: its graph beside the same graph in float32, on ONNX Runtime's CPU provider.

Each stage gets the float32 results of the stage before it, so that an error is attributed to the stage that makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.dtypes import port_dtype
from vitrail.errors import ExportError
from vitrail.manifest import EnginePrecision, Judge, Manifest, Parity, Stage
from vitrail.providers import Cpu
from vitrail.session.inference import open_session
from vitrail.session.table import open_table
from vitrail_export.engine.cases import SMOOTH, Case, outliers
from vitrail_export.engine.options import QUANTIZED
from vitrail_export.graph import Array
from vitrail_export.verify import TEXT_TOKENS, VISUAL_TOKENS, Stages, finite, parity, sample_ids

FLOORS: dict[EnginePrecision, float] = {"fp16": 0.999, "bf16": 0.999, "fp8": 0.99, "int8": 0.99}
"""Lowest cosine to float32: of fp16 in every case, of bf16 in all that are not artificial, of fp8 and int8 on the pictures
they are calibrated on.
"""
UNJUDGED_FLOOR = 0.99
"""Of a graph in emulation where PyTorch judges the precision: a mistake in lowering shows far below."""
HOW: dict[Judge, str] = {"onnxruntime": "", "emulation": " in emulation", "pytorch": " in PyTorch"}
INSTEAD: dict[EnginePrecision, str] = {
    "fp16": "--precision bf16",
    "bf16": "--precision fp16",
    "fp8": "--precision fp16",
    "int8": "--precision fp16",
}
BY_PYTORCH: dict[Judge, str] = {
    "emulation": ", or name its checkpoint with --checkpoint where torch is installed: PyTorch then judges in place of the "
    "emulation, which rounds more often"
}
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


@dataclass(slots=True)
class Gate:
    """Tries one stage after the other; `results` are the float32 ones of each, by the case's name. `exact`: all of them, in
    the order of the cases.
    """

    directory: Path
    manifest: Manifest
    results: dict[Stage, dict[str, Array]] = field(default_factory=dict)
    exact: dict[Stage, list[Array]] = field(default_factory=dict)

    def check(
        self,
        stage: Stage,
        cases: list[Case],
        *,
        exact: Path,
        lowered: Path,
        precision: EnginePrecision,
        judge: Judge = "onnxruntime",
    ) -> Parity:
        """exact: the float32 graph, lowered: the engine's. Raises ExportError for one that is not finite or not close.

        The float32 graph runs once, however often a stage is tried with the same cases.
        """
        expected = self.exact.get(stage) or run(stage, exact, cases)
        self.exact[stage] = expected
        self.results[stage] = {
            case.name: result for case, result in zip(cases, expected, strict=True) if not case.ignored
        }
        floor = FLOORS[precision] if judge != "pytorch" else UNJUDGED_FLOOR
        here: Judge = "emulation" if precision == "bf16" else "onnxruntime"
        return compare(stage, precision, cases, run(stage, lowered, cases), expected, judge=here, floor=floor)

    def projector_cases(self) -> list[Case]:
        found = [Case(name, {"features": features}) for name, features in self._features().items()]
        extreme, _ = outliers(found[0].feeds["features"])
        return [*found, Case("extreme activations", {"features": extreme})]

    def decoder_cases(self) -> list[Case]:
        """Prompts [P, d]: the first visual tokens of the last picture, then ids of the whole vocabulary."""
        name, embeds = [each for each in self._embeds().items() if each[0] != "extreme activations"][-1]
        prompt = np.concatenate([embeds[0, :VISUAL_TOKENS], self.token_rows(sample_ids(self.manifest))])
        extreme, _ = outliers(prompt)
        return [Case(name, {"prompt": prompt}), Case("extreme activations", {"prompt": extreme})]

    def _features(self) -> dict[str, Array]:
        """Of the exported graph, where the vision encoder was not tried."""
        held = self.results.get("vision_encoder")
        return held or {SMOOTH: Stages(self.directory, self.manifest).features().astype(np.float32)}

    def _embeds(self) -> dict[str, Array]:
        held = self.results.get("projector")
        if held is None:
            stages = Stages(self.directory, self.manifest)
            typed = next(iter(self._features().values())).astype(port_dtype(self.manifest.vision.dtype))
            held = {SMOOTH: stages.embeds(typed).astype(np.float32)}
        return held

    def token_rows(self, ids: list[int]) -> Array:
        path = self.directory / self.manifest.artifacts["token_embeddings"].path
        rows: Array = open_table(path, self.manifest.decoder)[np.array(ids)].astype(np.float32)
        return rows


def run(stage: Stage, graph: Path, cases: list[Case]) -> list[Array]:
    """Each case's output, float32. Unoptimized, so that every operator rounds as the graph says."""
    if stage != "decoder":
        return [outputs[0] for outputs in run_all(graph, cases)]
    session = open_session(graph, Cpu(), optimize=False)
    return [logits(session, case.feeds["prompt"]) for case in cases]


def run_all(graph: Path, cases: list[Case]) -> list[list[Array]]:
    """Every output of each case, float32."""
    session = open_session(graph, Cpu(), optimize=False)
    given = (*session.get_inputs(), *session.get_overridable_initializers())
    types = {each.name: DTYPES[each.type] for each in given if each.type in DTYPES}
    feeds = [{name: x.astype(types[name]) for name, x in case.feeds.items()} for case in cases]
    return [[x.astype(np.float32) for x in session.run(None, each)] for each in feeds]


def logits(session: Any, prompt: Array) -> Array:
    """A prompt [P, d] but its last token in one step, the last in another: logits [TEXT_TOKENS, vocab]."""
    types = {each.name: each for each in session.get_inputs()}
    caches = {
        name: np.zeros((1, each.shape[1], len(prompt), each.shape[3]), DTYPES[each.type])
        for name, each in types.items()
        if name.startswith("past.")
    }
    found, last = [], len(prompt) - 1
    for start, stop, wanted in (
        (0, last, range(len(prompt) - TEXT_TOKENS, last)),
        (last, last + 1, range(1)),
    ):
        step = {
            "inputs_embeds": prompt[None, start:stop].astype(DTYPES[types["inputs_embeds"].type]),
            "past_lengths": np.array([start], np.int32),
            "logit_positions": np.array(wanted, np.int64),
        }
        result, *written = session.run(None, {**step, **caches})
        caches = dict(zip(caches, written, strict=True))
        found.append(result)
    return np.concatenate(found)


def compare(
    stage: Stage,
    precision: EnginePrecision,
    cases: list[Case],
    found: list[Array],
    expected: list[Array],
    *,
    judge: Judge,
    floor: float,
) -> Parity:
    """The lowest cosine and the largest error of the cases that count; the others must be finite as well.

    Raises ExportError naming the case that fails. judge: what `found` was computed by.
    """
    each = []
    for case, got, exact in zip(cases, found, expected, strict=True):
        where = f"{stage} in {precision}{HOW[judge]}, given {case.name}"
        cure = f"build with {INSTEAD[precision]}"
        bad = np.count_nonzero(~np.isfinite(got))
        if bad:
            raise ExportError(f"{where}: {bad} of {got.size} outputs are not finite; {cure}")
        one = parity(stage, case.compared(got), case.compared(finite(stage, exact)))
        if (precision in QUANTIZED and not case.real) or (precision == "bf16" and case.artificial):
            continue
        if one.cosine < floor:
            raise ExportError(
                f"{where}, has cosine {one.cosine:.6f} to float32, below {floor}; {cure}{BY_PYTORCH.get(judge, '')}"
            )
        each.append(one)
    worst, largest = min(one.cosine for one in each), max(one.max_abs_error for one in each)
    return Parity(stage=stage, cosine=worst, max_abs_error=largest)
