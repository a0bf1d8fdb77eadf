"""onnxruntime-genai: its own builder's graph and its generator, which takes token ids.

precision int4: blocks of 128 multiplied in int8, the head in int8, logits of the last token only, as vitrail exports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from bench.peers.worker import Array, Options

BUILD = (
    "block_size=128",
    "accuracy_level=4",
    "matmul_mixed_precision=last_matmul:int8",
    "prune_lm_head=true",
    "hf_remote=false",
)


class Contestant:
    packages = ("onnxruntime-genai", "onnxruntime")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._model: Any = None
        self._generator: Any = None

    @property
    def _directory(self) -> Path:
        return self._options.work / f"ort-genai-{self._options.precision}"

    def prepare(self) -> None:
        if (self._directory / "genai_config.json").exists():
            return
        options = self._options
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(options.work / "language"), "-o", str(self._directory)]
        command += ["-p", options.precision, "-e", "cpu", "-c", str(options.work / "cache")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, "--extra_options", *BUILD], check=True, env=environment)

    def load(self, part: str) -> None:
        del part
        config = og.Config(str(self._directory))
        session = {"intra_op_num_threads": self._options.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = og.Model(config)

    def see(self, tiles: Array) -> Array:
        raise NotImplementedError

    def first(self, ids: Array) -> int:
        return int(self._read(ids, rows=1, room=1).get_next_tokens()[0])

    def logits(self, ids: Array) -> Array:
        generator = self._new(rows=1, length=len(ids) + 1)
        generator.append_tokens(ids[None])
        return generator.get_logits().reshape(-1).astype(np.float32)

    def begin(self, ids: Array, *, rows: int, steps: int) -> None:
        self._generator = None
        self._generator = self._read(ids, rows=rows, room=steps + 1)

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self._generator.generate_next_token()

    def _read(self, ids: Array, *, rows: int, room: int) -> Any:
        generator = self._new(rows=rows, length=len(ids) + room)
        generator.append_tokens(np.repeat(ids[None], rows, axis=0))
        generator.generate_next_token()
        return generator

    def _new(self, *, rows: int, length: int) -> Any:
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(
            max_length=length,
            batch_size=rows,
            do_sample=False,
            min_length=length,
            past_present_share_buffer=True,
        )
        return og.Generator(self._model, parameters)
