"""`python -m ripple` is the command line."""

from ripple.cli import main

main()
