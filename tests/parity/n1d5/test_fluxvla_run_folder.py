"""The folder of a FluxVLA run, made of its public configurations: the robots are the recipes', and an observation
becomes the batch that FluxVLA made of it.
"""
import dataclasses
import json
import re
import zipfile

import pytest
import torch
from safetensors.numpy import load_file as stored_tensors

from gr00t_nb.checkpoints.registry import family_of
from gr00t_nb.files import read_json, write_json
from gr00t_nb.fluxvla.config_robots import run_robots
from gr00t_nb.fluxvla.pixels import FLUXVLA_MEAN, FLUXVLA_STD
from gr00t_nb.settings.recipe_book import RECIPES
from test_fluxvla_data import close

PUBLIC = [n for n, r in RECIPES.items() if r.windows and len(r.robots) == 1 and not {"head", "cameras"} & {*r.assumed}]


@pytest.fixture(scope="module")
def table(bundle):
    return json.loads(bundle("fluxvla/configs_table.json").read_text())


def run_of(folder, public: dict, statistics: dict, **normalize):
    "The files that decide a sample, as FluxVLA writes them."
    constants = dict(means=[FLUXVLA_MEAN], stds=[FLUXVLA_STD])
    known = dict(
        ProcessParquetInputs=public["inputs"], ResizeImages=public.get("resize", {}), NormalizeImages=constants,
        ProcessPromptsWithImage=public.get("prompt", {}), NormalizeStatesAndActions=public["normalize"] | normalize,
    )
    transforms = [dict(type=n) | known.get(n, {}) for n in public["transforms"]]
    data = public["dataset_wrapper"] | dict(datasets=[public["dataset"] | dict(transforms=transforms)])
    model = dict(type="LlavaVLA", vlm_backbone=public["backbone"], vla_head=public["head"])
    said = dict(model=model | public["model_level_extra"], train_dataloader=dict(dataset=data))
    write_json(folder / "config.json", said | dict(runner=public["runner"], inference_model=model))
    write_json(folder / "dataset_statistics.json", statistics)
    return folder


def entries(width: int) -> dict:
    return dict.fromkeys(("mean", "std", "min", "max"), [1.0] * width) | dict(q01=None, q99=None)


@pytest.mark.parametrize("name", PUBLIC)
def test_robots_of_public_runs(name, table, tmp_path):
    recipe = RECIPES[name]
    public, robot = table[recipe.source.removeprefix("FluxVLA, configs/")], recipe.robot
    widths = dict(proprio=entries(robot.state_dim), action=entries(robot.action_dim), timestamp=entries(1))
    folder = run_of(tmp_path, public, {public["dataset_wrapper"].get("statistic_name", "private"): widths})
    config = family_of(folder).read_config(folder)
    (tag, found), = run_robots(folder, config.action_horizon).items()
    pixels = {} if "NormalizeImages" not in public["transforms"] else dict(
        pixel_means=([*FLUXVLA_MEAN],), pixel_stds=([*FLUXVLA_STD],)
    )
    own = dict(state_dim=None, rate=None, embodiment_id=public["inputs"].get("embodiment_id"))
    if "max_len" not in public.get("prompt", {}): own["max_len"] = found.robot.max_len
    assert found.robot == dataclasses.replace(robot, **pixels, **own)
    assert tag == robot.tag and len(found.config["action"].delta_indices) == robot.chunk
    assert found.modality["state"]["proprio"]["end"] == robot.state_dim


@pytest.mark.parametrize("mode", ["mean_std", "quantile"])
def test_an_observation(bundle, table, tmp_path, mode):
    told = read_json(bundle("fluxvla/extra/private_inference.json"))
    t = stored_tensors(bundle("fluxvla/extra/private_inference.safetensors"))
    theirs = {k.split(".", 1)[1]: v for k, v in t.items() if k.startswith(f"{mode}.")}
    public = table["gr00t/gr00t_eagle_3b_aloha_full_finetune.py"]
    public["inputs"]["embodiment_id"] = int(theirs["embodiment_ids"][0])
    folder = run_of(tmp_path / "run", public, told["stats"], norm_type=mode)
    with zipfile.ZipFile(bundle("tokenizer_eagle2.zip")) as z: z.extractall(tmp_path / "files")
    place = next(p.parent for p in (tmp_path / "files").rglob("tokenizer_config.json"))
    place.rename(folder / "tokenizer")
    processor = family_of(folder).load_processor(folder)
    config = processor.modality_configs["new_embodiment"]
    said = processor.tokenizer.decode(theirs["lang_tokens"][0])
    step = {f"video.{v}": f[None] for v, f in zip(config["video"].modality_keys, t["in.images_hwc"])}
    step[config["language"].modality_keys[0]] = re.search(r"</img>([^<]*)<\|im_end\|>", said)[1]
    batch = processor.collate([processor(step | {"state.proprio": t["in.qpos"][None]}, "new_embodiment")])
    close(batch["state"][:, 0], theirs["states"], mode)
    close(batch["pixel_values"][0].numpy().reshape(1, 9, 224, 224)[..., ::8, ::8], theirs["images"], mode)
    for ours, name in (("input_ids", "lang_tokens"), ("attention_mask", "lang_masks")):
        assert torch.equal(batch[ours], torch.from_numpy(theirs[name]).long())
    assert batch["embodiment_id"].tolist() == theirs["embodiment_ids"].tolist()
