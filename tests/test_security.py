"""What a sweep must never do: write beside its folder, keep a secret, execute a file that it finds."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sweeps import PATIENCE, SMOKE, environment

from altgrad.training.checkpoint import Checkpoint, CheckpointError, from_files, to_files
from orchestrator.results.parquet import encode_table

#: Environment variables that hold secrets, each with one that no other text contains.
SECRETS = {
    "WANDB_API_KEY": "canary0wandb0" + "5e" * 14,
    "AWS_SECRET_ACCESS_KEY": "canary1aws1" + "6f" * 15,
    "HF_TOKEN": "hf_canary2hub2" + "7a" * 10,
}
#: Two packs of two lanes, their W&B runs kept offline although there is a key.
SMALL = ["format=[fp32,E4M3]", "storage=[master]", "wandb.mode=offline"]


def altgrad(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in ``home/work``, with ``home`` as home, ``home/tmp`` for temporary files, and secrets around it."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
        cwd=home / "work",
        env=environment(home) | SECRETS | {"TMPDIR": str(home / "tmp")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A small world around one finished sweep. Ray puts sockets below it, and their paths must be short."""
    home = Path(tempfile.mkdtemp(prefix="home-"))
    for name in ("work", "tmp"):
        (home / name).mkdir()
    done = altgrad(home, "sweep", SMOKE, *SMALL)
    assert done.returncode == 0, done.stderr
    (home / "said.txt").write_text(done.stdout + done.stderr)
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    return home / "work/runs/smoke"


def test_nothing_is_written_beside_the_runs_folder(home: Path, run: Path) -> None:
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_relative_to(run)]
    beside = {str(path.relative_to(home)) for path in files if not path.is_relative_to(home / "tmp/ray")}
    assert beside - {"said.txt"} <= {".ray/auth_token"}, "Ray's own: what keeps strangers out of it, and its logs"


def secrets_in(path: Path) -> list[str]:
    """Names of the secrets that a file holds, in its bytes or, where it is Parquet, in its values."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        content += repr((table.to_pydict(), table.schema.metadata)).encode()
    return [name for name, secret in SECRETS.items() if secret.encode() in content]


def test_a_secret_would_be_found(tmp_path: Path) -> None:
    text = [SECRETS["HF_TOKEN"]] * 100
    (tmp_path / "x.parquet").write_bytes(encode_table(pa.table({"x": text})))
    (tmp_path / "y.pkl").write_bytes(pickle.dumps({"key": SECRETS["WANDB_API_KEY"]}))
    assert secrets_in(tmp_path / "x.parquet") == ["HF_TOKEN"]
    assert secrets_in(tmp_path / "y.pkl") == ["WANDB_API_KEY"]


def test_no_secret_of_the_environment_is_kept_or_printed(home: Path, run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".yaml", ".json", ".jsonl", ".parquet", ".pkl", ".wandb"}
    found = {str(path): names for path in [*files, home / "said.txt"] if (names := secrets_in(path))}
    assert not found


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self._witness),)


def torch_archive(payload: Payload) -> bytes:
    """The payload as ``torch.save`` writes it."""
    file = io.BytesIO()
    torch.save(payload, file)
    return file.getvalue()


def test_the_payload_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "pickle")))
    torch.load(io.BytesIO(torch_archive(Payload(tmp_path / "torch"))), weights_only=False)
    assert (tmp_path / "pickle").exists()
    assert (tmp_path / "torch").exists()


@pytest.mark.parametrize("disguise", [pickle.dumps, torch_archive], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
def test_a_checkpoint_that_is_a_pickle_is_refused_and_not_executed(
    name: str, disguise: Callable[[Payload], bytes], tmp_path: Path
) -> None:
    files = to_files(Checkpoint(3, ("a",), {"w": torch.ones(2)}))
    files[name] = disguise(Payload(tmp_path / "witness"))
    if name == "state.safetensors":
        # Whoever can write the folder can also make the hash fit.
        facts = {name: value for name, value in json.loads(files["checkpoint.json"]).items() if name != "sha256"}
        digest = hashlib.sha256(files[name] + json.dumps(facts, sort_keys=True).encode()).hexdigest()
        files["checkpoint.json"] = json.dumps(facts | {"sha256": digest}).encode()
    with pytest.raises(CheckpointError, match="damaged"):
        from_files(files)
    assert not (tmp_path / "witness").exists()


def test_no_command_loads_what_ray_pickled(home: Path, run: Path, tmp_path: Path) -> None:
    poisoned, witness = tmp_path / "smoke", tmp_path / "witness"
    shutil.copytree(run, poisoned)
    _poison(poisoned, witness)
    _forget_the_last_pack(poisoned)
    done = {
        words[0]: altgrad(home, words[0], poisoned, *words[1:])
        for words in (["status"], ["consolidate"], ["matrix"], ["query", "SELECT count(*) FROM steps"], ["resume"])
    }
    assert [each.returncode for each in done.values()] == [0] * 5, done
    assert "completed" in done["resume"].stderr, "the last pack was run again"
    assert not witness.exists()


def _poison(run: Path, witness: Path) -> None:
    """Make every file of Ray's state one that writes the witness when it is unpickled, and add a newest of each."""
    payload = pickle.dumps(Payload(witness))
    fallback = json.dumps({"_type": "CLOUDPICKLE_FALLBACK", "value": payload.hex()})
    ray = run / "ray"
    for path in [*ray.rglob("*.pkl"), *ray.rglob("*.json")]:
        path.write_bytes(payload if path.suffix == ".pkl" else fallback.encode())
    state = {"trial_data": [[fallback, fallback]], "runner_data": json.loads(fallback), "stats": {}}
    (ray / "experiment_state-2099-01-01_00-00-00.json").write_text(json.dumps(state))
    for name in ("tuner.pkl", "trainable.pkl", "searcher-state-2099-01-01_00-00-00.pkl", "scheduler-state.pkl"):
        (ray / name).write_bytes(payload)


def _forget_the_last_pack(run: Path) -> None:
    """Leave no trace of the last pack but its place in the plan."""
    last = json.loads((run / "plan.json").read_text())["packs"][-1]["pack"]
    journal = run / "journal.jsonl"
    kept = [line for line in journal.read_text().splitlines() if last not in line]
    journal.write_text("\n".join(kept) + "\n")
    shutil.rmtree(run / "packs" / last)
