"""Train or evaluate with the MPS fix: `python train.py --help`; the same as `mpsdiag train`."""

import sys

from mpsdiag.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
