"""`python -m gguflora` is `gguflora`."""

from gguflora.cli import main

main()
