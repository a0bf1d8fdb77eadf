"""Shared data: the reference checkpoints, what the authors' code answers for them, and exports made once per run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

REFERENCE = Path(__file__).parent / "data" / "reference"
CHECKPOINTS = ("internvl2-tiny", "internvl3-tiny")
IMAGES = {
    "astronaut": ["astronaut.png"],
    "rocket": ["rocket.jpg"],
    "two_images": ["coffee.png", "chelsea.png"],
    "multi_turn": ["coffee.png"],
    "text_only": [],
}
MAX_TILES = {"astronaut": 12, "rocket": 12, "two_images": 4, "multi_turn": 4, "text_only": 12}


def pytest_configure() -> None:
    """Processes that a shell starts in the background ignore Ctrl-C, and hand that on: tests interrupt theirs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def expected_cases(checkpoint: str) -> dict[str, dict[str, Any]]:
    rows = json.loads((REFERENCE / checkpoint / "expected.json").read_text(encoding="utf-8"))
    return {row["case"]: row for row in rows}


def case_messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    """A reference case as OpenAI-style messages; its pictures belong to its first user turn."""
    images = [{"type": "image", "image": REFERENCE / "images" / name} for name in IMAGES[case["case"]]]
    turns = [turn for pair in case["history"] or [] for turn in zip(("user", "assistant"), pair, strict=True)]
    turns.append(("user", case["question"]))
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    if images:
        messages[0]["content"] = [*images, {"type": "text", "text": messages[0]["content"]}]
    return messages


def case_options(case: dict[str, Any]) -> dict[str, Any]:
    """The reference generates 24 tokens greedily and applies no stop token."""
    return {"max_tiles": MAX_TILES[case["case"]], "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """exported(checkpoint, precision=..., dialect=...) -> artifact directory, made once per combination.

    A checkpoint's name with -hf is its twin in the layout of transformers.
    """
    from tests.export.layouts import hf_twin

    from vitrail_export.exporter import export_checkpoint
    from vitrail_export.options import ExportOptions

    @cache
    def export(checkpoint: str, **options: Any) -> Path:
        out = tmp_path_factory.mktemp(
            "-".join([checkpoint, *(Path(str(each)).name for each in options.values())])
        )
        source = REFERENCE / checkpoint.removesuffix("-hf")
        if checkpoint.endswith("-hf"):
            source = hf_twin(source, tmp_path_factory.mktemp("hf") / checkpoint)
        export_checkpoint(source, out, options=ExportOptions(**{"precision": "float32", **options}))
        return out

    return export


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """tritonserver 2.51 at times ends by itself (its issue 8882): a test of a real one has a second try, which is told."""
    for item in items:
        if item.get_closest_marker("server"):
            item.add_marker(pytest.mark.flaky(reruns=1))
