"""Is this machine fit to run a sweep? Each question is one function that looks and says what it found."""

from pathlib import Path

from orchestrator.doctor.finding import Finding

__all__ = ["Finding", "examine"]


def examine(storage: str, cluster: Path | None = None) -> list[Finding]:
    """Everything there is to know before a sweep is started here.

    Args:
        storage: folder or URI under which runs would be kept.
        cluster: a cluster file to check.
    """
    from orchestrator.doctor import cluster_file, machine, ray_here, room

    checks = (machine.python, machine.torch_and_devices, machine.kernels)
    checks_of_ray = (ray_here.version, ray_here.token, ray_here.dashboards, ray_here.folder)
    found = [check() for check in (*checks, *checks_of_ray, machine.wandb)]
    found += [room.writable(storage), room.disk(storage)]
    return found + ([cluster_file.check(cluster)] if cluster else [])
