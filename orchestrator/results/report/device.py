"""What each pack of a run held of its machine: as the sweep settled it, or as the plan asked for it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Held(NamedTuple):
    """A pack's share of a device."""

    #: Such as ``NVIDIA H200``; ``a CPU`` or ``a GPU`` where no more is known, None where not even that.
    device: str | None
    #: What the share counts, such as ``GPU``; None where it is not known.
    unit: str | None
    share: float | None

    @property
    def each(self) -> str:
        """What a pack held, such as ``0.5 GPU a pack, NVIDIA H200``."""
        several = "s" if self.share and self.share > 1 else ""
        named = "" if self.device in (None, "a CPU", "a GPU") else f", {self.device}"
        return f"{self.share:g} {self.unit}{several} a pack{named}"


def held(plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Held:
    """What was settled last; before a run recorded that, what its plan says unless that is ``auto``."""
    settled = [record for record in records if record["event"] == "resources_settled"]
    resources = settled[-1] if settled else plan["space"].get("resources", {})
    cpu, gpu, device = (resources.get(name) for name in ("cpu", "gpu", "device"))
    if gpu in ("auto", None):
        return Held(device, None, None)
    kind, unit, share = ("GPU", "GPU", gpu) if gpu else ("CPU", "CPU core", cpu)
    return Held(f"a {kind}" if device in (None, kind) else device, unit, share)
