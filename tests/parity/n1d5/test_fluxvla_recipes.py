"The recipes against the public configurations that FluxVLA publishes."
import json

import pytest

from gr00t_nb.fluxvla.numbers import norm_type_of
from gr00t_nb.settings.fluxvla_recipe import BACKBONE_TYPES, fluxvla_config
from gr00t_nb.settings.recipe_book import RECIPES
from gr00t_nb.settings.recipe import Recipe

PUBLIC = [n for n, r in RECIPES.items() if r.windows and len(r.robots) == 1 and "towel" not in n]


@pytest.fixture(scope="module")
def table(bundle):
    return json.loads(bundle("fluxvla/configs_table.json").read_text())


def told(recipe: Recipe, name: str):
    "A value, unless the recipe says that it was assumed."
    values = recipe.settings | vars(recipe.robot)
    return None if name in recipe.assumed else values[name]


@pytest.mark.parametrize("name", PUBLIC)
def test_values_are_the_public_ones(name, table):
    recipe = RECIPES[name]
    robot, public = recipe.robot, table[recipe.source.removeprefix("FluxVLA, configs/")]
    runner, data, inputs = public["runner"], public["dataset"], public["inputs"]
    expected = dict(
        cameras=tuple(inputs["video_keys"]),
        chunk=data["action_window_size"],
        action_key=data.get("action_key", "observation.state"),
        window_start=data.get("window_start_idx", 1),
        use_delta=data.get("use_delta", False),
        norm_type=norm_type_of(public["normalize"]["norm_type"]),
        max_epochs=runner["max_epochs"],
        learning_rate=runner["learning_rate"],
        weight_decay=runner["weight_decay"],
        max_grad_norm=runner["max_grad_norm"],
        warmup_ratio=runner["warmup_ratio"],
        lr_scheduler=runner["lr_scheduler_type"],
        dataloader_num_workers=public["workers"],
        global_batch_size=8 * public["per_device_batch_size"],
        tune_llm=not public["freeze"]["freeze_vlm_backbone"],
    )
    if "embodiment_id" in inputs: expected["embodiment_id"] = inputs["embodiment_id"]
    if "max_len" in public.get("prompt", {}): expected["max_len"] = public["prompt"]["max_len"]
    for key, value in expected.items(): assert told(recipe, key) == value, key
    assert recipe.settings.get("seed", 42) == public["dataset_wrapper"].get("seed", 42)
    assert recipe.backbone == BACKBONE_TYPES[public["backbone"]["type"]]
    if "num_images" in public.get("prompt", {}): assert public["prompt"]["num_images"] == len(robot.cameras)


@pytest.mark.parametrize("name", PUBLIC)
def test_numbers_of_the_robot(name, table):
    recipe = RECIPES[name]
    public = table[recipe.source.removeprefix("FluxVLA, configs/")]
    real = public["head"].get("ori_action_dim", public["model_level_extra"].get("ori_action_dim"))
    if real is None: real = public["normalize"]["action_dim"]  # PaliGemma's file pads nothing
    assert recipe.robot.action_dim == real
    rate = (public.get("inference") or {}).get("publish_rate", recipe.robot.rate)
    assert recipe.robot.rate == rate
    head = fluxvla_config(recipe)["model"]["vla_head"]
    assert head["num_steps"] == public["head"].get("num_steps", 10)  # FluxVLA's own default


def test_what_is_assumed_is_published_nowhere(table):
    "The fold-towel configurations, and PaliGemma under the flow-matching head."
    assert not [n for n in table if "towel" in n]
    heads = [c["head"]["type"] for c in table.values() if c["backbone"]["type"] == "PaliGemma"]
    assert "FlowMatchingHead" not in heads
    assert "head" in RECIPES["libero-10-paligemma"].assumed
    for name in ("aloha-fold-towel-3cam", "aloha-fold-towel-4cam"):
        assert {"cameras", "chunk", "max_len", "max_epochs"} <= {*RECIPES[name].assumed}
