"""The graphs that draw tokens where the logits are: `vitrail.sample` for many rows at once, on any device.

The runtime holds those for ONNX Runtime as files; `python -m vitrail_export.sampling` writes them anew. Only operators that its
CUDA provider has without cuDNN, in versions that it has long had, and along no long axis where that is slow. What the
host computes from shapes is read by the host only: a CUDA graph holds no copies between the two. TensorRT, which has no
float64, gets a graph of its own (`vitrail_export.engine.sampler`), of the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir
from onnxscript import GraphBuilder

from vitrail.sample import LOWEST_TEMPERATURE

OPSET, IR_VERSION = 17, 10
BLOCK = 256
CANDIDATES = 512  # so many of the likeliest tokens are ranked
NO_ID = float(1 << 24)  # float32 counts so far
ID_STEP = (
    2.0**-44
)  # by which a float64 tells ids apart, and no two logits of float32 that are larger than 1/4
FLOAT, DOUBLE, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.BOOL
OPTIONS = {"temperature": FLOAT, "top_k": INT64, "top_p": DOUBLE, "min_p": FLOAT, "uniform": DOUBLE}


@dataclass(frozen=True, slots=True)
class Sums:
    """The type that weights are added up in, and the share of a whole by which a sum may be off in it. 0: none that matters."""

    dtype: ir.DataType
    error: float = 0.0

    def wide(self, op: Any, values: Any) -> Any:
        return op.Cast(values, to=self.dtype)

    def sure(self, op: Any, values: Any, bound: Any, whole: Any) -> list[Any]:
        """Whether all of values [m, n] are far enough from the bound [m, 1] that rounding put none on its other side:
        bool [m, 1], or nothing where that is certain.
        """
        if not self.error:
            return []
        near = op.Less(op.Abs(op.Sub(values, bound)), op.Mul(whole, self.error))
        return [op.Equal(_count(op, near), 0)]


EXACT = Sums(DOUBLE)


def greedy_graph() -> ir.Model:
    """logits float32 [m, vocab] -> token_ids int64 [m], of the largest logit, ties to the lowest id; exact bool [m],
    whether the logits are finite.
    """

    def build(op: Any, logits: Any) -> tuple[Any, Any]:
        peak = _largest(op, _in_blocks(op, logits, fill=-float("inf")))
        mass = op.ReduceSum(op.Exp(op.Sub(logits, peak)), [1], keepdims=1)
        return _lowest_id(op, logits, peak), finite(op, mass)

    return model("greedy", {}, build)


def sampler_graph() -> ir.Model:
    """As greedy_graph, for rows with OPTIONS, each [m]: temperature (0: greedy), top_k (0: all), top_p, min_p, and uniform in
    [0, 1). exact is false, too, where a draw needs more tokens than CANDIDATES.
    """

    def build(op: Any, logits: Any, *options: Any) -> tuple[Any, Any]:
        temperature, *others = (op.Unsqueeze(each, [1]) for each in options)
        peak = _largest(op, _in_blocks(op, logits, fill=-float("inf")))
        scale = op.Max(temperature, LOWEST_TEMPERATURE)
        likeliest = _likeliest(op, logits, peak)
        drawn, exact = draw(op, logits, peak, scale, likeliest, others, EXACT)
        greedy = op.Equal(temperature, 0.0)
        ids = op.Where(greedy, _lowest_id(op, logits, peak), drawn)
        return ids, op.Or(op.And(greedy, exact.finite), exact.drawn)

    return model("sampler", OPTIONS, build)


class Exact(NamedTuple):
    """bool [m, 1]: whether the logits are finite, and whether, moreover, the token is what `vitrail.sample` draws."""

    finite: Any
    drawn: Any


class Likeliest(NamedTuple):
    """Tokens of every row, most likely first, equal ones by id: values and ids [m, n], and n, an int64 scalar.

    certain: bool [m, n], whether none of a token's equals is missing; None where none of any is.
    """

    values: Any
    ids: Any
    count: Any
    certain: Any | None


def draw(
    op: Any, logits: Any, peak: Any, scale: Any, likeliest: Likeliest, options: Sequence[Any], sums: Sums
) -> tuple[Any, Exact]:
    """Ids [m, 1], from logits [m, vocab], whose largest are `peak` [m, 1], and the other OPTIONS [m, 1]."""
    top_k, top_p, min_p, uniform = options
    weights = op.Exp(op.Div(op.Sub(logits, peak), scale))
    mass = op.ReduceSum(sums.wide(op, weights), [1], keepdims=1)
    ranked = _Ranked(op, likeliest, peak, scale, sums)
    kept, covered = ranked.filter(top_k, top_p, min_p, mass)
    by_rank, sure_by_rank = ranked.draw(kept, uniform)
    likely = op.Where(op.Less(weights, min_p), 0.0, weights)
    by_id, sure_by_id = _draw_by_id(op, likely, uniform, sums)
    unranked = op.And(op.Equal(top_k, 0), op.GreaterOrEqual(top_p, 1.0))
    ids = op.Where(unranked, by_id, by_rank)
    sure_by_id += sums.sure(op, weights, min_p, min_p)
    drawn = op.Or(_all(op, [unranked, *sure_by_id]), _all(op, [op.Not(unranked), covered, *sure_by_rank]))
    whole = finite(op, mass)
    return ids, Exact(whole, op.And(whole, drawn))


def _likeliest(op: Any, logits: Any, peak: Any) -> Likeliest:
    """Which of equal values TopK takes, and in what order, is not certain: they are ordered again with the id in the key."""
    count = op.Min(op.Shape(logits, start=1, end=2), op.Constant(value_ints=[CANDIDATES]))
    found, ids = op.TopK(logits, count, axis=1, _outputs=2)
    depth = op.Sub(op.Cast(found, to=DOUBLE), op.Cast(peak, to=DOUBLE))
    key = op.Sub(depth, op.Mul(op.Cast(ids, to=DOUBLE), ID_STEP))
    _, order = op.TopK(key, count, axis=1, _outputs=2)
    values, ids = (op.GatherElements(each, order, axis=1) for each in (found, ids))
    return Likeliest(values, ids, op.Squeeze(count, [0]), above_last(op, values))


def above_last(op: Any, values: Any) -> Any:
    """Of the largest values of a row, those that are larger than the last, which may have equals that are not among them."""
    return op.Greater(values, _last(op, values))


class _Ranked:
    """The likeliest tokens and their weights [m, n]."""

    def __init__(self, op: Any, found: Likeliest, peak: Any, scale: Any, sums: Sums) -> None:
        self.op, self.found, self.sums = op, found, sums
        self.weights = op.Exp(op.Div(op.Sub(found.values, peak), scale))

    def filter(self, top_k: Any, top_p: Any, min_p: Any, mass: Any) -> tuple[Any, Any]:
        """The weights [m, n], 0 for what the filters drop, each of what the one before left; and bool [m, 1], whether
        that is certain and everything that they leave is among them.
        """
        op, sums = self.op, self.sums
        ranks = op.Range(0, self.found.count, 1)
        unlimited, whole = op.Equal(top_k, 0), op.GreaterOrEqual(top_p, 1.0)
        counted = op.Or(unlimited, op.Less(ranks, top_k))
        wide = sums.wide(op, op.Where(counted, self.weights, 0.0))
        here = op.ReduceSum(wide, [1], keepdims=1)
        wanted = op.Mul(top_p, op.Where(unlimited, mass, here))
        before = op.CumSum(wide, 1, exclusive=1)
        nucleus = op.Or(whole, op.Less(before, wanted))
        likely = op.Not(op.Less(self.weights, min_p))
        kept = op.Where(op.And(op.And(counted, nucleus), likely), self.weights, 0.0)
        within = op.And(op.Not(unlimited), op.LessOrEqual(top_k, CANDIDATES))
        reached = op.And(unlimited, op.And(op.Not(whole), op.GreaterOrEqual(here, wanted)))
        near = [op.Or(whole, each) for x in (before, here) for each in sums.sure(op, x, wanted, mass)]
        near += sums.sure(op, self.weights, min_p, min_p)
        if self.found.certain is not None:
            near.append(op.Equal(op.ReduceSum(op.Where(self.found.certain, 0.0, kept), [1], keepdims=1), 0.0))
        return kept, _all(op, [op.Or(within, reached), *near])

    def draw(self, weights: Any, uniform: Any) -> tuple[Any, list[Any]]:
        """Ids [m, 1], and whether they are certain, as Sums.sure tells it."""
        op, sums = self.op, self.sums
        mass = op.CumSum(sums.wide(op, weights), 1)
        last = _last(op, mass)
        target = op.Mul(uniform, last)
        ids = op.GatherElements(self.found.ids, _place(op, mass, target), axis=1)
        return ids, sums.sure(op, mass, target, last)


def _draw_by_id(op: Any, weights: Any, uniform: Any, sums: Sums) -> tuple[Any, list[Any]]:
    """Ids [m, 1] drawn from weights [m, vocab] in the order of ids: first the block, then the place in it."""
    blocks = sums.wide(op, _in_blocks(op, weights, fill=0.0))
    each = op.ReduceSum(blocks, [2], keepdims=0)
    mass = op.CumSum(each, 1)
    last = _last(op, mass)
    target = op.Mul(uniform, last)
    block = _place(op, mass, target)
    before = op.GatherElements(op.CumSum(each, 1, exclusive=1), block, axis=1)
    inside = op.Add(op.CumSum(op.GatherND(blocks, block, batch_dims=1), 1), before)
    place = _place(op, inside, target)
    sure = [*sums.sure(op, mass, target, last), *sums.sure(op, inside, target, last)]
    return op.Add(op.Mul(block, BLOCK), place), sure


def _place(op: Any, mass: Any, target: Any) -> Any:
    """The first place of growing mass [m, n] that is above target [m, 1], at most the last one that adds any."""
    above = _count(op, op.LessOrEqual(mass, target))
    return op.Min(above, _count(op, op.Less(mass, _last(op, mass))))


def _count(op: Any, condition: Any) -> Any:
    return op.Cast(op.ReduceSum(op.Cast(condition, to=FLOAT), [1], keepdims=1), to=INT64)


def _all(op: Any, conditions: Sequence[Any]) -> Any:
    return reduce(op.And, conditions)


def _last(op: Any, values: Any) -> Any:
    return op.Gather(values, op.Constant(value_ints=[-1]), axis=1)


def finite(op: Any, mass: Any) -> Any:
    """Mass is at most the vocabulary's size; where a logit is NaN or the largest infinite, it is NaN."""
    return op.Less(op.Cast(mass, to=FLOAT), 1e30)


def _in_blocks(op: Any, values: Any, *, fill: float) -> Any:
    """[m, vocab] -> [m, blocks, BLOCK], the last one filled up."""
    vocab = op.Shape(values, start=1, end=2)
    missing = op.Mod(op.Neg(vocab), op.Constant(value_ints=[BLOCK]))
    pads = op.Concat(op.Constant(value_ints=[0, 0, 0]), missing, axis=0)
    return op.Reshape(op.Pad(values, pads, fill), op.Constant(value_ints=[0, -1, BLOCK]))


def _largest(op: Any, blocks: Any) -> Any:
    """[m, blocks, BLOCK] -> [m, 1]"""
    return _extreme(op, _extreme(op, blocks, axis=2, largest=1), axis=1, largest=1)


def _lowest_id(op: Any, logits: Any, peak: Any) -> Any:
    """The first id [m, 1] whose logit is the peak [m, 1]. By hand: which of equal ones TopK takes is not certain."""
    end = op.Squeeze(op.Shape(logits, start=1, end=2), [0])
    ids = op.Where(op.Equal(logits, peak), op.Cast(op.Range(0, end, 1), to=FLOAT), NO_ID)
    blocks = _in_blocks(op, ids, fill=NO_ID)
    return op.Cast(_extreme(op, _extreme(op, blocks, axis=2, largest=0), axis=1, largest=0), to=INT64)


def _extreme(op: Any, values: Any, *, axis: int, largest: int) -> Any:
    """The largest or smallest along an axis, which goes, except axis 1, which stays with length 1."""
    found, _ = op.TopK(values, op.Constant(value_ints=[1]), axis=axis, largest=largest, _outputs=2)
    return op.Squeeze(found, [2]) if axis == 2 else found


def model(
    name: str,
    options: Mapping[str, ir.DataType],
    build: Callable[..., tuple[Any, Any]],
    *,
    vocab: int | str = "vocab",
) -> ir.Model:
    """build(op, logits, *options) -> token ids int64 and `exact` bool, both [m, 1]."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name)
    builder = GraphBuilder(graph)
    logits = builder.input("logits", FLOAT, ["rows", vocab])
    given = [builder.input(each, dtype, ["rows"]) for each, dtype in options.items()]
    ids, exact = (builder.op.Squeeze(each, [1]) for each in build(builder.op, logits, *given))
    for value, label, dtype in ((ids, "token_ids", INT64), (exact, "exact", BOOL)):
        value.dtype, value.shape, value.name = dtype, ir.Shape(["rows"]), label
        builder.add_output(value, label)
    for node in graph:
        node.metadata_props.clear()
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="vitrail")


def write_graphs(directory: Path) -> None:
    ir.save(greedy_graph(), directory / "greedy.onnx")
    ir.save(sampler_graph(), directory / "sampler.onnx")


if __name__ == "__main__":
    from vitrail import session

    write_graphs(Path(session.__file__).parent)
