"""Which runs of TensorRT sessions become CUDA graphs."""

from tests.runtime.trt.steps import CHUNK, SLOTS, launches, step


def test_a_decode_step_that_comes_again_becomes_a_graph(decoder):
    session, machine = decoder()
    for i in range(5):
        assert launches(machine) == max(0, i - 2)
        session.forward(step(session, 0, [i, i], wanted=[0, 1]))
    shared, captured = machine.library.contexts
    assert (shared.captured, captured.captured) == (False, True)


def test_steps_over_the_same_block_share_a_graph(decoder):
    session, machine = decoder()
    for i in range(4):
        session.forward(step(session, 0, [i] * 3, wanted=[0]))
    session.forward(step(session, 1, [9, 9, 9], wanted=[0, 2]))
    assert launches(machine) == 3


def test_no_more_graphs_are_kept_than_is_allowed(decoder, monkeypatch):
    monkeypatch.setattr("vitrail.session.trt_runner.GRAPHS_KEPT", 2)
    session, machine = decoder()
    runner = session._workspace._runners["decoder"]
    runner._kept = 2
    for i in range(3):
        for slot in range(SLOTS):
            session.forward(step(session, slot, [i], wanted=[0]))
    assert len(runner._recorded) == 2
    assert launches(machine) == 0


def test_prompts_are_no_graphs(decoder):
    session, machine = decoder()
    for _ in range(5):
        session.forward(step(session, 0, [0], new=CHUNK, wanted=[CHUNK - 1]))
    assert launches(machine) == 0
    assert len(machine.library.contexts) == 1


def test_graphs_off_captures_nothing_and_covers_the_steps_own_slots(decoder):
    session, machine = decoder(graphs=False)
    for i in range(5):
        session.forward(step(session, 1, [i, i], wanted=[0]))
    (context,) = machine.library.contexts
    assert context.shapes["past_lengths"] == (2,)
    assert launches(machine) == 0


def test_tensorrt_for_rtx_captures_by_itself(decoder):
    session, machine = decoder(builder="tensorrt-rtx")
    for i in range(5):
        session.forward(step(session, 0, [i], wanted=[0]))
    assert launches(machine) == 0
    assert [context.graphs for context in machine.library.contexts] == [False, True]
