"""Lets `python -m vecmill` stand for `vecmill`."""

from vecmill.cli.main import main

main()
