"""A cluster file before `ray up` reads it: what Ray itself would refuse, and what would stand open."""

import copy
import io
import logging
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from orchestrator.doctor.finding import Finding
from orchestrator.doctor.ray_here import token_file

_STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
#: Words that stand where somebody's own were to go.
_PLACEHOLDER = re.compile(r"\bBUCKET\b|\bEDIT\b|\bCHANGE_?ME\b|\bexample\.(?:org|com)\b|<[A-Za-z_-]+>")


def check(path: Path) -> Finding:
    """The file is one that Ray takes, and its cluster lets no stranger in."""
    try:
        text = path.read_text(encoding="utf-8")
        data = YAML(typ="safe", pure=True).load(text)
    except OSError as error:
        return Finding("cluster", "fail", f"{path}: {error.strerror}", "name a cluster file: --cluster FILE")
    except (YAMLError, UnicodeDecodeError) as error:
        return Finding("cluster", "fail", f"{path} is no YAML: {' '.join(str(error).split())}", "put the file right")
    if not isinstance(data, dict):
        return Finding("cluster", "fail", f"{path}: expected keys and values", "put the file right")
    if refusal := _refusal(data):
        return Finding("cluster", "fail", f"{path}: Ray refuses it: {refusal}", "put the file right")
    if problems := list(_problems(data)):
        found, advice = ("; ".join(parts) for parts in zip(*problems, strict=True))
        return Finding("cluster", "warn", f"{path}: {found}", advice)
    places = len(re.findall(r"^\s*# EDIT\b", text, re.MULTILINE))
    return Finding("cluster", "ok", f"{path}: Ray takes it" + (f"; {places} places are marked EDIT" if places else ""))


def _refusal(data: dict[str, Any]) -> str | None:
    """Why Ray would not take the file; None where it would."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        # Ray talks while it looks, and stdout is for what was found.
        with redirect_stdout(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(data)))
    except jsonschema.ValidationError as error:
        where = ".".join(map(str, error.absolute_path))
        return f"{where}: {error.message}" if where else error.message
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, ImportError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _problems(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What Ray takes and a person would regret, each with what to do."""
    for key in _STARTS:
        for command in map(str, data.get(key) or ()):
            starts = command.partition("ray start")
            if starts[1] and "RAY_AUTH_MODE=token" not in starts[0]:
                yield f"{key} starts Ray without a token", "put RAY_AUTH_MODE=token before ray start"
            if re.search(r"--dashboard-host[= ](?!127\.0\.0\.1|localhost)", command):
                yield (
                    f"{key} opens the dashboard to others",
                    "--dashboard-host=127.0.0.1, and ray dashboard to reach it",
                )
    mounted = str((data.get("file_mounts") or {}).get("~/.ray/auth_token", ""))
    if mounted and not Path(mounted).expanduser().is_file():
        advice = "ray get-auth-token --generate" if Path(mounted).expanduser() == token_file() else f"make {mounted}"
        yield f"{mounted}, which it copies to the nodes, is not there", advice
    if left := sorted({match[0] for value in _texts(data) for match in _PLACEHOLDER.finditer(value)}):
        yield f"{', '.join(left)} still stands in it", "put your own in their place"


def _texts(value: Any) -> Iterator[str]:
    """Every text of the file that is no comment."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value
