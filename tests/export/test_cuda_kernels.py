"""Every operator of every graph for ONNX Runtime's CUDA provider beside the kernels that it registers, without a GPU.

tests/data/cuda_kernels.json: of each operator the kernels that serve nodes of these opsets, by the names that its schema gives
the types of inputs and outputs.
"""

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
from tests.conftest import CHECKPOINTS, REFERENCE

from vitrail import session as sessions
from vitrail.errors import OptionError
from vitrail.providers import Cuda, parse_provider
from vitrail.session.kernels import check_decoder_kernels, check_kernels
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.decoder import build_decoder
from vitrail_export.exporter import decoder_contract, vision_contract
from vitrail_export.graph import CONTRIB
from vitrail_export.options import ExportOptions
from vitrail_export.projector import build_projector
from vitrail_export.published import PUBLISHED
from vitrail_export.vision import build_vision_encoder

REGISTRY = json.loads((Path(__file__).parents[1] / "data" / "cuda_kernels.json").read_text(encoding="utf-8"))
OPERATORS = {each["op"]: each for each in REGISTRY["operators"]}
NAMES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
}
ARITHMETIC = ("float32", "float16", "bfloat16")
EVERY_PART = ("lm_head", "first", "last", "v", "down")
PICTURES = REFERENCE / "images"


def decoder_options():
    """Every form of a language model, in both dialects."""
    forms = [{"precision": each} for each in ARITHMETIC]
    forms += [
        {"precision": precision, "activations": activations}
        for precision, activations in itertools.product(("int8", "int4"), ARITHMETIC)
    ]
    forms += [{**form, "sensitive": kept} for form in forms[-3:] for kept in ((), EVERY_PART)]
    for form, dialect in itertools.product(forms, ("ort", "standard")):
        yield {**form, "dialect": dialect}
    yield from ({**form, "cache": "int8", "calibration": PICTURES} for form in forms)
    yield {"precision": "w8a8"}


VISION_OPTIONS = [
    {"vision_precision": precision, "dialect": dialect}
    for precision, dialect in itertools.product(ARITHMETIC, ("ort", "standard"))
] + [{"vision_precision": "int8"}]


@cache
def configuration(name):
    return PUBLISHED[name].config if name in PUBLISHED else Checkpoint.open(REFERENCE / name).config


def decoder_graph(config, options):
    form = options.decoder_form
    if options.cache == "int8":
        form = replace(form, cache=object())
    return build_decoder(replace(config.text, layers=2), form).graph


def vision_graphs(config, options):
    short = replace(config, vision=replace(config.vision, layers=2))
    yield build_vision_encoder(short, options.vision_form).graph
    yield build_projector(short, options.vision_form).graph


@dataclass(frozen=True)
class Typed:
    """A node and the types that its schema's names stand for."""

    node: ir.Node
    operator: dict
    types: dict

    @classmethod
    def of(cls, node, types):
        prefix = f"{CONTRIB}." if node.domain == CONTRIB else ""
        operator = OPERATORS[prefix + node.op_type]
        found = defaultdict(set)
        last = len(operator["inputs"]) - 1
        for at, value in enumerate(node.inputs):
            if value is not None:
                found[operator["inputs"][min(at, last)]].add(types[value])
        assert all(len(each) == 1 for each in found.values()), (node.op_type, found)
        return cls(
            node, operator, {**operator.get("fixed", {}), **{k: each.pop() for k, each in found.items()}}
        )

    def outputs(self):
        """The type of each output."""
        names = self.operator["outputs"]
        for at, value in enumerate(self.node.outputs):  # Split has as many as it likes
            name = names[min(at, len(names) - 1)]
            yield value, self.types.get(name) or self.told(name)

    def told(self, name):
        if self.node.op_type == "Cast":
            return type_name(ir.DataType(self.node.attributes["to"].as_int()))
        if self.node.op_type == "DequantizeLinear":
            return self.types["T2"]
        return name

    @property
    def has_kernel(self):
        own = {**self.types, self.operator["outputs"][0]: next(self.outputs())[1]}
        return any(
            all(own[name] in allowed for name, allowed in kernel.items() if name in own)
            for kernel in self.operator["kernels"]
        )


def type_name(dtype):
    return NAMES.get(dtype.name, dtype.name.lower())


def lacking(graph):
    """The operators, with their types, that the provider has no kernel for."""
    types = {value: type_name(value.dtype) for value in [*graph.inputs, *graph.initializers.values()]}
    missing = set()
    for node in graph:
        if node.op_type == "Constant":
            (held,) = node.attributes.values()
            whole = held.name in ("value_int", "value_ints")
            types[node.outputs[0]] = "int64" if whole else type_name(held.as_tensor().dtype)
            continue
        if node.op_type == "CastLike":  # a function, which becomes Cast
            types[node.outputs[0]] = types[node.inputs[1]]
            continue
        typed = Typed.of(node, types)
        types |= dict(typed.outputs())
        if not typed.has_kernel or restores_blocks(typed):
            missing.add(f"{node.op_type} {sorted(typed.types.items())}")
    return missing


def restores_blocks(typed):
    """Codes by blocks beside anything but the product that ONNX Runtime makes MatMulNBits of them with. Its own kernel,
    which is for int4 alone, restores whole matrices in every step.
    """
    readers = [reader.op_type for reader in typed.node.outputs[0].consumers()]
    return typed.node.op_type == "DequantizeLinear" and readers != ["MatMul"]


def refused(check, *arguments, **options):
    try:
        check(*arguments, **options)
    except OptionError:
        return True
    return False


@pytest.mark.parametrize("options", list(decoder_options()), ids=str)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_language_model_is_refused_exactly_where_an_operator_has_no_kernel(checkpoint, options):
    config, chosen = configuration(checkpoint), ExportOptions(**options)
    missing = lacking(decoder_graph(config, chosen))
    assert refused(check_decoder_kernels, decoder_contract(config, chosen), Cuda()) == bool(missing), missing


@pytest.mark.parametrize("options", VISION_OPTIONS, ids=str)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_vision_encoder_is_refused_exactly_where_an_operator_has_no_kernel(checkpoint, options):
    config, chosen = configuration(checkpoint), ExportOptions(**options)
    missing = set().union(*map(lacking, vision_graphs(config, chosen)))
    assert refused(check_kernels, vision_contract(config, chosen), Cuda()) == bool(missing), missing


@pytest.mark.parametrize(
    "graph", sorted(Path(sessions.__file__).parent.glob("*.onnx")), ids=lambda path: path.stem
)
def test_tokens_are_drawn_by_operators_that_have_kernels(graph):
    assert lacking(ir.load(graph).graph) == set()


def test_static_int8_has_kernels_and_multiplies_in_float32_so_it_is_refused(exported):
    directory = exported("internvl2-tiny", vision_precision="int8-static", calibration=PICTURES)
    graph = ir.load(directory / "vision_encoder.onnx").graph
    products = [node for node in graph if node.op_type == "MatMul"]
    assert {each.inputs[0].producer().op_type for each in products} == {"DequantizeLinear"}
    options = ExportOptions(vision_precision="int8-static", calibration=PICTURES)
    with pytest.raises(
        OptionError, match=r"int8-static is for CPUs.*multiply in float32; .*--vision-precision fp16"
    ):
        check_kernels(vision_contract(configuration("internvl2-tiny"), options), Cuda())


@pytest.mark.parametrize("checkpoint", [*CHECKPOINTS, *PUBLISHED])
def test_heads_are_what_grouped_attention_takes(checkpoint):
    """Rotated inside: by 16; FlashAttention's: at most 256."""
    text = configuration(checkpoint).text
    assert (text.head_dim % 16, text.heads % text.kv_heads) == (0, 0)
    assert text.head_dim <= 256


def test_lengths_are_where_grouped_attention_reads_them():
    """int32: of every row on the device, the longest in the host's memory as a scalar."""
    graph = decoder_graph(configuration("internvl2-tiny"), ExportOptions(activations="float16"))
    attention = [node for node in graph if node.op_type == "GroupQueryAttention"]
    given = {value.name: value for value in graph.inputs}
    for node in attention:
        assert node.inputs[5] is given["last_positions"]
        assert node.inputs[6] is given["total_length"]
    assert (given["last_positions"].dtype, given["total_length"].dtype) == (ir.DataType.INT32,) * 2
    assert len(given["total_length"].shape) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, r"GroupQueryAttention of float32: the CPU .*--activations fp16"),
        ({"precision": "w8a8"}, r"GroupQueryAttention of float32, MatMulIntegerToFloat: .*--precision fp16"),
        (
            {"precision": "int8", "activations": "bfloat16", "dialect": "standard"},
            r"int8 weights beside activations in bf16 .*--dialect ort, or with --activations fp16",
        ),
    ],
    ids=str,
)
def test_what_has_no_kernel_is_told_with_what_to_export_instead(options, words):
    contract = decoder_contract(configuration("internvl2-tiny"), ExportOptions(**options))
    with pytest.raises(OptionError, match=words):
        check_decoder_kernels(contract, Cuda())


@pytest.mark.parametrize(
    ("provider", "gpu", "words"),
    [
        ("cuda", "sm_75", r"sm_80 or newer, and this GPU is sm_75; export again without --kv-cache int8"),
        ("cuda:0,attention=efficient", "sm_90", r"attention=efficient, only with auto and flash"),
        ("cuda:0,attention=cudnn", None, r"attention=cudnn, only with auto and flash"),
        ("cuda:0,attention=flash", "sm_75", r"sm_80"),
        ("cuda:0,attention=flash", "sm_80", None),
        ("cuda", "sm_120", None),
        ("cpu", None, None),
    ],
)
def test_an_int8_cache_is_refused_where_no_attention_reads_it(provider, gpu, words):
    options = ExportOptions(activations="float16", cache="int8", calibration=PICTURES)
    contract = decoder_contract(configuration("internvl2-tiny"), options)
    check = (check_decoder_kernels, contract, parse_provider(provider))
    if words is None:
        assert not refused(*check, gpu=gpu)
    else:
        with pytest.raises(OptionError, match=words):
            check[0](*check[1:], gpu=gpu)
