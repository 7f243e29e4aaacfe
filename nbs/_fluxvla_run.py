"""The folder of a run as FluxVLA leaves it, of a small model of this kit.

A notebook runs this file in a hidden cell, `%run ../_fluxvla_run.py`, and asks:

    fluxvla_run(folder, model, processor, robot)  # a GR00T N1.5, a `FluxvlaProcessor`, a `ColumnRobot`

Tests use it as well. This file is not part of the package.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file

from gr00t_nb.families.n1d5 import FLUXVLA_NAMES, RUN_BACKBONE
from gr00t_nb.files import write_json
from gr00t_nb.fluxvla.column_robot import ColumnRobot
from gr00t_nb.fluxvla.config_robots import dataset_of
from gr00t_nb.model.checkpoints import mapped_names

NAMES = dict(max_state_dim="state_dim", max_action_dim="action_dim", action_horizon="num_steps")
SIZES = (
    "hidden_size", "input_embedding_dim", "backbone_embedding_dim", "max_seq_len", "num_target_vision_tokens",
    "diffusion_model_cfg", "vl_self_attention_cfg", "num_inference_timesteps", "max_num_embodiments",
)


def fluxvla_config_of(model, robot: ColumnRobot) -> dict:
    "What FluxVLA writes into config.json, as far as it decides an answer."
    c = model.config
    head = dict(type="FlowMatchingHead") | {theirs: getattr(c, ours) for ours, theirs in NAMES.items()}
    head |= {k: getattr(c, k) for k in SIZES}
    if c.ori_action_dim: head["ori_action_dim"] = c.ori_action_dim
    eyes = dict(type="EagleBackbone", select_layer=c.select_layer, project_to_dim=c.project_to_dim)
    data = dict(type="DistributedRepeatingDataset", datasets=[dataset_of(robot) | dict(data_root_path=["data/june"])])
    runner = dict(type="FSDPTrainRunner", max_epochs=6, learning_rate=2e-5, lr_scheduler_type="constant")
    return dict(
        model=dict(type="LlavaVLA", vlm_backbone=eyes, vla_head=head),
        train_dataloader=dict(per_device_batch_size=8, dataset=data),
        runner=runner,
    )


def fluxvla_run(folder: Path, model, processor, robot: ColumnRobot) -> Path:  # `folder`
    "Settings, statistics, tokenizer, and the weights of step 10 as .pt and as safetensors."
    processor.save_pretrained(folder)  # FluxVLA's statistics and the tokenizer; the kit's files go
    for name in ("processor_config.json", "statistics.json", "embodiment_id.json"): (folder / name).unlink()
    write_json(folder / "config.json", fluxvla_config_of(model, robot))
    write_json(folder / RUN_BACKBONE, model.vlm_config)
    state = model.stored_state(FLUXVLA_NAMES)
    names = mapped_names(state, FLUXVLA_NAMES)
    state = {names[n]: t.detach().cpu().clone() for n, t in state.items()}
    inside = folder / "checkpoints"
    inside.mkdir(exist_ok=True)
    stem = "step-000010-epoch-01-loss=0.1000"
    save_file(state, inside / f"{stem}.safetensors")
    torch.save(dict(model=state, global_step=10, epoch=1, optimizer_state_dict={}), inside / f"{stem}.pt")
    for end in ("pt", "safetensors"):
        link = inside / f"latest-checkpoint.{end}"
        link.unlink(missing_ok=True)
        link.symlink_to(f"{stem}.{end}")
    return folder
