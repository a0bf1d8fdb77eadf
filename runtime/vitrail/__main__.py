"""`vitrail`, and `python -m vitrail`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Its imports take a moment: Ctrl-C then ends it quietly, too."""
    try:
        from vitrail.cli import app  # noqa: PLC0415

        app()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
