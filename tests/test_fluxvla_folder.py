"""The folder that FluxVLA trained in, as a checkpoint of every command: the same answers as the checkpoint of this kit
that has the same weights and statistics.
"""
import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "nbs"))
from _fluxvla_run import fluxvla_run
from preloaded import python
from runs import RUN

from gr00t_nb.checkpoints.base_models import resolve_base_model
from gr00t_nb.checkpoints.export import export_changed, export_full, push_to_hub
from gr00t_nb.checkpoints.manifest import broken_files
from gr00t_nb.checkpoints.registry import family_of
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_steps
from gr00t_nb.errors import InputError
from gr00t_nb.evaluation.asking import AskingConfig
from gr00t_nb.evaluation.open_loop import evaluate_open_loop
from gr00t_nb.files import read_json, write_json
from gr00t_nb.fluxvla.column_robot import ColumnRobot
from gr00t_nb.fluxvla.fluxvla_processor import FluxvlaProcessor
from gr00t_nb.fluxvla.merged_statistics import statistics_of_roots
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.serving.questions import example_question, try_once
from gr00t_nb.serving.server import ServerConfig
from gr00t_nb.settings.fluxvla_recipe import find_recipe
from gr00t_nb.training.finetune import finetune

SAMPLE = ROOT / "data_samples/cube_to_bowl"
CAMERAS = "observation.images.front", "observation.images.wrist"
ARM = ColumnRobot(CAMERAS, chunk=16, action_dim=7, max_len=160, embodiment_id=2)
TAG = "new_embodiment"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A checkpoint of this kit, and FluxVLA's folder of the same model."
    place = tmp_path_factory.mktemp("fluxvla")
    base = resolve_base_model("tiny-n1.5")
    family = family_of(base)
    model, processor = family.load_model(base), family.load_processor(base)
    modality, config = ARM.described(LeRobotDataset(SAMPLE).info)
    recorded = LeRobotDataset(SAMPLE, modality)
    processor = FluxvlaProcessor.around(processor, max_len=160, embodiment_ids={TAG: 2})
    processor.set_robot(TAG, ARM.treatment())
    statistics = statistics_of_roots([recorded], config, fluxvla_statistics=True)
    processor.set_embodiment(TAG, config, statistics)
    model.config.ori_action_dim = 7
    family.save(place / "kit", model, processor)
    return place / "kit", fluxvla_run(place / "run", model, processor, ARM), recorded


@pytest.fixture
def run(made, tmp_path):
    "A copy of the folder that a test may spoil."
    return shutil.copytree(made[1], tmp_path / "run", symlinks=True)


def answers(folder: Path, recorded: LeRobotDataset) -> np.ndarray:  # (2, 16, 7)
    policy = Gr00tPolicy(TAG, folder, device="cpu")
    asked = read_steps(recorded, 0, [0, 30], policy.modality_config)
    return policy.predict(asked, noise=policy.draw_noise(0))["action"]


def ends_with(done, words: str):
    "A command that was refused in one sentence."
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr


# ---------------------------------------------------------------- answers
def test_the_same_answers(made):
    "From the folder, and from each file of weights in it: to the bit."
    kit, folder, recorded = made
    expected = answers(kit, recorded)
    assert len(files := sorted((folder / "checkpoints").iterdir())) == 4
    for place in (folder, *files): np.testing.assert_array_equal(answers(place, recorded), expected)


def test_a_copy_without_links(made, run):
    "The weights of the latest step: a copy may lose links, and numbers are no words."
    inside = run / "checkpoints"
    for link in inside.glob("latest-*"): link.unlink()
    old = inside / "step-000009-epoch-00-loss=0.2000.safetensors"
    shutil.copy(next(inside.glob("*.safetensors")), old)
    assert (answers(run, made[2]) == answers(made[0], made[2])).all()
    for file in inside.glob("step-000010*.safetensors"): file.rename(inside / "step-001000.safetensors")
    (inside / "step-001000.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="step-001000.safetensors"): Gr00tPolicy(TAG, run, device="cpu")


def test_answers_are_as_long_as_the_head_says(made, run):
    "And not as the windows of the training, as FluxVLA has it."
    said = read_json(run / "config.json")
    said["model"]["vla_head"]["num_steps"] = 12
    write_json(run / "config.json", said)
    assert answers(run, made[2]).shape == (2, 12, 7)


# ---------------------------------------------------------------- commands
def test_the_evaluation_needs_no_modality(made, tmp_path):
    "The data set's columns are those of the configuration; pictures lie in the folder that was named."
    kit, folder, recorded = made
    asking = AskingConfig(str(folder), str(SAMPLE), device="cpu", traj_ids=[0])
    policy, dataset, episodes = asking.open()
    assert dataset.modality == recorded.modality and episodes == [0]
    ours = evaluate_open_loop(policy, dataset, [0], steps=20).table()
    theirs = evaluate_open_loop(Gr00tPolicy(TAG, kit, device="cpu"), recorded, [0], steps=20).table()
    assert ours == theirs
    words = ["--model-path", str(folder), "--dataset-path", str(SAMPLE), "--traj-ids", "0", "--steps", "20"]
    pictures = ["--save-plot-path", str(tmp_path / "pictures")]
    done = python("-m", "gr00t_nb.evaluation.open_loop", *words, *pictures, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert [*(tmp_path / "pictures").glob("*.png")]


def test_it_is_served(made):
    policy = ServerConfig(str(made[1]), device="cpu").policy()
    assert try_once(policy) and policy.get_action(example_question(policy))[0]["action"].shape == (1, 16, 7)


def test_it_moves_a_robot(made, tmp_path):
    "One of metal, here a recording of it, and one in a simulator."
    words = ["--model-path", str(made[1]), "--device", "cpu"]
    about = ["--robot", "recording", "--dataset-path", str(SAMPLE), "--instruction", "put the cube into the bowl"]
    more = ["--repeats", "1", "--dry-run", "--plots", str(tmp_path / "plots")]
    done = python("-m", "gr00t_nb.rollout.run", *words, *about, *more)
    assert done.returncode == 0, done.stderr
    assert [*(tmp_path / "plots").rglob("*.png")]
    few = ["--episodes", "1", "--max-steps", "4", "--output-dir", str(tmp_path / "out")]
    done = python("-m", "gr00t_nb.rollout.evaluate", *words, *few)
    assert done.returncode == 0, done.stderr
    assert "0/1" in done.stdout and [*(tmp_path / "out").iterdir()]


def test_written_again_it_is_a_checkpoint(made, tmp_path):
    kit, folder, recorded = made
    done = export_full(folder / "checkpoints/latest-checkpoint.pt", tmp_path / "out", "float32")
    assert not broken_files(done, full=True) and family_of(done).foreign_layout(done) == ""
    family = family_of(done)
    assert read_json(done / "config.json") == family.read_config(folder).to_dict()
    assert family.read_config(done).ori_action_dim == 7
    np.testing.assert_array_equal(answers(done, recorded), answers(kit, recorded))
    assert AskingConfig(str(done), str(SAMPLE), device="cpu", traj_ids=[0]).open()[1].modality == recorded.modality
    again = export_changed(done, tmp_path / "changed", base=str(folder))  # a base by FluxVLA's names
    assert len(read_json(again / "base.json")["kept"]) == len(family_of(kit).load_model(kit).state_dict())
    half = export_full(folder, tmp_path / "half")
    assert {p.dtype for p in family_of(half).load_model(half).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("refused", [
    lambda folder, out: export_changed(folder, out, base="tiny-n1.5"),
    lambda folder, out: push_to_hub(folder, "somebody/something"),
])
def test_written_again_first(made, tmp_path, refused):
    with pytest.raises(InputError, match="is a run of FluxVLA, .*export full .*run FOLDER, and give that one"):
        refused(made[1], tmp_path / "out")


def test_a_run_begins_with_it(made, tmp_path):
    "Its robot is a recipe, by the same file; its first loss is that of the kit's own checkpoint."
    kit, folder, _ = made
    losses = []
    for base in (kit, folder, folder / "checkpoints/latest-checkpoint.pt"):
        config = dataclasses.replace(
            RUN, base_model_path=str(base), recipe=str(folder / "config.json"), modality_config_path=None,
            output_dir=str(tmp_path / f"out{len(losses)}"), max_epochs=None,
        )
        losses.append([r["loss"] for r in finetune(config).log])
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == RUN.max_steps
    recipe = find_recipe(str(folder / "config.json"))
    assert recipe.robot == dataclasses.replace(ARM, action_dim=7)
    assert find_recipe(str(folder)) == dataclasses.replace(
        recipe, name=find_recipe(str(folder)).name, about=find_recipe(str(folder)).about,
        source=find_recipe(str(folder)).source,
    )


# ---------------------------------------------------------------- refusals
def spoilt(run: Path, change) -> Path:
    change(run)
    return run


def with_code(run: Path):
    "A pickle that would run code."
    for file in (run / "checkpoints").glob("*.safetensors"): file.unlink()
    for file in (run / "checkpoints").glob("latest-*"): file.unlink()
    torch.save(dict(model=dict(a=torch.zeros(1)), more=SAMPLE), next((run / "checkpoints").glob("*.pt")))


def without_head(run: Path):
    said = read_json(run / "config.json")
    said["model"]["vla_head"]["type"] = "LlavaActionHead"
    write_json(run / "config.json", said)


@pytest.mark.parametrize("change,words", [
    (lambda r: (r / "config.json").unlink(), "holds no config.json, as of a run of FluxVLA in part: copy config.json"),
    (lambda r: (r / "dataset_statistics.json").unlink(), "without dataset_statistics.json, and without statistics"),
    (lambda r: shutil.rmtree(r / "tokenizer"), "holds no tokenizer/ folder: give one with --tokenizer-path"),
    (lambda r: shutil.rmtree(r / "checkpoints"), "There are no weights in"),
    (with_code, "cannot be read as bare weights (it holds a pathlib.PosixPath)"),
    (without_head, "has a vla_head of the type 'LlavaActionHead': expected FlowMatchingHead"),
], ids=["config", "statistics", "tokenizer", "weights", "code", "head"])
def test_a_folder_that_cannot_be_asked(run, change, words):
    done = python("-m", "gr00t_nb.evaluation.open_loop", "--model-path", str(spoilt(run, change)),
                  "--dataset-path", str(SAMPLE), "--device", "cpu")
    ends_with(done, words)


def test_its_weights_alone(made):
    with pytest.raises(InputError, match=r"config.json, which lies above it: give .*run, or a file in"):
        Gr00tPolicy(TAG, made[1] / "checkpoints")
