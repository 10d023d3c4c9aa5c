"""From text to tokens to batches, and what is said of a corpus that cannot be used."""

import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from altgrad.training.config import CorpusError, RunConfig
from altgrad.training.corpus import Corpus, check_length, load_corpus, standard_library
from altgrad.training.data import Batches
from orchestrator.corpus import corpus_of, read_parquet_text

TEXT = "Fünf Wörter, ein Reim — naïve 数.\n"


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    load_corpus.cache_clear()
    yield
    load_corpus.cache_clear()


def numbered(length: int, validation: int) -> Corpus:
    """A corpus whose tokens are their own positions; the validation part continues where training ends."""
    ids = np.arange(length + validation, dtype=np.int32)
    return Corpus(ids[:length], ids[length:], length + validation, "")


def batches(corpus: Corpus, seeds: list[int], batch: int = 4, block: int = 8) -> Batches:
    return Batches(corpus, seeds, batch, block, torch.device("cpu"))


def bytes_of(corpus: Corpus) -> bytes:
    return bytes(np.concatenate([corpus.train, corpus.validation]).tolist())


class TestStandardLibrary:
    def test_has_the_library_and_not_its_tests_nor_what_was_installed(self) -> None:
        root = Path(sysconfig.get_path("stdlib"))
        names = [path.relative_to(root).as_posix() for path in standard_library()]
        assert {"json/decoder.py", "collections/__init__.py", "ast.py"} <= set(names)
        parts = {part for name in names for part in name.split("/")[:-1]}
        assert not parts & {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
        assert names == sorted(names, key=lambda name: name.split("/"))

    def test_reads_the_same_twice(self) -> None:
        first = load_corpus("stdlib")
        load_corpus.cache_clear()
        second = load_corpus("stdlib")
        assert first is not second
        assert first.hash == second.hash
        assert first.vocabulary == 256
        assert first.tokens > 1_000_000


class TestFiles:
    def test_bytes_are_utf8_split_before_the_last_tenth(self, tmp_path: Path) -> None:
        path = tmp_path / "text.txt"
        path.write_text(TEXT * 20, encoding="utf-8")
        corpus = load_corpus(str(path))
        assert bytes_of(corpus) == (TEXT * 20).encode()
        assert len(corpus.train) == len((TEXT * 20).encode()) * 9 // 10
        assert (corpus.vocabulary, corpus.tokens) == (256, len((TEXT * 20).encode()))

    def test_characters_are_numbered_in_the_order_of_their_sorted_alphabet(self, tmp_path: Path) -> None:
        """nanoGPT's own preparation of Shakespeare."""
        path = tmp_path / "text.txt"
        path.write_text(TEXT * 20, encoding="utf-8")
        alphabet = sorted(set(TEXT))
        numbers = {character: i for i, character in enumerate(alphabet)}
        corpus = load_corpus(str(path), "char")
        assert corpus.vocabulary == len(alphabet)
        assert np.concatenate([corpus.train, corpus.validation]).tolist() == [numbers[c] for c in TEXT * 20]
        assert len(corpus.train) == int(len(TEXT * 20) * 0.9)

    def test_a_folder_is_its_files_in_order_without_hidden_ones(self, tmp_path: Path) -> None:
        for name, text in (("b.txt", "second"), ("a/z.md", "first"), (".hidden", "no"), (".git/objects", "no")):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        assert bytes_of(load_corpus(str(tmp_path))) == b"first\nsecond"

    def test_json_lines_give_one_column(self, tmp_path: Path) -> None:
        path = tmp_path / "text.jsonl"
        rows = [{"text": "one", "other": "x"}, {"text": "two\u2028and\u0085a half", "other": "y"}]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text(f"{lines[0]}\n\n{lines[1]}\n", encoding="utf-8")
        assert bytes_of(load_corpus(str(path))).decode() == "one\ntwo\u2028and\u0085a half"
        assert bytes_of(load_corpus(str(path), text_column="other")) == b"x\ny"

    def test_token_files_are_read_as_nanogpt_writes_them(self, tmp_path: Path) -> None:
        train, validation = np.arange(100, dtype=np.uint16), np.arange(5, dtype=np.uint16) + 300
        for name, ids in (("train.bin", train), ("val.bin", validation), ("alone.bin", train)):
            ids.tofile(tmp_path / name)
        both = load_corpus(str(tmp_path / "train.bin"))
        assert (both.train.tolist(), both.validation.tolist()) == (train.tolist(), validation.tolist())
        assert both.vocabulary == 305
        alone = load_corpus(str(tmp_path / "alone.bin"))
        assert (len(alone.train), len(alone.validation), alone.vocabulary) == (90, 10, 100)

    def test_the_hash_is_of_tokens_and_vocabulary(self, tmp_path: Path) -> None:
        one, same, other = (tmp_path / name for name in ("one.txt", "same.md", "other.txt"))
        one.write_text("abcabcabc" * 5)
        same.write_text("abcabcabc" * 5)
        other.write_text("abcabcabd" * 5)
        hashes = [load_corpus(str(path)).hash for path in (one, same, other)]
        assert hashes[0] == hashes[1] != hashes[2]
        assert load_corpus(str(one), "char").hash != hashes[0]

    def test_a_corpus_is_read_once(self, tmp_path: Path) -> None:
        path = tmp_path / "text.txt"
        path.write_text(TEXT)
        assert load_corpus(str(path)) is load_corpus(str(path))


def written(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.txt", "no corpus at .*none.txt: name a text file or folder, or 'stdlib'"),
        (lambda folder: folder / "none.bin", "cannot read corpus .*none.bin: No such file"),
        (written("empty.txt", b""), "empty.txt holds no text"),
        (written("empty.bin", b""), "empty.bin holds no tokens"),
        (lambda folder: folder, "holds no text"),
        (written("latin.txt", "na\u00efve".encode("latin-1")), r"latin.txt is not UTF-8 text \(byte 2\): convert it"),
        (written("a.jsonl", b'{"text": "fine"}\n\n{"text": \n'), r"a.jsonl:3: not JSON"),
        (written("b.jsonl", b'{"body": "x"}\n'), r"b.jsonl:1: no text in column 'text'; set text_column"),
        (written("c.jsonl", b'{"text": "x"}\n{"text": 3}\n'), r"c.jsonl:2: no text in column 'text'"),
        (written("d.jsonl", b'["text"]\n'), r"d.jsonl:1: no text in column 'text'"),
        (written("e.jsonl", b'{"text": "a\\ud800"}\n'), r"e.jsonl holds half a surrogate pair \(character 1\)"),
    ],
)
def test_an_unusable_corpus_says_why(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(str(make(tmp_path)))


class TestParquet:
    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
    def test_one_column_a_line_a_row(self, kind: pa.DataType, tmp_path: Path) -> None:
        path = tmp_path / "text.parquet"
        pq.write_table(pa.table({"body": pa.array(["one", None, "zwölf"], kind), "n": [1, 2, 3]}), path)
        assert read_parquet_text(path, "body") == "one\nzwölf"
        corpus = corpus_of(RunConfig(corpus=str(path), text_column="body"))
        assert bytes_of(corpus).decode() == "one\nzwölf"

    @pytest.mark.parametrize(
        ("column", "message"),
        [("text", "no column 'text'; it has body, n: set text_column"), ("n", "column 'n' is int64, not text")],
    )
    def test_a_wrong_column_is_an_error(self, column: str, message: str, tmp_path: Path) -> None:
        path = tmp_path / "text.parquet"
        pq.write_table(pa.table({"body": ["one"], "n": [1]}), path)
        with pytest.raises(CorpusError, match=message):
            corpus_of(RunConfig(corpus=str(path), text_column=column))

    @pytest.mark.parametrize("data", [b"", b"PAR1 not really", b"just text, long enough to have a footer" * 10])
    def test_what_is_no_parquet_is_an_error(self, data: bytes, tmp_path: Path) -> None:
        path = written("text.parquet", data)(tmp_path)
        with pytest.raises(CorpusError, match=r"cannot read .*text\.parquet"):
            corpus_of(RunConfig(corpus=str(path)))


class TestBatches:
    def test_targets_are_inputs_one_later(self) -> None:
        made = batches(numbered(500, 100), [1, 2])
        for inputs, targets in [made.train(1), *made.validation(3)]:
            assert inputs.shape == targets.shape == (2, 4, 8)
            assert inputs.dtype == targets.dtype == torch.int64
            assert torch.equal(targets, inputs + 1)
            assert torch.equal(inputs[..., 1:], targets[..., :-1])

    def test_a_batch_is_a_function_of_seed_and_step(self) -> None:
        corpus = numbered(5000, 100)
        made, other = batches(corpus, [1, 2, 3]), batches(corpus, [3, 1])
        for step in (7, 1, 1000):
            inputs = made.train(step)[0]
            assert torch.equal(inputs[[2, 0]], other.train(step)[0])
            assert torch.equal(inputs, made.train(step)[0])
        flat = [made.train(step)[0][lane].flatten().tolist() for step in range(1, 20) for lane in range(3)]
        assert len({tuple(ids) for ids in flat}) == len(flat)

    def test_neither_part_looks_into_the_other_and_both_are_used_to_their_ends(self) -> None:
        made = batches(numbered(60, 30), [1], batch=8)
        seen = torch.cat([torch.cat(made.train(step)) for step in range(1, 200)])
        assert (seen.min(), seen.max()) == (0, 59)
        windows = torch.cat([torch.cat(pair) for pair in made.validation(5)])
        assert (windows.min(), windows.max()) == (60, 89)

    def test_validation_windows_are_evenly_spread_and_the_same_for_every_lane(self) -> None:
        made = batches(numbered(100, 1009), [1, 2, 3])
        inputs = torch.stack([pair[0] for pair in made.validation(5)])
        assert torch.equal(inputs, inputs[:, :1].expand_as(inputs))
        starts = inputs[:, 0, :, 0].flatten() - 100
        assert (starts[0], starts[-1]) == (0, 1000)
        gaps = starts.diff()
        assert gaps.max() - gaps.min() <= 1
        again = torch.stack([pair[0] for pair in batches(numbered(100, 1009), [9]).validation(5)])
        assert torch.equal(again[:, 0], inputs[:, 0])

    @pytest.mark.parametrize(
        ("lengths", "part"), [((8, 100), "training"), ((100, 8), "validation"), ((100, 0), "validation")]
    )
    def test_a_part_shorter_than_a_block_is_an_error(self, lengths: tuple[int, int], part: str) -> None:
        with pytest.raises(
            CorpusError, match=rf"the {part} part .* one block needs 9: use a longer text or a smaller model.block_size"
        ):
            batches(numbered(*lengths), [1])

    def test_a_part_of_one_block_and_its_target_will_do(self) -> None:
        check_length(numbered(9, 9), 8)
        made = batches(numbered(9, 9), [1])
        assert made.train(1)[0].flatten().tolist() == [*range(8)] * 4
        assert next(made.validation(1))[1][0, 0].tolist() == [*range(10, 18)]
