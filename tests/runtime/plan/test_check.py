"""What does not fit is refused before it is loaded, with figures and cure."""

from dataclasses import replace

import pytest
from tests.repository.engines import with_engines
from tests.runtime.engine_fakes import HostDriver
from tests.runtime.plan.planning import LOAD

from vitrail.engine import Engine
from vitrail.errors import OptionError
from vitrail.plan.check import OVERRIDE, check_device, check_memory
from vitrail.plan.memory import plan_memory
from vitrail.plan.model import Load
from vitrail.plan.size import GIB, MIB
from vitrail.providers import parse_provider
from vitrail.triton.repository import ServingSettings
from vitrail.triton.server import Server


def test_what_cannot_fit_is_refused_with_figures_and_cure_before_it_is_loaded(exported, monkeypatch):
    artifacts = exported("internvl2-tiny")
    monkeypatch.setenv(OVERRIDE, "64MiB")
    with pytest.raises(OptionError, match=r"may take .*weights .*kv cache .* this machine has 64 MiB; "):
        Engine.load(artifacts)
    server = Server(artifacts, settings=ServingSettings())
    with pytest.raises(OptionError, match="VITRAIL_MEMORY=off loads it all the same"):
        server.start()
    monkeypatch.setenv(OVERRIDE, "off")
    Engine.load(artifacts).close()


def test_fewer_cached_tokens_are_the_cure_where_they_are_the_cause(two_billion):
    plan = plan_memory(two_billion, Load(slots=16, context_tokens=32768))
    with pytest.raises(OptionError, match=r"slots x context is 16 x 32768 tokens, \d+ in all fit: lower"):
        check_memory(plan, limit_bytes=16 * GIB)


@pytest.mark.parametrize(
    ("precision", "cure"), [("float16", "; export with --precision int4, lower"), ("int4", "; lower")]
)
def test_int4_is_no_cure_for_what_is_in_int4(two_billion, precision, cure):
    decoder = two_billion.decoder.model_copy(update={"precision": precision})
    plan = plan_memory(replace(two_billion, decoder=decoder), Load(slots=1, context_tokens=1024))
    with pytest.raises(OptionError, match=f"{cure} slots, tiles_per_run"):
        check_memory(plan, limit_bytes=64 * MIB)


def test_a_plan_within_its_margin_is_a_warning_only(two_billion, caplog):
    plan = plan_memory(two_billion, LOAD)
    check_memory(plan, limit_bytes=plan.host_bytes)
    assert not caplog.messages
    check_memory(plan, limit_bytes=int(plan.host_bytes / 1.09))
    assert "may run out when every slot is full" in caplog.text


def test_what_a_gpu_has_not_free_is_refused_with_every_part_before_it_is_loaded(two_billion):
    plan = plan_memory(two_billion, replace(LOAD, slots=8), target="cuda", server=False)
    needed = sum(plan.on_device.values())
    assert needed == plan.total_bytes - 512 * MIB  # the context of the process that asks is there
    check_device(plan, HostDriver(free_bytes=needed))
    with pytest.raises(OptionError) as refused:
        check_device(plan, HostDriver(free_bytes=needed - 1))
    for words in ("of GPU memory are needed (weights ", "kv cache 6.00 GiB", "activations ", "lower slots"):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("provider", "builder"), [("cuda", None), ("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx")]
)
def test_an_engine_that_cannot_be_on_its_gpu_opens_no_session(
    exported, tmp_path, monkeypatch, provider, builder
):
    artifacts = exported("internvl2-tiny")
    if builder:
        artifacts = with_engines(artifacts, tmp_path / "artifacts", targets=("sm_89",), builder=builder)
    monkeypatch.setattr("vitrail.plan.check.LibCuda", lambda _: HostDriver(free_bytes=64 * MIB))
    for opened in ("open_decoder", "open_vision"):
        monkeypatch.setattr(f"vitrail.engine.{opened}", None)
    with pytest.raises(
        OptionError, match=r"GPU memory are needed \(weights .* 64\.00 MiB of 64\.00 MiB are free"
    ):
        Engine.load(artifacts, provider=provider)


def test_a_server_that_cannot_be_on_its_gpu_is_not_started_and_keeps_no_context(exported, monkeypatch):
    left = []
    driver = HostDriver(free_bytes=64 * MIB)
    monkeypatch.setattr(driver, "leave", lambda: left.append(True), raising=False)
    monkeypatch.setattr("vitrail.plan.check.LibCuda", lambda _: driver)
    settings = ServingSettings(target="cuda", provider=parse_provider("cuda"))
    server = Server(exported("internvl2-tiny"), settings=settings)
    with pytest.raises(OptionError, match="GPU memory are needed"):
        server.start()
    assert (server.pid, left) == (None, [True])
