"""What rounding a part costs: measured on prompts about pictures."""

import shutil

import numpy as np
from tests.conftest import REFERENCE
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail_export.checkpoint import Checkpoint
from vitrail_export.reference import Reference
from vitrail_export.sensitivity import PartlyRounded, parts, sensitivity

TINY = REFERENCE / "internvl2-tiny"


def embeds(checkpoint):
    return Reference(checkpoint).token_embeds(list(range(100, 112)))


def test_every_matrix_of_the_language_model_is_in_one_kind_and_one_layer():
    found = dict(parts(Checkpoint.open(TINY)))
    kinds = [name for part, names in found.items() if not part.startswith("layer") for name in names]
    layers = [name for part, names in found.items() if part.startswith("layer") for name in names]
    assert sorted(kinds) == sorted([*layers, "text.lm_head.weight"])
    assert len(set(kinds)) == len(kinds) == 3 * 7 + 1


def test_only_the_named_part_is_rounded():
    checkpoint = Checkpoint.open(TINY)
    prompt = embeds(checkpoint)[None]
    exact = Reference(checkpoint).logits(prompt)
    np.testing.assert_array_equal(PartlyRounded(checkpoint, frozenset(), 4).logits(prompt), exact)
    head = PartlyRounded(checkpoint, frozenset(["text.lm_head.weight"]), 4).logits(prompt)
    assert 0 < np.abs(head - exact).max() < np.abs(exact).max()


def test_eight_bits_cost_less_than_four_and_the_dearest_part_comes_first():
    checkpoint = Checkpoint.open(TINY)
    four = sensitivity(checkpoint, [embeds(checkpoint)], bits=4)
    eight = {cost.part: cost for cost in sensitivity(checkpoint, [embeds(checkpoint)], bits=8)}
    assert [cost.divergence for cost in four] == sorted((c.divergence for c in four), reverse=True)
    assert all(eight[cost.part].divergence < cost.divergence for cost in four)


def test_the_command_prints_a_line_for_each_part(tmp_path):
    shutil.copy(REFERENCE / "images" / "rocket.jpg", tmp_path)
    result = CliRunner().invoke(app, ["sensitivity", str(TINY), "--calibration", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {line.split()[0] for line in result.stdout.splitlines()[1:]} >= {"down", "v", "lm_head", "layer"}
