"What FluxVLA's command line means: --cfg-options, as mmengine parses and merges them."
import json

import pytest

from gr00t_nb.fluxvla.config_file import read_options, with_options


@pytest.fixture(scope="module")
def options(bundle) -> dict:
    return json.loads(bundle("fluxvla/engine/cfg_options.json").read_text())


def words_of(line: str) -> list[str]:
    "As a shell gives them; the one with a blank in quotes is a word."
    return [line] if "'" in line else line.split()


def test_words_mean_what_they_mean_there(options):
    for line, expected in options.items():
        found = read_options(words_of(line))
        assert {k: repr(v) for k, v in found.items()} == expected["parsed"], line


def test_they_are_put_where_they_are_put_there(options):
    "The configuration beneath is the merged one without what the line sets."
    lines = [(words_of(line), expected["merged"]) for line, expected in options.items()]
    beneath = dict(
        model=dict(vla_head=dict(num_steps=10)),
        runner=dict(
            max_epochs=1, learning_rate=1.0, metric=dict(active_trackers=["jsonl"]), tokenizer=dict(type="x")
        ),
        train_dataloader=dict(dataset=dict(datasets=[dict(action_window_size=32)])),
    )
    for words, merged in lines:
        assert json.loads(json.dumps(with_options(beneath, read_options(words)))) == merged, words
