"""What is fitted to pictures or measured on them. Runs the model in PyTorch, which is imported here when it is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import OptionError
from vitrail.manifest import PromptContract, TokenizerContract
from vitrail.tokenizer import load_tokenizer
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.config import ModelConfig
from vitrail_export.graph import Array, Form
from vitrail_export.tokenizer import export_tokenizer

if TYPE_CHECKING:
    from vitrail_export.sensitivity import Cost


def fitted_form(
    checkpoint: Checkpoint, form: Form, prompts: Sequence[Array], *, gptq: bool, int8_cache: bool
) -> Form:
    """The language model's form with a Quantizer and, where wanted, CacheScales fitted to prompts [P, hidden_size]."""
    from vitrail_export.calibrate import calibrate  # noqa: PLC0415

    found = calibrate(checkpoint, prompts, form=form, gptq=gptq, int8_cache=int8_cache)
    return replace(form, quantizer=found, cache=found if int8_cache else None)


def sensitive_parts(
    source: str | Path, pictures: Path, *, report: Callable[[str], None] = lambda _part: None
) -> tuple[Cost, ...]:
    """`vitrail_export.sensitivity.sensitivity` of a checkpoint on a directory's pictures. Raises OptionError for these."""
    checkpoint = Checkpoint.open(source)
    config = checkpoint.config
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        tokenizer = export_tokenizer(checkpoint.path, files, template=config.template, eos_ids=config.eos_ids)
        prompts = calibration_prompts(checkpoint, pictures, tokenizer, files)
    from vitrail_export.sensitivity import sensitivity  # noqa: PLC0415

    return sensitivity(checkpoint, prompts, report=report)


def calibration_prompts(
    checkpoint: Checkpoint, pictures: Path, tokenizer: TokenizerContract, files: Path
) -> list[Array]:
    """Prompts [P, hidden_size] about a directory's pictures; the tokenizer's files are in `files`.

    Raises OptionError for pictures that cannot be used, and where torch is missing.
    """
    if find_spec("torch") is None:
        raise OptionError(
            "calibration runs the model in PyTorch; install it with: pip install 'vitrail[verify]'"
        )
    from vitrail_export.pictures import Asking, picture_prompts  # noqa: PLC0415

    contract = prompt_contract(checkpoint.config)
    asking = Asking(load_tokenizer(files, tokenizer), contract, tokenizer.image_context_id)
    return picture_prompts(checkpoint, pictures, asking)


def prompt_contract(config: ModelConfig) -> PromptContract:
    return PromptContract(
        template=config.template,
        system=config.system,
        max_tiles=config.max_tiles,
        thumbnail=config.thumbnail,
    )
