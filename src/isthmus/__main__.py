"""`python -m isthmus` is the command `isthmus`."""

from isthmus.cli.main import main

main()
