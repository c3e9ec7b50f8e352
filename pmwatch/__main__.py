"""`python -m pmwatch`."""

from pmwatch.cli import main

main()
