"""`python -m posctl`, where the command is not on the path."""

from posctl.main import main

main()
