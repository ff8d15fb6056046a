"""``python -m fastslm`` is the ``fastslm`` command."""

import sys

from fastslm.cli import main

if __name__ == "__main__":
    sys.exit(main())
