"""How a script ends where vitrail refuses: with the reason on stderr and vitrail's exit code, as its commands do."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from subprocess import CalledProcessError
from typing import TYPE_CHECKING

from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def ending() -> Iterator[None]:
    """Around `main`; a command that it ran has told its reason itself."""
    try:
        yield
    except VitrailError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except CalledProcessError as error:
        sys.exit(error.returncode)
