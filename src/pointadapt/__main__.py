"""``python -m pointadapt``, for ``accelerate launch`` and machines where the console script is not on the path."""

import sys

from pointadapt.cli import main

if __name__ == "__main__":
    sys.exit(main())
