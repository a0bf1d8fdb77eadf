import pytest
from tests.repository.collector import collecting

from vitrail.decoder import Settings
from vitrail.triton.options import ServerOptions
from vitrail.triton.repository import ServingSettings
from vitrail.triton.serve import serving

SETTINGS = ServingSettings(decoder=Settings(slots=4), threads=1, tiles_per_run=2)


@pytest.fixture(scope="package")
def collector():
    """Where the server's traces arrive."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="package")
def server(exported, collector):
    """A supervised server of internvl2-tiny with four slots, whose vision encoder takes two tiles a run."""
    options = ServerOptions(
        grpc_port=0,
        http_port=0,
        metrics_port=0,
        exit_timeout_s=5,
        otel=collector.url,
        extra_args=("--trace-config=opentelemetry,bsp_schedule_delay=200",),
    )
    with serving(exported("internvl2-tiny"), options=options, settings=SETTINGS) as server:
        yield server
