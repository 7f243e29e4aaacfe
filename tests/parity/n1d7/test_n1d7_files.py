"What N1.7 calls robots, its defaults, and the files of a run, against those that the official code wrote."
import json
import shutil

import numpy as np
import pytest
import yaml

from gr00t_nb.checkpoints.official_files import read_initial_actions, read_official_config
from gr00t_nb.checkpoints.official_files import write_initial_actions
from gr00t_nb.cosmos.n1d7_processor import N1D7_DEFAULTS, N1D7_FINE_TUNING, Gr00tN1d7Processor
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.robots import N1D7_ROBOTS
from gr00t_nb.settings.config import FinetuneConfig


def test_robots(bundle):
    "Names, values, rows, and which configurations are built in."
    said = json.loads(bundle("embodiments.json").read_text())
    assert {n: t["value"] for n, t in said["tags"].items()} == dict(N1D7_ROBOTS.tags)
    assert {t["value"]: t["projector_index"] for t in said["tags"].values()} == dict(N1D7_ROBOTS.slots)
    built_in = {t["value"] for t in said["tags"].values() if t["builtin_config"]}
    assert set(N1D7_ROBOTS.configs) == built_in == set(said["modality_configs"])
    for tag, parts in said["modality_configs"].items():
        assert {m: c.to_json() for m, c in N1D7_ROBOTS.configs[tag].items()} == parts, tag


OURS = dict(  # official name of a field of FinetuneConfig -> ours, where it has another default
    gradient_accumulation_steps="gradient_accumulation_steps",
    global_batch_size="global_batch_size",
    dataloader_num_workers="dataloader_num_workers",
    save_steps="save_steps",
    save_total_limit="save_total_limit",
    save_only_model="save_only_model",
    shard_size="shard_size",
    episode_sampling_rate="episode_sampling_rate",
    num_shards_per_epoch="num_shards_per_epoch",
    output_dir="output_dir",
    use_wandb="use_wandb",
    num_gpus="num_gpus",
)


def section(defaults: dict, name: str) -> dict:
    return next(v for k, v in defaults.items() if k.lower() == name.lower())


def test_defaults_of_a_run(bundle):
    said = section(json.loads(bundle("config_defaults.json").read_text()), "FinetuneConfig")
    ours = {f: getattr(FinetuneConfig, f) for f in OURS.values()}
    assert {f: ours[f] for f in OURS if f in said} == {f: said[f] for f in OURS if f in said}
    assert N1D7_FINE_TUNING["state_dropout_prob"] == said["state_dropout_prob"]


def test_processor_of_a_run(bundle):
    "The processor that the official fine-tuning saved: what it sets, and the settings we know."
    said = json.loads(bundle("run_files/finetune_run/processor_config.json").read_text())
    kwargs = said["processor_kwargs"]
    assert said["processor_class"] == Gr00tN1d7Processor({}).processor_class
    assert {k: kwargs[k] for k in N1D7_FINE_TUNING} == N1D7_FINE_TUNING
    assert set(N1D7_DEFAULTS) <= set(kwargs)  # extra_augmentation_config is not among them
    strings = json.loads(bundle("run_files/finetune_run/final_processor_config.json").read_text())
    assert {k: str(v) for k, v in kwargs.items() if k in N1D7_DEFAULTS}.items() <= strings.items()


@pytest.mark.parametrize("name", ["config.yaml", "finetune_run/config.yaml", "finetune_run/conf.yaml"])
def test_configuration(bundle, name):
    "Plain maps; representations by lower-case values are the objects that the names give."
    file = bundle(f"run_files/{name}")
    read, plain = read_official_config(file), yaml.safe_load(file.read_text())
    assert {k: v for k, v in read.items() if k != "data"} == {k: v for k, v in plain.items() if k != "data"}
    robots = read["data"]["modality_configs"]
    assert robots and list(robots) == list(plain["data"]["modality_configs"])
    for tag, parts in robots.items():
        known = N1D7_ROBOTS.configs[tag]
        for m, c in parts.items():
            assert isinstance(c, ModalityConfig)
            assert c.action_configs == known[m].action_configs  # steps and languages are the run's
            assert ModalityConfig.from_json(c.to_json()) == c  # which writes names


def test_configuration_and_processor_agree(bundle):
    "The two spellings of one run."
    run = "run_files/finetune_run"
    robots = read_official_config(bundle(f"{run}/config.yaml"))["data"]["modality_configs"]
    said = json.loads(bundle(f"{run}/processor_config.json").read_text())["processor_kwargs"]
    for tag, parts in said["modality_configs"].items():
        for m, c in parts.items(): assert ModalityConfig.from_json(c) == robots[tag][m]


def test_layout_of_a_run(bundle):
    "Which files the official code leaves; the processor's three stand at the top of a checkpoint."
    lines = set(bundle("run_files/finetune_run/files.txt").read_text().split())
    ours = ("processor_config.json", "statistics.json", "embodiment_id.json")
    for name in ours:
        assert f"./checkpoint-2/{name}" in lines and f"./processor/{name}" in lines
    assert not any(f"./{name}" in lines for name in ours)
    wandb = json.loads(bundle("run_files/finetune_run/wandb_config.json").read_text())
    assert wandb.keys() == {"project", "run_id"} and wandb["project"] == "finetune-gr00t-n1d7"


def test_policy_finds_the_processor_below(bundle, tmp_path):
    "The top of a run's folder has the model, and `processor/` the rest."
    shutil.copytree(bundle("policy/checkpoint"), tmp_path / "run/processor")
    top, below = (Gr00tN1d7Processor.from_pretrained(tmp_path / p) for p in ("run", "run/processor"))
    assert top.settings == below.settings and top.statistics == below.statistics


def test_initial_actions(bundle, tmp_path):
    file = bundle("run_files/initial_actions.npz")
    read = read_initial_actions(file)
    write_initial_actions(tmp_path / "ours.npz", read)
    with np.load(file) as theirs, np.load(tmp_path / "ours.npz") as ours:
        assert sorted(ours.files) == sorted(theirs.files)
        for name in theirs.files:
            assert ours[name].dtype == theirs[name].dtype, name
            np.testing.assert_array_equal(ours[name], theirs[name], name)
    with np.load(file) as theirs: schema = json.loads(bytes(theirs["__schema__"]))
    assert len(read) == schema["num_datasets"]
