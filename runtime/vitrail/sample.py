"""From logits to a token: penalties, filters and the draw. Pure numpy; ties go to the lowest id."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitrail.core import TokenLogprob
from vitrail.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vitrail.core import Float, GenerateOptions, Int64

LOWEST_TEMPERATURE = 1e-6  # below it float32 logits differ by more than exp can tell: greedy in effect
NUCLEUS_GUESSES = (256, 4096)  # a nucleus is nearly always this small, and sorting a vocabulary is slow


class Draw(NamedTuple):
    """How a token is drawn from its logits: greedily at temperature 0; else by `uniform`, from [0, 1), among what top_k
    (0: all), top_p and min_p leave. The same uniform draws the same token wherever it is done.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0


def likeliest(logits: Float, draws: Sequence[Draw | None]) -> list[int | Float]:
    """Of each row of logits [m, vocab] the likeliest id where its draw is greedy; the row itself elsewhere, and where it
    is not finite.
    """
    ids = logits.argmax(axis=1)
    greedy = np.array([draw is not None and draw.temperature == 0 for draw in draws], np.bool_)
    found = greedy & np.isfinite(logits[np.arange(len(ids)), ids])
    return [
        token if is_found else row
        for token, is_found, row in zip(ids.tolist(), found.tolist(), logits, strict=True)
    ]


class Sampler:
    """Draws the tokens of one answer.

    Order, as in transformers: penalties, temperature, top_k, top_p, min_p, the last three each on what the one
    before left. repetition_penalty (CTRL, arXiv 1909.05858) weighs every token that the prompt or the answer holds;
    `prompt_ids` are the prompt's ids without image places, which are no text. (transformers, given inputs_embeds,
    sees no prompt ids and weighs the answer's alone.) presence_penalty and frequency_penalty are OpenAI's and count
    the answer's tokens only. Log-probabilities are those of the raw logits. seed None: fresh entropy.
    """

    def __init__(
        self, options: GenerateOptions, *, seed: int | None = None, prompt_ids: Iterable[int] = ()
    ) -> None:
        self._options = options
        self._random = np.random.default_rng(seed)
        penalized = options.repetition_penalty != 1.0
        self._prompt_ids = np.unique(np.fromiter(prompt_ids if penalized else (), np.int64))
        self._answer_ids: list[int] = []
        self._uniform: float | None = None

    def plan(self) -> Draw | None:
        """How the next token can be drawn without this sampler, for `take`; None where only `sample` can.

        The same until a token is taken or sampled: whoever fails to draw it leaves no trace.
        """
        options = self._options
        if self._penalizes or options.logprobs is not None:
            return None
        return Draw(options.temperature, options.top_k, options.top_p, options.min_p, self._next_uniform())

    def take(self, token_id: int) -> None:
        """Go on behind a token that was drawn as planned."""
        self._answer_ids.append(token_id)
        self._uniform = None

    def sample(self, logits: Float) -> tuple[int, TokenLogprob | None]:
        """The next token of float32 logits [vocab]. Raises ServerError where the logits are not finite."""
        if not math.isfinite(logits.max()):
            raise ServerError("the model's logits are not finite; export it at a higher precision")
        scores = self._penalize(logits)
        greedy = self._options.temperature == 0
        token_id = int(np.argmax(scores)) if greedy else draw(scores, self._options, self._next_uniform())
        self.take(token_id)
        top = self._options.logprobs
        return token_id, None if top is None else log_probability(logits, token_id, top=top)

    @property
    def _penalizes(self) -> bool:
        options = self._options
        penalties = (options.repetition_penalty, options.presence_penalty, options.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0)

    def _next_uniform(self) -> float:
        if self._uniform is None:
            self._uniform = 0.0 if self._options.temperature == 0 else self._random.random()
        return self._uniform

    def _penalize(self, logits: Float) -> Float:
        if not self._penalizes:
            return logits
        options = self._options
        repetition, presence = options.repetition_penalty, options.presence_penalty
        counts = np.bincount(np.asarray(self._answer_ids, np.int64), minlength=logits.size)
        seen = counts > 0
        held = seen.copy()
        held[self._prompt_ids] = True
        repeated = np.where(logits < 0, logits * repetition, logits / repetition)
        scores: Float = np.where(held, repeated, logits)
        return scores - (options.frequency_penalty * counts + presence * seen).astype(logits.dtype)


def draw(scores: Float, options: GenerateOptions | Draw, uniform: float) -> int:
    """One id of scores [vocab] at temperature > 0, among those that the filters leave."""
    weights: Float = np.exp((scores - scores.max()) / max(options.temperature, LOWEST_TEMPERATURE))
    ids = _candidates(weights, options)
    mass = np.cumsum(weights if ids is None else weights[ids], dtype=np.float64)
    place = np.searchsorted(mass, uniform * mass[-1], side="right")
    place = min(place, np.searchsorted(mass, mass[-1]))
    return int(place if ids is None else ids[place])


def _candidates(weights: Float, options: GenerateOptions | Draw) -> Int64 | None:
    """The ids that top_k, top_p and min_p leave of weights [vocab] (the largest is 1); None for all."""
    ids = None
    if options.top_k:
        ids = most_likely(weights, options.top_k)
    if options.top_p < 1:
        ids = _nucleus(weights, ids, options.top_p)
    if options.min_p > 0:
        likely = weights >= options.min_p
        ids = np.flatnonzero(likely) if ids is None else ids[likely[ids]]
    return ids


def _nucleus(weights: Float, ids: Int64 | None, top_p: float) -> Int64:
    """The fewest most likely ids (of `ids`, most likely first, or of all) whose share reaches top_p."""
    wanted = top_p * float((weights if ids is None else weights[ids]).sum(dtype=np.float64))
    for count in (*NUCLEUS_GUESSES, weights.size):
        ranked = most_likely(weights, count) if ids is None else ids
        mass = np.cumsum(weights[ranked], dtype=np.float64)
        if mass[-1] >= wanted:
            break
    return ranked[: np.searchsorted(mass, wanted) + 1]


def most_likely(values: Float, count: int) -> Int64:
    """The ids of the `count` largest of values [vocab], largest first, ties by id; all where count exceeds them."""
    count = min(count, values.size)
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(values, -count)[-count]
    above = np.flatnonzero(values > least)
    ids = np.concatenate((above, np.flatnonzero(values == least)[: count - above.size]))
    ranked: Int64 = ids[np.argsort(-values[ids], kind="stable")]
    return ranked


def log_probability(logits: Float, token_id: int, *, top: int) -> TokenLogprob:
    """The log-softmax of logits [vocab] at token_id and at the `top` most likely ids."""
    peak = float(logits.max())
    normalizer = peak + math.log(float(np.exp(logits - logits.max()).sum(dtype=np.float64)))
    likely = tuple((int(i), float(logits[i]) - normalizer) for i in most_likely(logits, top))
    return TokenLogprob(token_id, float(logits[token_id]) - normalizer, likely)
