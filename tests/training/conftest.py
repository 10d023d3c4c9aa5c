"""What all training tests share."""

from collections.abc import Iterator

import pytest
import torch

from altgrad.training.corpus import Corpus, load_corpus


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are fastest on one thread, and rows are compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A few sentences, repeated with numbers so that there is something to learn and something to memorise."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    lines = (f"The {i}th rung of {i * i % 97} is a code, and a flip is a changed code.\n" for i in range(500))
    path.write_text("".join(lines))
    return load_corpus(str(path))
