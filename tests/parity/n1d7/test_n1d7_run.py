"""A run on the real data set in the official order: the built-in robot, and one with a relative end
effector and two frames. The data set's folder keeps its bytes."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.moments import ENTRIES
from gr00t_nb.data.steps import read_step
from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.processing.statistics import dataset_statistics, relative_statistics
from gr00t_nb.tag_tables import N1D7_ROBOTS
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune
from gr00t_nb.training.prepare import prepare_data, training_dataset

ROBOT = """
from gr00t.configs.data.embodiment_configs import register_modality_config
from gr00t.data.embodiment_tags import EmbodimentTag
from gr00t.data.types import ActionConfig, ActionFormat, ActionRepresentation, ActionType, ModalityConfig

pose = ActionConfig(
    rep=ActionRepresentation.RELATIVE,
    type=ActionType.EEF,
    format=ActionFormat.XYZ_ROT6D,
    state_key="eef_9d",
)
waist = ActionConfig(
    rep=ActionRepresentation.ABSOLUTE, type=ActionType.NON_EEF, format=ActionFormat.DEFAULT
)
register_modality_config(dict(
    video=ModalityConfig(delta_indices=[-15, 0], modality_keys=[VIEW]),
    state=ModalityConfig(delta_indices=[0], modality_keys=["eef_9d", "waist"]),
    action=ModalityConfig(
        delta_indices=list(range(8)), modality_keys=["eef_9d", "waist"], action_configs=[pose, waist]
    ),
    language=ModalityConfig(
        delta_indices=[0], modality_keys=["annotation.human.coarse_action"]
    ),
), EmbodimentTag.NEW_EMBODIMENT)
"""


@pytest.fixture
def data(reference) -> Path:
    "The real data set, whose bytes are compared afterwards."
    path = reference.parent / "datasets" / "gr1.PickNPlace"
    if not path.is_dir(): pytest.skip(f"no data set at {path}")
    read = lambda: {f: f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
    before = read()
    yield path
    assert read() == before


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    "Trains for two steps on samples in the official order; the configuration."
    monkeypatch.setenv("GR00T_NB_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)

    def train(**said) -> FinetuneConfig:
        config = FinetuneConfig(
            base_model_path="tiny-n1.7",
            dataset_path=str(data),
            max_steps=2,
            save_steps=2,
            global_batch_size=2,
            dataloader_num_workers=0,
            sampling="official",
            shard_size=64,
            episode_sampling_rate=0.5,
            output_dir=str(tmp_path / "run"),
            **said,
        )
        finetune(config)
        return config

    return train


def test_the_built_in_robot(run, data, tmp_path):
    "A name of this generation; the data's own statistics, although files without fingerprints are shipped."
    config = run(embodiment_tag="ROBOCASA_GR1_TABLETOP")
    tag = "robocasa_gr1_tabletop"
    policy = Gr00tPolicy("robocasa_GR1_tabletop", tmp_path / "run/checkpoint-2")
    robot = N1D7_ROBOTS.configs[tag]
    assert policy.tag == tag and policy.modality_config == robot
    known, ds = policy.processor.statistics[tag], LeRobotDataset(data)
    columns, relative = dataset_statistics(ds), relative_statistics(ds, robot)
    for kind in ("state", "action"):
        for name, g in ds.groups(kind, robot[kind].modality_keys).items():
            for k in ENTRIES: assert known[kind][name][k] == list(columns[g.column][k])[g.dims]
    for g in relative: assert known["relative_action"][g] == {k: relative[g][k] for k in ENTRIES}
    kept = json.loads((tmp_path / "run/checkpoint-2/embodiment_id.json").read_text())
    assert kept[tag] == 10
    answer = policy.predict([read_step(ds, 0, 5, {m: c for m, c in robot.items() if m != "action"})])
    assert {g: a.shape for g, a in answer.items()}["waist"] == (1, 8, 3)
    assert config.embodiment_tag == "ROBOCASA_GR1_TABLETOP"


@pytest.mark.parametrize("wrap", [False, True])
def test_a_relative_end_effector_and_two_frames(run, data, tmp_path, wrap):
    "Nine numbers of the data stand for a pose; what was made relative and scaled comes back."
    modality = json.loads((data / "meta/modality.json").read_text())
    view = next(iter(modality["video"]))
    for kind in ("state", "action"):
        modality[kind] = dict(eef_9d=dict(start=0, end=9), waist=modality[kind]["waist"])
    (tmp_path / "modality.json").write_text(json.dumps(modality))
    (tmp_path / "robot.py").write_text(ROBOT.replace("VIEW", repr(view)))
    said = dict(modality_path=str(tmp_path / "modality.json"), wrap_history=wrap)
    config = run(
        embodiment_tag="new_embodiment", modality_config_path=str(tmp_path / "robot.py"), **said
    )
    policy = Gr00tPolicy("NEW_EMBODIMENT", tmp_path / "run/checkpoint-2")
    robot, processor = policy.modality_config, policy.processor
    ds = LeRobotDataset(data, said["modality_path"])
    step = read_step(ds, 0, 5, robot, pad=True)
    sample = processor(step, policy.tag)
    raw = {g: step[f"state.{g}"][None] for g in ("eef_9d", "waist")}
    back = processor.decode_action(sample["action"][None], policy.tag, raw)["eef_9d"][0]
    np.testing.assert_allclose(back[:, :3], step["action.eef_9d"][:, :3], atol=1e-4)
    shutil.rmtree(tmp_path / "run")
    MODALITY_CONFIGS.pop("new_embodiment", None)
    stream = training_dataset(config, prepare_data(config))
    early = next(w for shard in stream.order() for w in shard if 0 < w[2] < 15)
    got, = stream.read(early[None], [None])
    rule = dict(wrap=True) if wrap else dict(pad=True)
    want = read_step(ds, int(early[1]), int(early[2]), robot, **rule)[f"video.{view}"]
    np.testing.assert_array_equal(got[f"video.{view}"], processor.prepare(want))
