"""Verbs about formats and machines, with no sweep at hand."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from altgrad.quantization.formats import FORMAT_REGISTRY
from altgrad.training.config import nearest_name
from orchestrator.cli.app import Json, UsageError, app
from orchestrator.terminal import ENVIRONMENT, OK, err, out


@app.command
def formats(
    name: Annotated[str | None, Parameter(completer=lambda _: [*FORMAT_REGISTRY])] = None, /, *, as_json: Json = False
) -> int:
    """Show the number formats: range, spacing, and how well they keep a tensor. With a name, every code of that one.

    Example: altgrad formats E3M4

    Parameters
    ----------
    name
        A format, such as E3M4.
    """
    from orchestrator.formats import tables
    from orchestrator.formats.facts import codes, facts

    out.width = max(out.width, tables.NARROWEST)  # a terminal may wrap it, but no digit is left out
    if name is None:
        with err.status("rounding tensors to every format"):
            import torch

            from orchestrator.formats.figures import ELEMENTS, fidelity, tensors

            torch.set_num_threads(1)  # the same sums on every machine; and a busy one is slower with more
            data = tensors()
            known = [facts(each) | fidelity(each, data) for each in FORMAT_REGISTRY.values()]
        shown: dict[str, Any] = {"elements": ELEMENTS, "formats": known}
        table = tables.overview(known, ELEMENTS)
    elif name in FORMAT_REGISTRY:
        format = FORMAT_REGISTRY[name]
        listed = list(codes(format)) if format.bits == 8 else None
        shown = facts(format) | {"codes": listed}
        table = tables.one_format(facts(format), listed, out.width)
    else:
        raise UsageError(f"unknown format {name!r}; {nearest_name(name, FORMAT_REGISTRY)}")
    if as_json:
        print(json.dumps(shown, allow_nan=False))
    else:
        out.print(table)
    return OK


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print what teaches a shell to complete verbs, options and the names of runs.

    For bash, in ~/.bashrc: eval "$(altgrad completion bash)". For zsh, as the file _cyclopts_altgrad in a folder of
    $fpath. For fish, as ~/.config/fish/completions/altgrad.fish.

    Example: altgrad completion bash

    Parameters
    ----------
    shell
        The shell to teach.
    """
    print(app.generate_completion(shell=shell))
    return OK


@app.command
def doctor(*, storage: str = "runs", cluster: Path | None = None, as_json: Json = False) -> int:
    """Is this machine fit to run a sweep? What there is, what is missing, and what to do about it.

    Example: altgrad doctor

    Parameters
    ----------
    storage
        Folder or URI under which runs would be kept; a small file is written there, read back and deleted.
    cluster
        Cluster file to check; by default the cluster.yaml of this folder, if there is one.
    """
    from orchestrator.doctor import examine

    if cluster is None and Path("cluster.yaml").exists():
        cluster = Path("cluster.yaml")
    with err.status("looking around"):
        findings = examine(storage, cluster)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings]))
    else:
        for finding in findings:
            out.print(f"{finding.level:<4}  {finding.subject:<9}  {finding.found}", soft_wrap=True)
            if finding.advice:
                out.print(f"      {'':<9}  {finding.advice}", soft_wrap=True)
    return ENVIRONMENT if any(finding.level == "fail" for finding in findings) else OK
