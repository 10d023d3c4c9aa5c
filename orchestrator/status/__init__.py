"""Where a sweep stands, running or not, from any shell: its plan and its journal say it all, without Ray or PyTorch."""

from orchestrator.status.facts import Disk, End, Failure, PackStatus, Status
from orchestrator.status.journal import status
from orchestrator.status.watch import Watch

__all__ = ["Disk", "End", "Failure", "PackStatus", "Status", "Watch", "status"]
