"""What to make of a checkpoint, and what does not go together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import onnx_ir as ir

from vitrail.dtypes import Arithmetic
from vitrail.errors import OptionError
from vitrail.manifest import (
    CachePrecision,
    Dialect,
    Precision,
    Prefill,
    Quantizer,
    Sensitive,
    TablePrecision,
    VisionPrecision,
)
from vitrail_export.graph import Bits, Form

DTYPES: dict[Arithmetic, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to make of a checkpoint.

    precision of the language model, which no CPU computes in bfloat16; int8 and int4 are weight-only, with activations in `activations`; w8a8 multiplies in int8.
    vision_precision: int8 for the encoder's matrix products, activations quantized as they come; int8-static for the projector's,
    too, activations by `calibration`. dialect: `ort` for ONNX Runtime, `standard` for TensorRT.
    quantizer: rtn rounds, gptq follows `calibration`, a directory of pictures. sensitive: what int4 and w8a8 keep weight-only in int8.
    prefill: w8a8 adds a graph that reads prompts. cache: of keys and values, int8 by `calibration` too. embeddings: of the table; None is int8 beside integer weights.
    Raises OptionError for what does not go together.
    """

    precision: Precision = "int4"
    prefill: Prefill = "same"
    vision_precision: VisionPrecision = "float32"
    activations: Arithmetic = "float32"
    dialect: Dialect = "ort"
    quantizer: Quantizer = "rtn"
    calibration: Path | None = None
    sensitive: tuple[Sensitive, ...] = ("lm_head",)
    cache: CachePrecision = "float"
    embeddings: TablePrecision | None = None

    def __post_init__(self) -> None:
        if self.quantizer == "gptq" and not self.bits:
            raise OptionError(
                f"quantizer gptq is for int8, w8a8 and int4, not {self.precision}; leave it out"
            )
        runs_on_cpus = (self.dialect, self.decoder_dtype) == ("ort", "float32")
        if "w8a8" in (self.precision, self.prefill) and not runs_on_cpus:
            raise OptionError(
                f"w8a8 is for CPUs: in dialect ort with activations in float32, not {self.dialect} with "
                f"{self.decoder_dtype}; choose these, or leave w8a8 out"
            )
        if self.cache == "int8" and self.dialect == "standard":
            raise OptionError("an int8 KV cache is for dialect ort; leave it out for dialect standard")
        if (self.calibrated or self.fits_vision) and self.calibration is None:
            what = "vision precision int8-static" if self.fits_vision else "an int8 KV cache"
            what = "quantizer gptq" if self.quantizer == "gptq" else what
            raise OptionError(f"{what} is fitted to pictures; name a directory of them with --calibration")

    @property
    def calibrated(self) -> bool:
        return self.quantizer == "gptq" or self.cache == "int8"

    @property
    def fits_vision(self) -> bool:
        return self.vision_precision == "int8-static"

    @property
    def bits(self) -> Bits | None:
        return {"w8a8": 8, "int8": 8, "int4": 4}.get(self.precision)  # type: ignore[return-value]

    @property
    def spared(self) -> tuple[Sensitive, ...]:
        return self.sensitive if self.precision in ("int4", "w8a8") else ()

    @property
    def table_precision(self) -> TablePrecision:
        return self.embeddings or ("int8" if self.bits else "float")

    @property
    def decoder_dtype(self) -> Arithmetic:
        return self.activations if self.bits else self.precision  # type: ignore[return-value]

    @property
    def vision_dtype(self) -> Arithmetic:
        half = self.vision_precision in ("float16", "bfloat16")
        return self.vision_precision if half else "float32"  # type: ignore[return-value]

    @property
    def vision_form(self) -> Form:
        """int8 multiplies in int8 on ONNX Runtime; TensorRT chooses its own precisions from float weights. Of int8-static: before
        it is fitted.
        """
        if self.vision_precision in ("int8", "int8-static") and self.dialect == "standard":
            raise OptionError(
                f"vision precision {self.vision_precision} is for dialect ort; export dialect standard with fp16 or fp32"
            )
        dtype = DTYPES[self.vision_dtype]
        return (
            Form(self.dialect, dtype, bits=8, int8="tensor")
            if self.vision_precision == "int8"
            else Form(self.dialect, dtype)
        )

    @property
    def decoder_form(self) -> Form:
        """As its weights are rounded; nothing is calibrated."""
        return Form(
            self.dialect,
            DTYPES[self.decoder_dtype],
            bits=self.bits,
            sensitive=frozenset(self.spared),
            int8="row" if self.precision == "w8a8" else None,
        )

    @property
    def prefill_form(self) -> Form | None:
        """The form of a graph that reads prompts, where they have one of their own."""
        if self.prefill == "same" or (self.precision, self.cache) == ("w8a8", "float"):
            return None  # or one that would read them no faster
        return replace(replace(self, precision="w8a8").decoder_form, reads=True)


def read_sensitive(value: str) -> tuple[Sensitive, ...]:
    """Names by commas, or `none`; OptionError for others."""
    names = [name.strip() for name in value.split(",") if name.strip() not in ("", "none")]
    unknown = [name for name in names if name not in get_args(Sensitive)]
    if unknown:
        raise OptionError(
            f"sensitive part '{unknown[0]}' is unknown; choose {', '.join(get_args(Sensitive))}"
        )
    return tuple(names)  # type: ignore[arg-type]
