import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tests.conftest import REFERENCE

from vitrail.errors import ArtifactError, ExportError
from vitrail.manifest import load_manifest
from vitrail.session.table import open_table
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.quantize import block_size, pack_nibbles, restore, round_rows, scale_rows


def weights(rows=24, columns=256):
    return np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)


def dequantize(matrix, bits, block):
    return restore(round_rows(matrix, bits=bits, block=block), bits=bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_weight_is_within_half_a_step_of_its_code_but_those_beyond_the_last(bits):
    matrix, lowest = weights(), -(1 << (bits - 1))
    steps = np.repeat(scale_rows(matrix, bits=bits, block=32), 32, axis=1)
    kept = dequantize(matrix, bits, 32)
    inside = (matrix / steps >= lowest) & (matrix / steps <= -lowest - 1)
    assert np.all(np.abs(kept - matrix)[inside] <= steps[inside] * 0.5001)
    assert np.all(np.abs(kept - matrix) <= steps * 1.5)


def test_the_largest_weight_of_a_block_is_kept_exactly_in_int8():
    matrix = weights()
    kept = dequantize(matrix, 8, 64)
    at = np.abs(matrix[0, :64]).argmax()
    assert kept[0, at] == pytest.approx(matrix[0, at], rel=1e-6)


def test_int4_loses_a_fifth_less_than_by_sevenths_of_the_largest_weight():
    matrix = weights(256)
    blocks = matrix.reshape(256, -1, 128)
    steps = np.abs(blocks).max(2, keepdims=True) / 7
    plain = np.square(np.rint(blocks / steps) * steps - blocks).sum()
    assert np.square(dequantize(matrix, 4, 128) - matrix).sum() < 0.8 * plain


def test_scales_are_positive_as_tensorrt_wants_them():
    assert (scale_rows(weights(), bits=4, block=32) > 0).all()


def test_a_block_of_zeros_stays_zero():
    assert not dequantize(np.zeros((2, 32), np.float32), 4, 32).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_reads_the_codes_as_they_are_meant(bits):
    matrix, block = weights(), 32
    codes, _ = round_rows(matrix, bits=bits, block=block)
    packed = pack_nibbles(codes) if bits == 4 else codes
    x = np.random.default_rng(1).standard_normal((3, 256), dtype=np.float32)
    got = matmul_nbits(x, packed, scale_rows(matrix, bits=bits, block=block), bits, block)
    np.testing.assert_allclose(got, x @ dequantize(matrix, bits, block).T, atol=1e-4)


def matmul_nbits(x, packed, scales, bits, block):
    rows, columns = scales.shape[0], scales.shape[1] * block
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=bits,
        block_size=block,
        accuracy_level=1,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), rows])],
        [
            helper.make_tensor("w", TensorProto.UINT8, packed.shape, packed.tobytes(), raw=True),
            helper.make_tensor("s", TensorProto.FLOAT, scales.shape, scales.tobytes(), raw=True),
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


def test_the_block_is_the_largest_that_divides_the_inputs():
    assert [block_size(n, "w") for n in (2048, 96, 304)] == [128, 32, 16]


def test_inputs_that_no_block_divides_are_refused_with_a_cure():
    with pytest.raises(ExportError, match=r"'text\.x' has 100 inputs.*--precision fp16"):
        block_size(100, "text.x")


@pytest.mark.parametrize(("precision", "bits", "block"), [("int8", 8, 32), ("int4", 4, 32)])
def test_a_quantized_embedding_table_gives_the_rows_that_its_codes_stand_for(
    exported, precision, bits, block
):
    directory = exported("internvl2-tiny", embeddings=precision)
    manifest = load_manifest(directory)
    table = open_table(directory / manifest.artifacts["token_embeddings"].path, manifest.decoder)
    original = Checkpoint.open(REFERENCE / "internvl2-tiny").load("text.embed_tokens.weight")
    scales = scale_rows(original, bits=bits, block=block)
    ids = np.array([[0, 7], [1615, 3]])
    steps = np.repeat(scales, block, axis=1)[ids]
    most = 0.502 if precision == "int8" else 1.4  # int4 may cut off a block's largest
    assert table[ids].shape == (2, 2, 96)
    assert table[np.empty(0, np.int32)].shape == (0, 96)  # a prompt's chunk that is all picture
    assert np.all(np.abs(table[ids] - original[ids]) <= most * steps + 1e-3 * np.abs(original[ids]) + 1e-6)


def test_a_quantized_table_without_its_scales_is_refused(exported, tmp_path):
    directory = exported("internvl2-tiny", embeddings="int8")
    codes = tmp_path / "token_embeddings.npy"
    codes.write_bytes((directory / codes.name).read_bytes())
    with pytest.raises(ArtifactError, match=r"token_embedding_scales\.npy is no array"):
        open_table(codes, load_manifest(directory).decoder)
