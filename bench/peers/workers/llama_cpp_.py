"""llama.cpp through llama-cpp-python's low-level calls: batches of token ids, a KV cache of its own for every row.

precision: q4_0 or q8_0, as its own quantizer makes them from bf16 (the head in Q6_K or Q8_0).
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from bench.peers.worker import Array, Options

TYPES = {"q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0}
CHUNK = 512


class Contestant:
    packages = ("llama-cpp-python",)

    def __init__(self, options: Options) -> None:
        self._options = options
        self._context: Any = None
        self._vocab = 0
        self._tokens: Array = np.zeros(0, np.int32)
        self._cached = 0

    @property
    def _file(self) -> Path:
        return self._options.work / f"language-{self._options.precision}.gguf"

    def prepare(self) -> None:
        if self._file.exists():
            return
        whole = self._options.work / "language-bf16.gguf"
        if not whole.exists():
            write_gguf(self._options.work / "language", whole)
        settings = llama.llama_model_quantize_default_params()
        settings.ftype, settings.nthread = TYPES[self._options.precision], self._options.threads
        partial = self._file.with_name(self._file.name + ".partial")
        if llama.llama_model_quantize(str(whole).encode(), str(partial).encode(), ctypes.byref(settings)):
            raise RuntimeError(f"{whole.name} could not be quantized")
        partial.replace(self._file)

    def load(self, part: str) -> None:
        del part
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(
            str(self._file).encode(), llama.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"{self._file.name} could not be loaded")
        options, settings = self._options, llama.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = options.rows * options.context, options.rows
        settings.n_batch = settings.n_ubatch = CHUNK
        settings.n_threads = settings.n_threads_batch = options.threads
        settings.kv_unified = False
        self._context = llama.llama_init_from_model(self._model, settings)
        self._vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._batch = llama.llama_batch_init(CHUNK, 0, 1)

    def see(self, tiles: Array) -> Array:
        raise NotImplementedError

    def first(self, ids: Array) -> int:
        return int(np.argmax(self.logits(ids)))

    def logits(self, ids: Array) -> Array:
        memory = llama.llama_get_memory(self._context)
        llama.llama_memory_clear(memory, False)
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            last = start + len(part) == len(ids)
            rows = [
                (int(token), start + at, 0, last and at == len(part) - 1) for at, token in enumerate(part)
            ]
            self._run(rows)
        return self._logits_of(len(part) - 1)

    def begin(self, ids: Array, *, rows: int, steps: int) -> None:
        if len(ids) + steps > self._options.context:
            raise ValueError(f"{len(ids) + steps} tokens exceed a context of {self._options.context}")
        first = self.first(ids)
        for row in range(1, rows):
            llama.llama_memory_seq_cp(llama.llama_get_memory(self._context), 0, row, -1, -1)
        self._tokens, self._cached = np.full(rows, first, np.int32), len(ids)

    def decode(self, steps: int) -> None:
        count = len(self._tokens)
        for _ in range(steps):
            self._run([(int(token), self._cached, row, True) for row, token in enumerate(self._tokens)])
            self._tokens = np.array([int(np.argmax(self._logits_of(row))) for row in range(count)])
            self._cached += 1

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, row, whether its logits are wanted) of each."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for at, (token, position, row, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
        if code := llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")

    def _logits_of(self, at: int) -> Array:
        found = llama.llama_get_logits_ith(self._context, at)
        return np.ctypeslib.as_array(found, (self._vocab,)).copy()


def write_gguf(language: Path, out: Path) -> None:
    """A Llama checkpoint as llama.cpp's own converter writes it, without a vocabulary: ids are all that is asked."""
    import gguf  # noqa: PLC0415 - for converting alone

    config = json.loads((language / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, bits in bf16_tensors(language / "model.safetensors"):
        array = bits
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = interleaved(bits, heads if "q_proj" in name else kv_heads)
        target = names.get_name(name, try_suffixes=(".weight",))
        if array.ndim == 1:
            writer.add_tensor(target, (array.astype(np.uint32) << 16).view(np.float32))
        else:
            shape = array.shape
            writer.add_tensor(
                target,
                array.view(np.uint8),
                raw_shape=(*shape[:-1], 2 * shape[-1]),
                raw_dtype=gguf.GGMLQuantizationType.BF16,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(bits: Array, heads: int) -> Array:
    """Rows of each head in the order that llama.cpp's rotary embedding wants: pairs side by side."""
    rows, columns = bits.shape
    return np.ascontiguousarray(
        bits.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def bf16_tensors(path: Path) -> Any:
    """Names and uint16 arrays of a safetensors file in bf16."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (start + each for each in entry["data_offsets"])
            yield name, data[begin:end].view(np.uint16).reshape(entry["shape"])
