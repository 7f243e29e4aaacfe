"The README of a checkpoint: its commands do what they say, from the place where the run was started."
import re
import shlex
from pathlib import Path

import pytest
import yaml
from preloaded import python

from gr00t_nb.settings.official_flags import from_flags

ROOT = Path(__file__).resolve().parents[1]


def run(args, cwd: Path) -> str:
    "What a command says; it must end well."
    done = python(*args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    "Where a run was started, in the folder `my run`, with a look at scripts and sample as from a checkout."
    place = tmp_path_factory.mktemp("card")
    for name in ("scripts", "data_samples"): (place / name).symlink_to(ROOT / name)
    flags = [
        *("--base-model-path", "tiny", "--dataset-path", "data_samples/cube_to_bowl"),
        *("--embodiment-tag", "NEW_EMBODIMENT"),
        *("--modality-config-path", "data_samples/cube_to_bowl_config.py"),
        *("--tune-llm", "--tune-visual", "--val-fraction", "0.05", "--exclude-episodes", "7"),
        *("--max-steps", "3", "--save-steps", "2", "--logging-steps", "1"),
        *("--global-batch-size", "4", "--dataloader-num-workers", "0"),
        *("--output-dir", "my run", "--video-backend", "decord", "--learning-rate", "1e-3"),
    ]
    said = run(["scripts/finetune.py", *flags], place)
    assert "note: --video-backend is without effect: torchcodec decodes." in said
    return place


@pytest.fixture(scope="module")
def card(place) -> str:
    return (place / "my run/README.md").read_text()


def block(card: str, language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", card, re.S)[number]


def command(text: str) -> list[str]:
    "A command of the README, without its first word."
    first, *args = shlex.split(text)
    assert first == "python"
    return args


def test_every_checkpoint_has_it(place, card):
    for n in (2, 3): assert (place / f"my run/checkpoint-{n}/README.md").read_text() == card


def test_head_is_yaml(card):
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == "tiny" and head["datasets"] == ["cube_to_bowl"]
    assert head["library_name"] == "gr00t_nb" and head["license"] == "unknown"


def test_data_is_what_was_trained_on(card):
    held = re.search(r"\| held out \| (.*) \|", card)[1]
    assert len(re.findall(r"\d+", held)) == 2 and re.search(r"\| left out \| 7 \|", card)


def test_the_command_repeats_the_run(place, card):
    "To the bit, in another folder."
    again = command(block(card, "bash"))
    config, notes = from_flags(again[1:])
    assert config.output_dir == "my run-again" and notes == []
    run(again, place)
    for name in ("model.safetensors", "statistics.json", "checkpoint-2/model.safetensors"):
        first, second = (place / folder / name for folder in ("my run", "my run-again"))
        assert first.read_bytes() == second.read_bytes(), name


def test_the_checkpoint_is_used_as_it_says(place, card):
    script = place / "ask.py"
    script.write_text(block(card, "python") + "\nprint(policy.tag, policy.family.name)")
    assert "new_embodiment GR00T N1.6" in run([script], place)
    evaluation = command(block(card, "bash", 1)) + ["--steps", "16"]
    assert "2 held-out episodes" in run(evaluation, place)


def test_words_on_another_code_base_are_of_this_checkpoint(place, card):
    "The files that its edits name are there, with what they speak of."
    folder = place / "my run/checkpoint-3"
    for name in re.findall(r"`([\w/]+\.(?:json|yaml))`", card):
        if name != "meta/stats.json" and not name.startswith("tokenizer"):
            assert (folder / name).exists(), name
    for name in ("tokenizer.json", "tokenizer_config.json"): assert (folder / "tokenizer" / name).exists()
    config = yaml.safe_load((folder / "experiment_cfg/config.yaml").read_text())
    entry = config["data"]["modality_configs"]["new_embodiment"]["action"]
    assert isinstance(entry, dict) and "action_configs" in entry  # plain maps, as it says
