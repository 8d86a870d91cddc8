"""`python -m vecmill.cli` is `vecmill`."""

from vecmill.cli.main import main

main()
