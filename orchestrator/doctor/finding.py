"""What one look at the machine found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    #: What was looked at.
    subject: str
    #: ``fail`` means that sweeps cannot or must not run here; ``warn`` that they run worse than they could.
    level: Literal["ok", "warn", "fail"]
    found: str
    #: What to do about it; empty where all is well.
    advice: str = ""
