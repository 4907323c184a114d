"""`python -m eyespot` is the command line, also under `torchrun -m eyespot`."""

import sys

from eyespot.cli import main

if __name__ == "__main__":
    sys.exit(main())
