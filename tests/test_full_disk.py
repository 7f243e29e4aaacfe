"A write that the system refuses half-way is a sentence with the file's name, whoever writes it."
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from gr00t_nb.errors import sentence_of
from gr00t_nb.loading.features import FeatureStore
from gr00t_nb.model.checkpoints import save_weights
from gr00t_nb.optimizer.averages import Averages

ROWS = torch.zeros(4096, 8)  # 131 kB


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:  # bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def weights(folder: Path): save_weights({"a": ROWS}, folder)


def averages(folder: Path):
    kept = Averages(0.9)
    kept.kept = dict(nn.Linear(4096, 8).named_parameters())
    kept.save(folder)


def features(folder: Path):
    seen = dict(features=ROWS, image_mask=torch.ones(4096, dtype=torch.bool), input_ids=torch.arange(4096))
    FeatureStore("k" * 24, folder).write(folder / "episode.safetensors", [0], [seen])


@pytest.mark.parametrize("write, name", [
    (weights, "model.safetensors"), (averages, "ema.safetensors"), (features, "episode.safetensors"),
])
def test_it_is_a_sentence(tmp_path: Path, write: Callable, name: str):
    with pytest.raises(Exception) as caught, files_of_at_most(50_000): write(tmp_path)
    sentence = sentence_of(caught.value)
    assert sentence and sentence.startswith(f"The file is larger than one may be here: {tmp_path / name}.")
    assert "`ulimit -f`" in sentence and list(tmp_path.iterdir()) == []
    write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
