"""The `altgrad` command: parses, delegates, prints.

Results go to stdout, everything said on the way to stderr. Heavy libraries are imported by the commands that need them,
so that help is there at once.
"""

from orchestrator.cli import asking, facts, planning, reading, running
from orchestrator.cli.app import app, main

__all__ = ["app", "asking", "facts", "main", "planning", "reading", "running"]
