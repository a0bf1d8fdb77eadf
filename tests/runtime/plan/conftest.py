"""A model of published shape, sized without its weights."""

import pytest

from vitrail_export.options import ExportOptions
from vitrail_export.sizes import find_source, sized


@pytest.fixture(scope="package")
def two_billion():
    """InternVL2-2B as it would be exported with int4 weights."""
    return sized(find_source("internvl2-2b"), ExportOptions(precision="int4"))
