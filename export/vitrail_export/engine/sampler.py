"""The graph that draws tokens beside a decoder's engine: the parts of `vitrail_export.sampling` in float32.

TensorRT has no float64: its parser makes float32 of it without a word. So sums are off by a share of the whole, and a draw
that lies within that of a boundary is said to be inexact: it is drawn on the host, and the same seed gives the same token.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import optimize

from vitrail.errors import ExportError
from vitrail.providers import Cpu
from vitrail.sample import LOWEST_TEMPERATURE, Draw
from vitrail.sample import draw as draw_on_host
from vitrail.session.inference import open_session
from vitrail.session.trt_sampler import OPTIONS, RESULTS, options_of
from vitrail_export.sampling import CANDIDATES, FLOAT, Likeliest, Sums, above_last, draw, model

ROUNDED = Sums(FLOAT, error=2.0**-17)
"""A sum of 512 weights or of a vocabulary's is off by about 2^-20 of it, as its exponentials are."""
GROUP = 16
"""Candidates are looked for among the largest of so many ids each: TopK over a vocabulary is slow in TensorRT."""


def sampler_engine_graph(vocab: int) -> ir.Model:
    """logits float32 [m, vocab] and OPTIONS [m] -> token_ids int64 [m], exact bool [m], as `sampler_graph` but for greedy rows."""

    def build(op: Any, logits: Any, *options: Any) -> tuple[Any, Any]:
        temperature, *others = (op.Unsqueeze(each, [1]) for each in options)
        peak = op.ReduceMax(logits, axes=[1], keepdims=1)
        scale = op.Max(temperature, LOWEST_TEMPERATURE)
        ids, exact = draw(op, logits, peak, scale, _likeliest(op, logits, vocab), others, ROUNDED)
        return ids, exact.drawn

    types = {name: ir.DataType.from_numpy(np.dtype(dtype)) for name, dtype in OPTIONS.items()}
    made = model("sampler", types, build, vocab=vocab)
    optimize(made)  # what follows from the vocabulary's size is known here
    return made


def _likeliest(op: Any, logits: Any, vocab: int) -> Likeliest:
    """Among the groups with the largest logits, which hold all that are larger than the last one found."""
    groups = -(-vocab // GROUP)
    padded = op.Pad(logits, [0, 0, 0, groups * GROUP - vocab], -float("inf"))
    grouped = op.Reshape(padded, [0, groups, GROUP])
    chosen = min(groups, CANDIDATES)
    _, at = op.TopK(op.ReduceMax(grouped, axes=[2], keepdims=0), [chosen], axis=1, _outputs=2)
    held = op.Reshape(op.GatherND(grouped, op.Unsqueeze(at, [2]), batch_dims=1), [0, chosen * GROUP])
    inside = op.Constant(value=ir.tensor(np.arange(GROUP)[None, None]))
    names = op.Reshape(op.Add(op.Mul(op.Unsqueeze(at, [2]), GROUP), inside), [0, chosen * GROUP])
    count = min(vocab, CANDIDATES)
    values, places = op.TopK(held, [count], axis=1, _outputs=2)
    values, ids = _in_order(op, values, op.GatherElements(names, places, axis=1), count)
    certain = above_last(op, values) if count < vocab else None
    return Likeliest(values, ids, op.Constant(value_int=count), certain)


def _in_order(op: Any, values: Any, ids: Any, count: int) -> tuple[Any, Any]:
    """Equal values by their ids: each one's place is how many come before it, which float32 counts without error."""
    mine, others = (op.Unsqueeze(values, [2]), op.Unsqueeze(values, [1]))
    lower = op.Less(op.Unsqueeze(ids, [1]), op.Unsqueeze(ids, [2]))
    before = op.Or(op.Greater(others, mine), op.And(op.Equal(others, mine), lower))
    place = op.ReduceSum(op.Cast(before, to=FLOAT), [2], keepdims=0)
    _, order = op.TopK(place, [count], axis=1, largest=0, _outputs=2)
    return op.GatherElements(values, order, axis=1), op.GatherElements(ids, order, axis=1)


def write_sampler(scratch: Path, *, vocab: int) -> Path:
    """The graph's file. Raises ExportError where it does not draw what `vitrail.sample` draws."""
    path = scratch / "sampler.onnx"
    ir.save(sampler_engine_graph(vocab), path)
    check_sampler(path, vocab)
    return path


CURE = "install the onnxruntime and onnxscript that vitrail is tested with (constraints.txt), or leave --decoder out"
LEAST_SHARE = 0.8
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 40},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.02},
)
TEMPERATURES = (0.3, 1.0)
"""What a check draws by: every filter at every temperature."""


def check_sampler(graph: Path, vocab: int) -> None:
    """Raise ExportError unless every token that is said to be exact is the host's, and most are."""
    random = np.random.default_rng(0)
    draws = [
        Draw(temperature, uniform=float(uniform), **filters)
        for filters, temperature in product(FILTERS, TEMPERATURES)
        for uniform in random.random(4)
    ]
    logits = random.exponential(2, (len(draws), vocab)).astype(np.float16).astype(np.float32)
    session = open_session(graph, Cpu())
    token_ids, exact = session.run(list(RESULTS), {"logits": logits, **options_of(draws, vocab)})
    expected = [draw_on_host(row, each, each.uniform) for row, each in zip(logits, draws, strict=True)]
    wrong = np.flatnonzero(exact & (token_ids != expected))
    if len(wrong):
        at = wrong[0]
        raise ExportError(
            f"the sampler's graph draws token {token_ids[at]} by {draws[at]}, the host {expected[at]}; {CURE}"
        )
    if exact.mean() < LEAST_SHARE:
        raise ExportError(
            f"the sampler's graph is sure of {exact.sum()} draws of {exact.size}, of less than {LEAST_SHARE:.0%}; {CURE}"
        )
