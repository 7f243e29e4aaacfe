"Recipes: each trains on data of its robot, one wrong value is refused, and a run is told what it follows."
import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT, SAMPLE
from torch.utils.data import DataLoader

from gr00t_nb.checkpoints.base_models import resolve_base_model
from gr00t_nb.checkpoints.registry import family_of
from gr00t_nb.data.info import read_info
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.engine.collation import Collator
from gr00t_nb.errors import InputError
from gr00t_nb.evaluation.asking import AskingConfig
from gr00t_nb.evaluation.open_loop import evaluate_open_loop
from gr00t_nb.evaluation.replay import ReplayPolicy
from gr00t_nb.fluxvla.column_robot import ColumnRobot
from gr00t_nb.loading.order import GlobalBatches
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.settings.mixtures import MixtureEntry
from gr00t_nb.settings.recipe import Recipe, robot_to_json
from gr00t_nb.settings.recipe_book import RECIPES
from gr00t_nb.training.finetune import finetune
from gr00t_nb.training.plan import plan_run
from gr00t_nb.training.prepare import prepare_data, training_dataset

sys.path.append(str(ROOT / "nbs"))
from _recordings import recorded

SHORT = dict(max_steps=3, global_batch_size=2, dataloader_num_workers=0, logging_steps=1, save_steps=100)
TINY = {
    "eagle": "tiny-n1.5",
    "qwen2.5-vl": "tiny-n1.5-qwen2.5-vl",
    "paligemma": "tiny-n1.5-paligemma",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    "By recipe the small model that it begins with."
    wide = tmp_path_factory.mktemp("wide")
    family = family_of(tiny := resolve_base_model("tiny"))
    processor = family.load_processor(tiny, max_action_horizon=32)
    family.save(wide, family.load_model(tiny, widen=True, action_horizon=32), processor)
    found = {n: TINY[r.backbone] if r.windows else "tiny" for n, r in RECIPES.items()}
    return found | {"behavior-r1-pro": str(wide)}  # as long a chunk as NVIDIA's checkpoint for it


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    "Data sets of a recipe's robots, made once: name of a robot -> folder."
    made = {}

    def of(recipe: Recipe) -> dict[str, str]:
        for robot in recipe.robots.values():
            key = json.dumps(robot_to_json(robot) | dict(max_len=0, padding_images=0), sort_keys=True)
            if key not in made: made[key] = str(recorded(tmp_path_factory.mktemp("data"), robot).path)
            yield made[key]

    return lambda recipe: dict(zip(recipe.robots, of(recipe)))


def asked(recipe: Recipe, paths: dict, base: str, folder, **more) -> FinetuneConfig:
    data = paths if len(paths) > 1 else next(iter(paths.values()))
    place = dict(dataset_path=data, output_dir=str(folder))
    return FinetuneConfig(base, recipe=recipe, check_data=False, **SHORT | place | more)


def kind(recipe: Recipe) -> tuple:
    "What recipes may share that differ in names and numbers alone."
    looks = lambda r: (len(r.cameras), r.norm_type, r.chunk) if recipe.windows else id(r)
    return recipe.backbone, recipe.windows, *map(looks, recipe.robots.values())


def pytest_generate_tests(metafunc):
    "Of recipes of one kind the first is tried; all of them with --all-recipes."
    if metafunc.function is not test_every_recipe_trains: return
    first = {kind(RECIPES[n]): n for n in reversed(RECIPES)}
    every = metafunc.config.getoption("--all-recipes")
    metafunc.parametrize("name", list(RECIPES) if every else [*first.values()][::-1])


def test_every_recipe_trains(name, bases, recordings, tmp_path):
    "On data with its robot's columns, cameras, rate and pauses; and the policy answers its chunk."
    recipe = RECIPES[name]
    run = finetune(asked(recipe, recordings(recipe), bases[name], tmp_path / "run"))
    assert len(run.log) == 3 and all(np.isfinite(line["loss"]) for line in run.log)
    config = run.prepared.config
    for key, value in recipe.settings.items():
        if key not in (*SHORT, "max_epochs"): assert getattr(config, key) == value, key
    for root, robot in zip(run.prepared.roots, recipe.robots.values()):
        policy = Gr00tPolicy(root.tag, run.output_dir, device="cpu")
        table = evaluate_open_loop(policy, root.dataset, [0]).table()
        assert np.isfinite(table[-1]["mse policy"])
        assert len(policy.get_modality_config()["action"].delta_indices) == robot.chunk
    if recipe.windows:
        chunk = max(r.chunk for r in recipe.robots.values())
        assert run.model.config.action_horizon == chunk
        known = [r.action_dim for r in recipe.robots.values()]
        assert run.model.config.ori_action_dim == (known[0] if len(known) == 1 else None)


BROKEN = {  # a value of a robot -> another, and what is said
    "cameras": (("observation.images.cam_hihg",), "Did you mean"),
    "state_key": ("observation.stat", "Did you mean 'observation.state'?"),
    "action_key": ("actions", "has no column 'actions'"),
    "state_dim": (15, "numbers in .*, and the recipe's state_dim is 15"),
    "action_dim": (3, "numbers in .*, and the recipe's action_dim is 3"),
    "norm_type": ("mean_sdt", "Did you mean 'mean_std'?"),
    "norm_mask": ((True, False), "norm_mask of .* has 2 entries"),
    "embodiment_id": (99, "embodiment_id 99, but the model has slots 0 to"),
    "max_len": (5, "has .* tokens and max_len is 5"),
    "pixel_means": (((1, 2, 3),), "One of pixel_means and pixel_stds is given"),
    "chunk": (2000, "position table"),
}


@pytest.mark.parametrize("name", ["libero-10", "aloha", "libero-10-paligemma"])
def test_one_wrong_value_is_refused(name, bases, recordings, tmp_path):
    "Of recipes with other backbones and robots; no checkpoint is written."
    recipe = RECIPES[name]
    paths = recordings(recipe)
    for field, (value, words) in BROKEN.items():
        with pytest.raises(InputError, match=words):
            wrong = {n: replace(r, **{field: value}) for n, r in recipe.robots.items()}
            finetune(asked(replace(recipe, robots=wrong), paths, bases[name], tmp_path / field))
        assert not (tmp_path / field / "checkpoint-3").exists(), field


def test_the_run_is_told_what_it_follows(bases, recordings, tmp_path, capsys):
    "In its header and record; it resumes with the same recipe only; open loop reads data as it did."
    recipe = RECIPES["ur3"]
    paths = recordings(recipe)
    config = asked("ur3", paths, bases["ur3"], tmp_path, cfg_options=["runner.max_grad_norm=0.5"])
    run = finetune(config)
    said = capsys.readouterr().out
    assert "recipe   ur3 (runner.max_grad_norm=0.5): Six joints and a gripper" in said
    record = json.loads((tmp_path / "experiment_cfg/finetune.json").read_text())
    assert record["config"]["recipe"] == "ur3"
    with pytest.raises(InputError, match="what the recipe says of the robot differs"):
        other = replace(recipe, robots=dict(ur3=replace(recipe.robot, norm_type="min_max")))
        finetune(replace(config, recipe=other, cfg_options=None, max_steps=4))
    with pytest.raises(InputError, match="model was GR00T N1.5, now GR00T N1.5 with Qwen2.5-VL"):
        other = replace(recipe, backbone="qwen2.5-vl")
        finetune(replace(config, base_model_path=TINY[other.backbone], recipe=other, max_steps=4))
    assert finetune(replace(config, max_steps=4)).log[-1]["step"] == 4
    _, dataset, _ = AskingConfig(str(run.output_dir), next(iter(paths.values()))).open()
    assert "proprio" in dataset.modality["state"]


def test_several_robots_give_one_order(bases, recordings, tmp_path):
    "The same batches for one and two processes, and for any number of workers."
    recipe = RECIPES["libero+aloha"]
    prepared = prepare_data(asked(recipe, recordings(recipe), bases[recipe.name], tmp_path))
    data = training_dataset(prepared.config, prepared)
    model_config = prepared.family.read_config(prepared.base)
    model_config.action_horizon = 32
    collate = Collator(prepared.processor, model_config, seed=42)
    whole = [collate(data.__getitems__(b)) for b in (range(0, 4), range(4, 8))]
    assert {2, 0} <= set(whole[0]["embodiment_id"].tolist() + whole[1]["embodiment_id"].tolist())
    for rank in (0, 1):
        own = [list(b) for b, _ in zip(GlobalBatches(4, rank, 2), range(2))]
        for workers in (0, 2):
            loader = DataLoader(data, batch_sampler=own, num_workers=workers, collate_fn=collate)
            for batch, ahead in zip(loader, whole):
                half = slice(2 * rank, 2 * rank + 2)
                for key in ("state", "action", "action_mask", "embodiment_id", "noise", "time", "input_ids"):
                    assert (batch[key] == ahead[key][half]).all(), key


def test_mixtures_name_recipes(bases, recordings, tmp_path):
    "An entry that says only which recipe, and one with a robot of its own."
    recipe = RECIPES["libero+aloha"]
    paths = recordings(recipe)
    entries = [
        MixtureEntry("spoons", paths["libero"], recipe="libero+aloha:libero", ratio=2),
        MixtureEntry("towels", paths["aloha"], recipe=robot_to_json(recipe.robots["aloha"])),
    ]
    config = FinetuneConfig("tiny-n1.5", mixture=entries, output_dir=str(tmp_path), **SHORT)
    prepared = prepare_data(replace(config, check_data=False))
    assert prepared.tags == ["libero_panda", "new_embodiment"] and prepared.slots == [2, 0]
    assert prepared.processor.settings["max_len"] == 900
    with pytest.raises(InputError, match="'towels' has none: give every entry such a recipe"):
        plain = replace(entries[1], recipe=None, embodiment_tag="GR1")
        prepare_data(replace(config, mixture=[entries[0], plain]))


def test_a_plan_knows_the_recipe(recordings):
    "Prompts of the recipe's length, and chunks of its own."
    recipe = RECIPES["aloha"]
    data = next(iter(recordings(recipe).values()))
    plan = plan_run(FinetuneConfig("tiny-n1.5", recipe="aloha", dataset_path=data, check_data=False))
    assert plan.tokens == 900


def test_a_file_of_fluxvla_is_followed(recordings, bases, tmp_path, capsys):
    "Its data sets, its values, and the options of the command line; nothing of it is executed."
    data = next(iter(recordings(RECIPES["ur3"]).values()))
    file = tmp_path / "ur3.py"
    transforms = [
        dict(
            type="ProcessParquetInputs", embodiment_id=31,
            video_keys=["observation.images.cam_high", "observation.images.cam_wrist"],
            name_mappings={"observation.state": ["states"]},
        ),
        dict(type="ProcessPromptsWithImage", max_len=600, num_images=2),
        dict(type="ResizeImages", height=224, width=224),
        dict(type="NormalizeImages", means=[[123.5, 116, 103.6]] * 2, stds=[[58.3, 57, 57.3]] * 2),
        dict(type="NormalizeStatesAndActions", norm_type="proprio", state_dim=64, action_dim=32),
    ]
    dataset = dict(type="ParquetDataset", data_root_path=[data], action_window_size=32, transforms=transforms)
    loader = dict(per_device_batch_size=8, dataset=dict(datasets=[dataset]))
    head = dict(type="FlowMatchingHead", num_steps=32, ori_action_dim=7, traj_length=10)
    model = dict(type="LlavaVLA", vlm_backbone=dict(type="EagleBackbone"), vla_head=head)
    runner = dict(type="FSDPTrainRunner", max_epochs=2, learning_rate=3e-5, lr_scheduler_type="constant")
    file.write_text(f"model = {model}\ntrain_dataloader = {loader}\nrunner = {runner}\n")
    options = ["runner.learning_rate=1e-5", "train_dataloader.per_device_batch_size=1"]
    config = FinetuneConfig(
        "tiny-n1.5", recipe=str(file), cfg_options=options, output_dir=str(tmp_path / "run"),
        check_data=False, **SHORT | dict(global_batch_size=None),
    )
    assert (config.learning_rate, config.global_batch_size, config.adam_betas) == (1e-5, 8, (0.9, 0.999))
    run = finetune(replace(config, global_batch_size=2))
    robot = run.prepared.processor.robot("new_embodiment")
    assert robot.norm_type == "mean_std" and robot.pixel_means[0] == [123.5, 116, 103.6]
    assert run.prepared.slots == [31]
    said = capsys.readouterr().out
    for words in ("'proprio' is none", "UR3's is 2", "traj_length", "8 on any number", "these constants"):
        assert words in said, words
    with pytest.raises(InputError, match="line 1, has `__import__"):
        file.write_text("model = __import__('os').listdir('.')\n")
        FinetuneConfig("tiny-n1.5", recipe=str(file), dataset_path=data)


def test_statistics_of_fluxvla_on_request(recordings, tmp_path):
    "Its standard deviations are too small by the root of the width; a file's own ones are taken as they are."
    recipe = RECIPES["ur3"]
    paths = recordings(recipe)
    def spread(robot: ColumnRobot) -> np.ndarray:
        told = replace(recipe, robots=dict(ur3=robot))
        prepared = prepare_data(asked(told, paths, "tiny-n1.5", tmp_path))
        return np.array(prepared.processor.statistics["new_embodiment"]["state"]["proprio"]["std"])

    right, theirs = spread(recipe.robot), spread(replace(recipe.robot, fluxvla_statistics=True))
    np.testing.assert_allclose(theirs, right / np.sqrt(7), rtol=1e-4)
    entries = dict(mean=[0.0] * 7, std=[0.5] * 7, min=[-1.0] * 7, max=[1.0] * 7, q01=[-1.0] * 7, q99=[1.0] * 7)
    own = dict(state=dict(proprio=entries), action=dict(action=entries))
    assert spread(replace(recipe.robot, statistics=own)).tolist() == [0.5] * 7


def test_open_loop_compares_later_chunks_with_later_rows(recordings):
    "A chunk that begins a row ahead is compared from there on, and holding still is known for it."
    robot = RECIPES["ur3"].robot
    data, = recordings(RECIPES["ur3"]).values()
    ds = LeRobotDataset(data, robot.described(read_info(Path(data)))[0])
    replay = ReplayPolicy(ds, robot.described(ds.info)[1])
    result, = evaluate_open_loop(replay, ds, [0]).table()[-1:]
    assert result["mse policy"] == 0 and 0 < result["mse hold state"] < result["mse repeat action"]


def test_settings_are_fields():
    "No recipe sets what a run does not have."
    known = {f.name for f in dataclasses.fields(FinetuneConfig)}
    for recipe in RECIPES.values(): assert recipe.settings.keys() <= known, recipe.name


def test_another_backbone_is_refused(recordings):
    recipe = RECIPES["libero-10-paligemma"]
    with pytest.raises(InputError, match="is for a network with paligemma, and .* has eagle"):
        prepare_data(asked(recipe.name, recordings(recipe), "tiny-n1.5", "out"))


def test_another_generation_is_refused():
    with pytest.raises(InputError, match="not trained on FluxVLA's windows"):
        robot = ColumnRobot(("observation.images.front",))
        recipe = Recipe("mine", "", "tiny", dict(arm=robot))
        prepare_data(FinetuneConfig(recipe=recipe, dataset_path=str(SAMPLE), check_data=False))
