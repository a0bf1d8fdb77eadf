"""OpenVINO: vision on its runtime, the language model on OpenVINO GenAI's continuous batching, which serves token ids.

precision: bf16 (the runtime's own choice where the processor has it) or int8 (NNCF, static, on calibration tiles) for
vision, int4 or int8 (optimum-intel; int4 in groups of 128, embeddings and head in int8) for the language model.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from bench.peers.worker import Array, Options

MOST_STEPS = 10_000
BATCHED_TOKENS = 512


class Contestant:
    packages = ("openvino", "openvino-genai", "optimum-intel", "nncf")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._vision: Any = None
        self._pipeline: Any = None
        self._handles: list[Any] = []
        self._requests = 0

    @property
    def _directory(self) -> Path:
        return self._options.work / f"openvino-{self._options.extra['part']}-{self._options.precision}"

    def prepare(self) -> None:
        if (self._directory / "openvino_model.xml").exists():
            return
        if self._options.extra["part"] == "vision":
            convert_vision(self._options, self._directory)
        else:
            convert_language(self._options, self._directory)

    def load(self, part: str) -> None:
        if part == "vision":
            properties = {"INFERENCE_NUM_THREADS": self._options.threads, "PERFORMANCE_HINT": "LATENCY"}
            compiled = ov.Core().compile_model(self._directory / "openvino_model.xml", "CPU", properties)
            self._vision = compiled.create_infer_request()
        else:
            self._pipeline = self._open_pipeline()

    def see(self, tiles: Array) -> Array:
        return self._vision.infer([tiles])[0].copy()

    def first(self, ids: Array) -> int:
        handle = self._add(ids, new_tokens=1)
        self._run(lambda: not self._pipeline.has_non_finished_requests())
        (result,) = handle.read_all()
        return int(result.generated_ids[0])

    def logits(self, ids: Array) -> Array:
        """GenAI tells none: the same file on the runtime itself."""
        count, request = len(ids), self._plain
        request.reset_state()
        feeds = {
            "input_ids": ids[None].astype(np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for each in request.model_inputs for name in each.names}
        found = request.infer({name: value for name, value in feeds.items() if name in names})
        return found[0][0, -1].astype(np.float32)

    @cached_property
    def _plain(self) -> Any:
        properties = {"INFERENCE_NUM_THREADS": self._options.threads}
        model = ov.Core().compile_model(self._directory / "openvino_model.xml", "CPU", properties)
        return model.create_infer_request()

    def begin(self, ids: Array, *, rows: int, steps: int) -> None:
        for handle in self._handles:
            handle.cancel()
        self._run(lambda: not self._pipeline.has_non_finished_requests())
        self._handles = [
            self._add(ids, new_tokens=steps + rows * len(ids) // BATCHED_TOKENS + 2) for _ in range(rows)
        ]
        self._run(lambda: all(handle.can_read() for handle in self._handles))

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self._pipeline.step()

    def _open_pipeline(self) -> Any:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_seqs = self._options.rows
        scheduler.max_num_batched_tokens = BATCHED_TOKENS
        properties = {"INFERENCE_NUM_THREADS": self._options.threads}
        return genai.ContinuousBatchingPipeline(self._directory, scheduler, "CPU", properties)

    def _add(self, ids: Array, *, new_tokens: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        self._requests += 1
        return self._pipeline.add_request(self._requests, ov.Tensor(ids[None].astype(np.int64)), config)

    def _run(self, done: Any) -> None:
        for _ in range(MOST_STEPS):
            if done():
                return
            self._pipeline.step()
        raise RuntimeError(f"not done after {MOST_STEPS} steps")


def convert_vision(options: Options, out: Path) -> None:
    """transformers' encoder and projector, traced; pictures come as uint8 and are normalized in the graph."""
    import torch  # noqa: PLC0415 - for converting alone
    from bench.peers.workers.torch_sdpa import Look  # noqa: PLC0415

    tiles = torch.zeros(1, 3, options.tile_size, options.tile_size, dtype=torch.uint8)
    with torch.inference_mode():
        model = ov.convert_model(Look(options.work / "checkpoint", torch.float32), example_input=tiles)
    model.reshape([-1, 3, options.tile_size, options.tile_size])
    if options.precision == "int8":
        import nncf  # noqa: PLC0415

        with np.load(options.work / "inputs.npz") as inputs:
            seen = list(inputs["calibration"][:, None])
        model = nncf.quantize(
            model,
            nncf.Dataset(seen),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(seen),
        )
    out.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, out / "openvino_model.xml", compress_to_fp16=False)


def convert_language(options: Options, out: Path) -> None:
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
    command += ["--model", str(options.work / "language"), "--task", "text-generation-with-past"]
    command += ["--weight-format", options.precision, "--disable-convert-tokenizer"]
    if options.precision == "int4":
        command += ["--sym", "--group-size", "128", "--ratio", "1.0"]
    subprocess.run([*command, str(out)], check=True)
