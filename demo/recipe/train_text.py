"""Stage 1: the language model learns to read and to look up, from the code that a perfect vision tower would write."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from demo.recipe import curriculum, oracle, together
from demo.recipe.loop import Lesson, Stage
from demo.recipe.model import DemoModel, Kept, Shape
from demo.recipe.muon import optimizers
from demo.recipe.sequence import LINKS, Batch, batch, image_context_id
from demo.recipe.spots import IGNORED, ORDER
from demo.recipe.state import load, normalized
from demo.recipe.vision import VisionModel

TILES, PARTS = 20, 2
NOISE, NAMED_SHARE, WANTED_SHARE, LOOKED_SHARE, LINKED_SHARE, COUNTED_SHARE = 0.25, 0.5, 0.3, 0.5, 0.5, 2.0
# How far each kind of name rotates a state.
SHIFTS = (0, 51, 102, 153, 204, 25, 76, 127, 178, 229, 240, 38, 12)
FIRST_STEPS = 1000
MOST_TILES = 13


class Eyes:
    """The vision tower as another run last saved it: what it writes for tiles, read again when it has improved."""

    def __init__(self, path: Path) -> None:
        self.path, self.read_at = path, 0.0
        shape = Shape()
        self.tower = VisionModel(shape.vision_width, shape.vision_layers, shape.vision_heads)

    @torch.no_grad()
    def __call__(self, tiles: Tensor) -> Tensor:
        """uint8 [t, 3, 224, 224] -> features [t, 256, 192]."""
        if (changed := self.path.stat().st_mtime) != self.read_at:
            part = "vision_model."
            kept = load(self.path)["model"].items()
            self.tower.load_state_dict(
                {name[len(part) :]: each for name, each in kept if name.startswith(part)}
            )
            self.read_at = changed
        with torch.autocast(tiles.device.type, dtype=torch.bfloat16):
            return self.tower(normalized(tiles)).float()


def stage(
    *,
    eyes: Eyes | None = None,
    most_tiles: int = MOST_TILES,
    shares: dict[str, float] = curriculum.MIXED,
) -> Stage:
    """From known contents, or with `eyes` from pictures as the vision tower sees them, which it does not change."""
    model = DemoModel(Shape())
    model.vision_model.requires_grad_(False)
    context = image_context_id()

    def lesson(rng: random.Random, step: int) -> Iterator[Lesson]:
        now = curriculum.FIRST if step < FIRST_STEPS else shares
        parts = max(1, PARTS // together.SIZE)
        for _ in range(parts):
            drawn = curriculum.scenes(rng, now, tiles=TILES, draws=eyes is not None, most_tiles=most_tiles)
            data = batch(drawn, pixels=eyes is not None)
            features = features_of(data.pictures) if eyes is None else eyes(data.pictures)
            answers = answer_loss(model, data, features, context)
            yield Lesson(
                answers.total / parts, {**answers.figures, drawn[0].skill: answers.right}, len(drawn)
            )

    return Stage("text", model, optimizers(model, muon_lr=0.015, adam_lr=4e-3), lesson)


@dataclass(frozen=True, slots=True)
class Answers:
    """loss: mean cross entropy of the answers' tokens; right: the share of them that is predicted.

    named: cross entropy of each visual token's characters and of those before them, told where the token stands by
    its state before the watched layer. It teaches what the code means at once, for hundreds of characters in a step,
    so that only where to look is left to be found by answering.
    wanted: the same at the places of answers: the key, the head, the number and the index of what to read next, so
    that it is found by what it is called.
    linked: cross entropy of the attention of each printed visual token, in three heads of the layer before, with the
    two where its row begins and the one where its column's head begins.
    counted: divergence of a head, a layer earlier, from looking alike at all that is counted (`recipe.counts`).
    tallied: the same of the watched layer's last head where an answer says how many there are.
    looked: cross entropy of the watched heads' attention with the visual token of the character to write next.
    Without it, answers stayed at the frequencies of characters for as long as was tried (5,000 samples).
    There is one such head for the first character of a token, one for the second and one for the third: the one
    whose turn it is looks there, the others at the beginning of the sequence.
    """

    loss: Tensor
    right: float
    named: Tensor
    wanted: Tensor
    looked: Tensor
    linked: Tensor
    counted: Tensor
    tallied: Tensor

    @property
    def total(self) -> Tensor:
        named = NAMED_SHARE * self.named + WANTED_SHARE * self.wanted
        looked = LOOKED_SHARE * self.looked + LINKED_SHARE * self.linked
        return self.loss + named + looked + COUNTED_SHARE * (self.counted + self.tallied)

    @property
    def figures(self) -> dict[str, float]:
        names = ("loss", "named", "wanted", "looked", "linked", "counted", "tallied")
        return {name: getattr(self, name).item() for name in names}


def answer_loss(model: DemoModel, data: Batch, features: Tensor, context: int) -> Answers:
    with torch.autocast(features.device.type, dtype=torch.bfloat16):
        embeds = model.spliced(data.ids, model.project(features), context)
        counting, linking, watched = kept = Kept(), Kept(), Kept()
        hidden = model.language_model.hidden(embeds, kept=kept)
        answers = model.language_model.output(hidden[data.targets != IGNORED]).float()
        named = named_loss(model, watched.states[data.ids == context], data.names.flatten(0, 1))
        is_read = data.looks != IGNORED
        wanted = named_loss(model, watched.states[is_read], data.wanted[is_read])
    targets = data.targets[data.targets != IGNORED]
    return Answers(
        loss=functional.cross_entropy(answers, targets),
        right=(answers.argmax(-1) == targets).float().mean().item(),
        named=named,
        wanted=wanted,
        looked=looked_loss(watched.query, watched.key, data.looks, data.orders),
        linked=linked_loss(linking.query, linking.key, data.links),
        counted=counted_loss(counting.query[:, 0], counting.key[:, 0], data.counts),
        tallied=counted_loss(watched.query[:, ORDER], watched.key[:, ORDER], data.tallies),
    )


def named_loss(model: DemoModel, states: Tensor, names: Tensor) -> Tensor:
    """How far the names [m, k] of visual tokens are from what their states [m, d] before the watched layer tell.

    Each of the k has its own rotation of the state's numbers before the same output matrix.
    """
    rows, kinds = (names != IGNORED).nonzero(as_tuple=True)
    if not len(rows):
        return torch.zeros(())
    is_told = (names != IGNORED).any(-1)
    states = functional.rms_norm(states[is_told], states.shape[-1:])
    told = torch.stack([states.roll(shift, -1) for shift in SHIFTS], 1)[names[is_told] != IGNORED]
    return functional.cross_entropy(model.language_model.output(told).float(), names[rows, kinds])


def looked_loss(query: Tensor, key: Tensor, looks: Tensor, orders: Tensor) -> Tensor:
    """How far the first ORDER heads [n, heads, P, size] are from looking at `looks` [n, P] in their `orders` [n, P]."""
    rows, places = (looks != IGNORED).nonzero(as_tuple=True)
    if not len(rows):
        return torch.zeros(())
    scores = _scores(query[:, :ORDER], key[:, :ORDER], rows, places)
    is_turn = torch.arange(ORDER) == orders[rows, places][:, None]
    targets = torch.where(is_turn, looks[rows, places][:, None], 0)
    weight = torch.where(is_turn, 1.0, 0.5)
    each = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none")
    return (each * weight.flatten()).sum() / weight.sum()


def linked_loss(query: Tensor, key: Tensor, links: Tensor) -> Tensor:
    """How far the first LINKS heads [n, heads, P, size] are from looking at their `links` [n, P, LINKS]."""
    rows, places = (links != IGNORED).any(-1).nonzero(as_tuple=True)
    if not len(rows):
        return torch.zeros(())
    scores = _scores(query[:, :LINKS], key[:, :LINKS], rows, places)
    return functional.cross_entropy(scores.flatten(0, 1), links[rows, places].flatten(), ignore_index=IGNORED)


def counted_loss(query: Tensor, key: Tensor, counts: Tensor) -> Tensor:
    """How far a head [n, P, size] is from looking alike at the places `counts` [n, P, MOST] and at the beginning of the
    sequence.
    """
    rows, places = (counts != IGNORED).any(-1).nonzero(as_tuple=True)
    if not len(rows):
        return torch.zeros(())
    told = _scores(query[:, None], key[:, None], rows, places)[:, 0].log_softmax(-1)
    there = functional.pad(counts[rows, places], (1, 0), value=0)
    is_told = there != IGNORED
    number = is_told.sum(-1)
    return (-(told.gather(-1, there.clamp(min=0)) * is_told).sum(-1) / number - number.log()).mean()


def _scores(query: Tensor, key: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """What attention at (row, place) gives every place up to it, before the softmax [m, heads, P]."""
    every = query @ key.transpose(-1, -2)
    scores = every[rows, :, places].float() * query.shape[-1] ** -0.5
    later = torch.arange(key.shape[2]) > places[:, None]
    return scores.masked_fill(later[:, None], float("-inf"))


def features_of(written: Tensor) -> Tensor:
    """What the vision tower would write, not quite exactly."""
    noise = NOISE * torch.rand(written.shape[0], 1, 1)
    return oracle.AMPLITUDE * written + noise * torch.randn_like(written)
