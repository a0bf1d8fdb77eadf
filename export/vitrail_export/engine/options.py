"""What `vitrail engine` is asked for, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import OptionError
from vitrail.manifest import EngineBuilder, EnginePrecision, Manifest, Stage

CONTEXT_TOKENS = 8192
CURRENT = "current"
QUANTIZED: frozenset[EnginePrecision] = frozenset({"fp8", "int8"})


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to build from an export.

    targets: compute capabilities such as sm_86, or `current`, the GPU of this machine; none: what suits the builder.
    max_tiles: the most that one run of vision encoder and projector takes. precision: of the vision encoder.
    slots, context_tokens (None: the model's limit, at most 8192) and prefill_chunk (tokens) shape the decoder's profiles.
    checkpoint: where the export does not hold a graph that an engine can be made of, it is made anew from this.
    pictures: the parity is measured on these as well; fp8 and int8 are calibrated on them.
    """

    builder: EngineBuilder = "tensorrt-rtx"
    targets: tuple[str, ...] = ()
    max_tiles: int = 13
    precision: EnginePrecision = "fp16"
    decoder: bool = False
    slots: int = 4
    context_tokens: int | None = None
    prefill_chunk: int = 512
    checkpoint: str | Path | None = None
    pictures: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        lowest = {"max_tiles": 1, "slots": 1, "prefill_chunk": 2}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.precision in QUANTIZED and not self.pictures:
            raise OptionError(
                f"precision {self.precision} is calibrated on pictures like those it will see; "
                "name some: --pictures FOLDER, or build --precision fp16"
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        return ("vision_encoder", "projector", *(("decoder",) if self.decoder else ()))

    def precision_of(self, stage: Stage) -> EnginePrecision:
        """Projector and decoder multiply in half precision: their activations stay as they are in fp8 and int8, too."""
        return self.precision if stage == "vision_encoder" or self.precision == "bf16" else "fp16"

    def capacity(self, manifest: Manifest) -> int:
        """Tokens of a slot of the KV cache; OptionError for more than the model knows."""
        limit = manifest.decoder.context_tokens
        wanted = self.context_tokens or min(limit, CONTEXT_TOKENS)
        if not self.prefill_chunk <= wanted <= limit:
            raise OptionError(
                f"a context of {wanted} tokens is outside {self.prefill_chunk} (the prefill chunk) to {limit} "
                f"(this model's limit); choose --context between them"
            )
        return wanted
