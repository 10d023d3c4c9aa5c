"""Text to tokens."""

import functools
import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from altgrad.training.config import CorpusError

#: Reads the text of a file format: (file, text column) -> text.
Reader = Callable[[Path, str], str]

_TRAIN_SHARE = 0.9
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Tokens of a text, split in front of its last tenth (or as its files were)."""

    #: uint16 or int32, one dimension, writable (PyTorch warns of others).
    train: np.ndarray
    validation: np.ndarray
    #: Number of different tokens a model must know.
    vocabulary: int
    #: sha256 over vocabulary and tokens.
    hash: str

    @property
    def tokens(self) -> int:
        """Tokens in both parts."""
        return len(self.train) + len(self.validation)


@functools.lru_cache(maxsize=2)
def load_corpus(
    corpus: str, tokens: str = "byte", text_column: str = "text", readers: tuple[tuple[str, Reader], ...] = ()
) -> Corpus:
    """Read and tokenise a corpus; the last ones read are kept in memory.

    Args:
        corpus: ``stdlib`` (the running interpreter's own library), a text file, a folder of text files, a ``.jsonl``
            file, or a ``.bin`` of uint16 tokens as nanoGPT writes them (``val.bin`` beside ``train.bin`` is used).
        tokens: ``byte`` (256 of them) or ``char`` (as many as the text has different ones).
        text_column: which column of a JSONL file, or of a format in ``readers``.
        readers: further file formats, as pairs of suffix and reader.

    Raises:
        CorpusError: missing, unreadable or empty.
    """
    if corpus.endswith(".bin"):
        return _from_bin(Path(corpus).expanduser())
    text = _text(corpus, text_column, dict(readers))
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"corpus {corpus} holds half a surrogate pair (character {error.start}): mend it") from error
    if tokens == "byte":
        ids, vocabulary = np.frombuffer(encoded, dtype=np.uint8).astype(np.uint16), 256
    else:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        alphabet, inverse = np.unique(points, return_inverse=True)
        ids, vocabulary = inverse.astype(np.int32), len(alphabet)
    cut = int(len(ids) * _TRAIN_SHARE)
    return _corpus(ids[:cut], ids[cut:], vocabulary)


def check_length(corpus: Corpus, block_size: int) -> None:
    """Raises CorpusError where one of the two parts is shorter than one block and its target."""
    for part, ids in (("training", corpus.train), ("validation", corpus.validation)):
        if len(ids) <= block_size:
            raise CorpusError(
                f"the {part} part of the corpus has {len(ids)} tokens, but one block needs {block_size + 1}: "
                "use a longer text or a smaller model.block_size"
            )


def _corpus(train: np.ndarray, validation: np.ndarray, vocabulary: int) -> Corpus:
    digest = hashlib.sha256(str(vocabulary).encode())
    for ids in (train, validation):
        digest.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
        digest.update(b"|")
    return Corpus(train, validation, vocabulary, digest.hexdigest())


def _from_bin(path: Path) -> Corpus:
    beside = path.with_name("val.bin")
    try:
        train = np.fromfile(path, dtype="<u2")
        if path.name == "train.bin" and beside.exists():
            validation = np.fromfile(beside, dtype="<u2")
        else:
            cut = int(len(train) * _TRAIN_SHARE)
            train, validation = train[:cut], train[cut:]
    except OSError as error:
        raise CorpusError(f"cannot read corpus {path}: {error.strerror}") from error
    if not len(train):
        raise CorpusError(f"corpus {path} holds no tokens")
    return _corpus(train, validation, int(max(train.max(), validation.max(initial=0))) + 1)


def _text(corpus: str, text_column: str, readers: Mapping[str, Reader]) -> str:
    if corpus == "stdlib":
        return "\n".join(_file_text(path) for path in standard_library())
    path = Path(corpus).expanduser()
    if not path.exists():
        raise CorpusError(f"no corpus at {path}: name a text file or folder, or 'stdlib'")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
        text = "\n".join(_file_text(p) for p in files)
    elif path.suffix in readers:
        text = readers[path.suffix](path, text_column)
    elif path.suffix == ".jsonl":
        text = "\n".join(_jsonl(path, text_column))
    else:
        text = _file_text(path)
    if not text:
        raise CorpusError(f"corpus {path} holds no text")
    return text


def standard_library() -> list[Path]:
    """The source files of the running interpreter's library, in a fixed order; its tests are left out."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, inside, files in os.walk(root):
        inside[:] = set(inside) - _NOT_LIBRARY  # Installed packages are many more files than the library.
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(filter(Path.is_file, found), key=lambda path: path.relative_to(root).parts)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text (byte {error.start}): convert it or take it away") from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error


def _jsonl(path: Path, column: str) -> Iterator[str]:
    # Not splitlines: JSON strings may hold line separators other than a newline.
    for number, line in enumerate(_file_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}:{number}: not JSON ({error.msg})") from error
        if not isinstance(value, dict) or not isinstance(value.get(column), str):
            raise CorpusError(f"{path}:{number}: no text in column {column!r}; set text_column")
        yield value[column]
