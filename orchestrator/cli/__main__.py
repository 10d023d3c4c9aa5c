"""`python -m orchestrator.cli`, where the altgrad command is not on the path."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
