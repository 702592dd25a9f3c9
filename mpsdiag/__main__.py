"""`python -m mpsdiag`: the command line."""

from mpsdiag.cli import main

main()
