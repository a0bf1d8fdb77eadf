"""Who takes part: one line each. `bits` are those of the weights; only like is compared with like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Part = Literal["vision", "language"]
OURS = "vitrail"
REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant of one part. environment: of its own requirements, or ours; module: in bench.peers.workers;
    cache_bytes: of an element of its KV cache; extra: what its module is told besides.
    """

    name: str
    environment: str
    module: str
    precision: str
    bits: int
    cache_bytes: int = 2
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.environment == OURS


def _vitrail(
    name: str, precision: str, bits: int, artifacts: str, cache_bytes: int = 4, provider: str = "cpu"
) -> Entry:
    extra = {"artifacts": artifacts, "provider": provider}
    return Entry(f"vitrail {name}", OURS, "vitrail_ort", precision, bits, cache_bytes, extra)


def _openvino(part: Part, precision: str, bits: int) -> Entry:
    name = "OpenVINO" if part == "vision" else "OpenVINO GenAI"
    return Entry(f"{name} {precision}", "openvino", "openvino_genai_", precision, bits, 1, {"part": part})


CONTESTANTS: dict[Part, tuple[Entry, ...]] = {
    "vision": (
        _vitrail("int8", "int8", 8, "int8"),
        _vitrail("fp32", "fp32", 32, "int4"),
        _vitrail("bf16", "bf16", 16, "int4-w8a8-kv8", provider="openvino"),
        _vitrail("static int8", "int8", 8, "int8-static", provider="openvino"),
        _vitrail("static int8, onnxruntime", "int8", 8, "int8-static"),
        Entry("transformers bf16", "transformers", "torch_sdpa", "bf16", 16),
        _openvino("vision", "bf16", 16),
        _openvino("vision", "int8", 8),
    ),
    "language": (
        _vitrail("int4", "int4", 4, "int4"),
        _vitrail("int4, w8a8 prompts", "int4", 4, "int4-w8a8"),
        _vitrail("int4, w8a8 prompts, int8 cache", "int4", 4, "int4-w8a8-kv8", 1),
        _vitrail("int8", "int8", 8, "int8"),
        _vitrail("w8a8", "w8a8", 8, "w8a8"),
        _vitrail("w8a8, int8 cache", "w8a8", 8, "w8a8-kv8", 1),
        Entry("transformers bf16", "transformers", "torch_sdpa", "bf16", 16),
        _openvino("language", "int4", 4),
        _openvino("language", "int8", 8),
        Entry("onnxruntime-genai int4", "onnxruntime-genai", "ort_genai", "int4", 4, 4),
        Entry("llama.cpp Q4_0", "llama.cpp", "llama_cpp_", "q4_0", 4),
        Entry("llama.cpp Q8_0", "llama.cpp", "llama_cpp_", "q8_0", 8),
    ),
}
# What accuracy is measured against: the same weights in float32.
TRUTH = Entry(REFERENCE, "transformers", "torch_sdpa", "fp32", 32, 4)
KV8 = ("--kv-cache", "int8", "--calibration", "{pictures}")
EXPORTS = {
    "int4": ("--precision", "int4", "--vision-precision", "fp32"),
    "int8": ("--precision", "int8", "--vision-precision", "int8"),
    "int8-static": (
        "--precision",
        "int4",
        "--vision-precision",
        "int8-static",
        "--calibration",
        "{pictures}",
    ),
    "int4-w8a8": ("--precision", "int4", "--prefill", "w8a8"),
    "int4-w8a8-kv8": ("--precision", "int4", "--prefill", "w8a8", "--vision-precision", "fp16", *KV8),
    "w8a8": ("--precision", "w8a8"),
    "w8a8-kv8": ("--precision", "w8a8", *KV8),
}
"""Options of `vitrail export` for each of our artifacts."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is measured: the request's fields, and how much work one sample is (tiles, or tokens)."""

    part: Part
    kind: Literal["vision", "prefill", "decode"]
    size: int
    past: int = 0
    steps: int = 1

    @property
    def what(self) -> str:
        if self.kind == "vision":
            return f"vision, {self.size} tile{'s' * (self.size > 1)}"
        if self.kind == "prefill":
            return f"prefill, {self.size} tokens"
        return f"decode, batch {self.size} behind {self.past} tokens"

    @property
    def amount(self) -> int:
        return {"vision": self.size, "prefill": self.size, "decode": self.size * self.steps}[self.kind]

    @property
    def unit(self) -> str:
        return "ms a tile" if self.kind == "vision" else "tokens/s"

    def speed(self, seconds: float) -> float:
        return 1e3 * seconds / self.amount if self.kind == "vision" else self.amount / seconds

    def request(self, *, rounds: int) -> dict[str, int | str]:
        """room: tokens that a row grows by, warm-up included."""
        field_name = {"vision": "tiles", "prefill": "tokens", "decode": "rows"}[self.kind]
        found: dict[str, int | str] = {"stage": self.kind, field_name: self.size}
        if self.kind == "decode":
            found |= {"past": self.past, "steps": self.steps, "room": self.steps * (rounds + 1)}
        return found


PAST, STEPS = 1900, 16
STAGES = (
    Stage("vision", "vision", 1),
    Stage("vision", "vision", 7),
    Stage("language", "prefill", 512),
    Stage("language", "prefill", 1900),
    *(Stage("language", "decode", rows, PAST, STEPS) for rows in (1, 4, 8)),
)
