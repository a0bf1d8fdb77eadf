"""Steps of a decoder session, for sessions of every kind to be compared by."""

import numpy as np

from vitrail.session import Step

SLOTS, CAPACITY, CHUNK, TILES = 4, 512, 32, 3
BUILDERS = ("tensorrt", "tensorrt-rtx")


def step(session, first, past, *, new=1, wanted=()):
    """Tokens that depend on the slot and on their position."""
    rows = np.arange(first, first + len(past))[:, None]
    ids = (rows * 131 + np.array(past)[:, None] + np.arange(new) * 7) % 1000
    return Step(
        first, session.embed(ids.astype(np.int32)), np.array(past, np.int32), np.array(wanted, np.int64)
    )


def a_conversation(session):
    """Prompts of slots 0, 2 and 3, decoding together and alone, with rows that are carried along; all logits."""
    yield session.forward(step(session, 0, [0], new=70, wanted=[69]))
    yield session.forward(step(session, 2, [0], new=33))
    for i in range(4):
        yield session.forward(step(session, 0, [70 + i, 0, 33 + i], wanted=[0, 2]))
    yield session.forward(step(session, 3, [0], new=5, wanted=[1, 4]))
    for i in range(4):
        yield session.forward(step(session, 2, [37 + i, 5 + i], wanted=[1]))
    session.copy(0, 1, 40)
    yield session.forward(step(session, 1, [40], new=3, wanted=[2]))
    for i in range(4):
        yield session.forward(step(session, 1, [43 + i, 41 + i], wanted=[0, 1]))
    yield session.forward(step(session, 3, [9], wanted=[0]))


def launches(machine):
    (stream,) = machine.driver.streams
    return stream.launched
