"""`python -m sharpflat`."""

from sharpflat.cli import main

main()
