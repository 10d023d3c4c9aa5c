"""What each pack asks Ray for, once it is known what the nodes have."""

import dataclasses
from collections.abc import Iterable

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.plan import Pack
from orchestrator.preflight import PreflightError, automatic_share, check_memory
from orchestrator.space import Resources

#: How long nodes may take to say what memory their GPUs have.
_ANSWER_SECONDS = 60


def settled(asked: Resources, packs: Iterable[Pack], vocabulary: int, is_cluster: bool) -> Resources:
    """The resources of each pack as numbers, checked against the GPUs there are.

    ``gpu: auto`` is 0 where there is no GPU, the smallest share that holds every pack where their memory is known, and
    else a whole one.

    Raises:
        PreflightError: a pack does not fit, or it cannot be known yet what ``auto`` would be.
    """
    there = ray.cluster_resources()
    gpus = there.get("GPU", 0)
    if asked.gpu == "auto" and not gpus:
        if is_cluster and there.get("CPU", 0) < asked.cpu:
            raise PreflightError(
                "resources.gpu: auto cannot be settled while no node of the cluster has room for a pack: say how much "
                "of a GPU each pack gets, such as gpu: 1"
            )
        return dataclasses.replace(asked, gpu=0.0)
    if not asked.gpu or not gpus:
        return asked
    memory, packs = smallest_device(), list(packs)
    if asked.gpu == "auto":
        share = 1.0 if memory is None else automatic_share(packs, vocabulary, memory)
        return dataclasses.replace(asked, gpu=share)
    if memory is not None:
        check_memory(packs, vocabulary, memory, asked.gpu)
    return asked


def smallest_device() -> int | None:
    """Bytes of the smallest GPU of all nodes; None where one does not say. One node of each kind is asked."""
    kinds = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("GPU"):
            kind = next((name for name in node["Resources"] if name.startswith("accelerator_type:")), node["NodeID"])
            kinds[kind] = node["NodeID"]
    asked = [
        ray.remote(_device_memory)
        .options(num_cpus=0, num_gpus=0.001, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote()
        for node in kinds.values()
    ]
    try:
        found = ray.get(asked, timeout=_ANSWER_SECONDS)
    except ray.exceptions.RayError:
        return None
    return None if None in found else min(found)


def _device_memory() -> int | None:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
