"""Reads the corpus of a run, the file formats that need pyarrow included."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from altgrad.training.config import CorpusError, RunConfig
from altgrad.training.corpus import Corpus, load_corpus


def read_parquet_text(path: Path, column: str) -> str:
    """The strings of one column of a Parquet file, a line each.

    Raises:
        CorpusError: not a Parquet file, or no such column of strings.
    """
    try:
        names = pq.read_schema(path).names
        if column not in names:
            raise CorpusError(f"{path}: no column {column!r}; it has {', '.join(names)}: set text_column")
        texts = pq.read_table(path, columns=[column]).column(column)
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
            raise CorpusError(f"{path}: column {column!r} is {texts.type}, not text")
        return "\n".join(pc.drop_null(texts).to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error


def corpus_of(config: RunConfig) -> Corpus:
    """The corpus a run trains on; kept in memory for the next run of the same process.

    Raises:
        CorpusError: missing, unreadable, or empty.
    """
    return load_corpus(config.corpus, config.tokens, config.text_column, ((".parquet", read_parquet_text),))
