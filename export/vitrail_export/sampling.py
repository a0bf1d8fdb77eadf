"""The graphs that draw tokens where the logits are: `vitrail.sample` for many rows at once, on any device.

The runtime holds them as files; `python -m vitrail_export.sampling` writes them anew. Only operators that ONNX Runtime's
CUDA provider has without cuDNN, in versions that it has long had, and along no long axis where that is slow. What the
host computes from shapes is read by the host only: a CUDA graph holds no copies between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def greedy_graph() -> ir.Model:
    """logits float32 [m, vocab] -> token_ids int64 [m], of the largest logit, ties to the lowest id; exact bool [m],
    whether the logits are finite.
    """

    def build(op: Any, logits: Any) -> tuple[Any, Any]:
        peak = _largest(op, _in_blocks(op, logits, fill=-float("inf")))
        ids = _lowest_id(op, logits, peak)
        return op.Squeeze(ids, [1]), op.Squeeze(
            _finite(op, _sum(op, op.Exp(op.Sub(logits, peak)), FLOAT)), [1]
        )

    return _model("greedy", {}, build)


def sampler_graph() -> ir.Model:
    """As greedy_graph, for rows with OPTIONS, each [m]: temperature (0: greedy), top_k (0: all), top_p, min_p, and uniform in
    [0, 1). exact is false, too, where a draw needs more tokens than CANDIDATES.
    """

    def build(op: Any, logits: Any, *options: Any) -> tuple[Any, Any]:
        temperature, top_k, top_p, min_p, uniform = (op.Unsqueeze(each, [1]) for each in options)
        peak = _largest(op, _in_blocks(op, logits, fill=-float("inf")))
        scale = op.Max(temperature, LOWEST_TEMPERATURE)
        weights = op.Exp(op.Div(op.Sub(logits, peak), scale))
        mass = _sum(op, weights, DOUBLE)
        ranked = _Ranked(op, logits, peak, scale)
        kept, covered = ranked.filter(top_k, top_p, min_p, mass)
        by_rank = ranked.draw(kept, uniform)
        by_id = _draw_by_id(op, op.Where(op.Less(weights, min_p), 0.0, weights), uniform)
        greedy = op.Equal(temperature, 0.0)
        unranked = op.And(op.Equal(top_k, 0), op.GreaterOrEqual(top_p, 1.0))
        drawn = op.Where(unranked, by_id, by_rank)
        ids = op.Where(greedy, _lowest_id(op, logits, peak), drawn)
        exact = op.And(_finite(op, mass), op.Or(greedy, op.Or(unranked, covered)))
        return op.Squeeze(ids, [1]), op.Squeeze(exact, [1])

    return _model("sampler", OPTIONS, build)


class _Ranked:
    """The likeliest tokens of every row, most likely first, equal ones by id: their ids and weights [m, n].

    Which of equal values TopK takes, and in what order, is not certain: ordering is done again with the id in the key, and
    the last value found may have equals that were not.
    """

    def __init__(self, op: Any, logits: Any, peak: Any, scale: Any) -> None:
        self.op = op
        vocab = op.Shape(logits, start=1, end=2)
        self.count = op.Min(vocab, op.Constant(value_ints=[CANDIDATES]))
        found, ids = op.TopK(logits, self.count, axis=1, _outputs=2)
        depth = op.Sub(op.Cast(found, to=DOUBLE), op.Cast(peak, to=DOUBLE))
        key = op.Sub(depth, op.Mul(op.Cast(ids, to=DOUBLE), ID_STEP))
        _, order = op.TopK(key, self.count, axis=1, _outputs=2)
        self.ids, values = (op.GatherElements(each, order, axis=1) for each in (ids, found))
        self.weights = op.Exp(op.Div(op.Sub(values, peak), scale))
        self.certain = op.Greater(values, _last(op, values))

    def filter(self, top_k: Any, top_p: Any, min_p: Any, mass: Any) -> tuple[Any, Any]:
        """The weights [m, n], 0 for what the filters drop, each of what the one before left; and bool [m, 1], whether
        everything that they leave is among them.
        """
        op = self.op
        ranks = op.Range(0, op.Squeeze(self.count, [0]), 1)
        unlimited, whole = op.Equal(top_k, 0), op.GreaterOrEqual(top_p, 1.0)
        counted = op.Or(unlimited, op.Less(ranks, top_k))
        wide = op.Cast(op.Where(counted, self.weights, 0.0), to=DOUBLE)
        here = op.ReduceSum(wide, [1], keepdims=1)
        wanted = op.Mul(top_p, op.Where(unlimited, mass, here))
        nucleus = op.Or(whole, op.Less(op.CumSum(wide, 1, exclusive=1), wanted))
        likely = op.Not(op.Less(self.weights, min_p))
        kept = op.Where(op.And(op.And(counted, nucleus), likely), self.weights, 0.0)
        within = op.And(op.Not(unlimited), op.LessOrEqual(top_k, CANDIDATES))
        reached = op.And(unlimited, op.And(op.Not(whole), op.GreaterOrEqual(here, wanted)))
        uncertain = op.ReduceSum(op.Where(self.certain, 0.0, kept), [1], keepdims=1)
        return kept, op.And(op.Or(within, reached), op.Equal(uncertain, 0.0))

    def draw(self, weights: Any, uniform: Any) -> Any:
        """Ids [m, 1]."""
        op = self.op
        mass = op.CumSum(op.Cast(weights, to=DOUBLE), 1)
        target = op.Mul(uniform, _last(op, mass))
        return op.GatherElements(self.ids, _place(op, mass, target), axis=1)


def _draw_by_id(op: Any, weights: Any, uniform: Any) -> Any:
    """Ids [m, 1] drawn from weights [m, vocab] in the order of ids: first the block, then the place in it."""
    blocks = op.Cast(_in_blocks(op, weights, fill=0.0), to=DOUBLE)
    sums = op.ReduceSum(blocks, [2], keepdims=0)
    mass = op.CumSum(sums, 1)
    target = op.Mul(uniform, _last(op, mass))
    block = _place(op, mass, target)
    before = op.GatherElements(op.CumSum(sums, 1, exclusive=1), block, axis=1)
    inside = op.CumSum(op.GatherND(blocks, block, batch_dims=1), 1)
    place = _place(op, op.Add(inside, before), target)
    return op.Add(op.Mul(block, BLOCK), place)


def _place(op: Any, mass: Any, target: Any) -> Any:
    """The first place of growing mass [m, n] that is above target [m, 1], at most the last one that adds any."""
    above = _count(op, op.LessOrEqual(mass, target))
    return op.Min(above, _count(op, op.Less(mass, _last(op, mass))))


def _count(op: Any, condition: Any) -> Any:
    return op.Cast(op.ReduceSum(op.Cast(condition, to=FLOAT), [1], keepdims=1), to=INT64)


def _last(op: Any, values: Any) -> Any:
    return op.Gather(values, op.Constant(value_ints=[-1]), axis=1)


def _sum(op: Any, values: Any, dtype: ir.DataType) -> Any:
    """[m, vocab] -> [m, 1]"""
    return op.ReduceSum(op.Cast(values, to=dtype), [1], keepdims=1)


def _finite(op: Any, mass: Any) -> Any:
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


def _model(name: str, options: dict[str, ir.DataType], build: Callable[..., tuple[Any, Any]]) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name)
    builder = GraphBuilder(graph)
    logits = builder.input("logits", FLOAT, ["rows", "vocab"])
    given = [builder.input(each, dtype, ["rows"]) for each, dtype in options.items()]
    ids, exact = build(builder.op, logits, *given)
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
