"""A run as FluxVLA's runner makes it: its schedules, its record, going on from another folder, Weights & Biases
by its variables, several nodes.
"""
import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from safetensors.torch import load_file
from transformers import TrainerCallback

from gr00t_nb.checkpoints.base_models import resolve_base_model
from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.errors import InputError
from gr00t_nb.training.finetune import finetune
from gr00t_nb.training.plan import plan_run
from runs import RUN

ROOT = Path(__file__).resolve().parents[1]
SHORT = dataclasses.replace(
    RUN, tune_llm=True, tune_visual=True, dropout=0.1, adam_betas=(0.9, 0.999), max_grad_norm=0.5, max_steps=4
)


@pytest.fixture(autouse=True)
def no_robot_stays():
    yield
    MODALITY_CONFIGS.pop("new_embodiment", None)


def run(tmp_path, name: str, **changes):
    MODALITY_CONFIGS.pop("new_embodiment", None)
    return finetune(dataclasses.replace(SHORT, output_dir=str(tmp_path / name), **changes))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_goes_on_in_another_folder(tmp_path):
    "To the bit, as if it had never been stopped; the first folder stays as it is."
    whole = run(tmp_path, "whole", fluxvla_log=True)
    first = run(tmp_path, "first", save_steps=2)
    before = {p: p.stat().st_mtime_ns for p in first.output_dir.rglob("*")}
    elsewhere = dict(resume_from=str(first.output_dir / "checkpoint-2"), fluxvla_log=True)
    second = run(tmp_path, "second", **elsewhere)
    assert {p: p.stat().st_mtime_ns for p in first.output_dir.rglob("*")} == before
    a, b = (load_file(r.output_dir / "model.safetensors") for r in (whole, second))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert [r["step"] for r in second.log] == [3, 4]
    assert [r["loss"] for r in second.log] == [r["loss"] for r in whole.log[2:]]
    told = [lines(r.output_dir / f"{r.output_dir.name}.jsonl") for r in (whole, second)]
    assert [r["VLA Train/Step"] for r in told[0]] == [1, 2, 3, 4]
    same = "VLA Train/Step", "VLA Train/Loss (Raw)", "VLA Train/Learning Rate"
    assert [[r[k] for k in same] for r in told[0][2:]] == [[r[k] for k in same] for r in told[1]]
    # a folder that has a checkpoint of its own goes on from that, whatever is named
    third = run(tmp_path, "second", **elsewhere, save_steps=50)
    assert third.log == second.log
    with pytest.raises(InputError, match="seed was 42, now 7.*leave --resume-from out to start anew"):
        run(tmp_path, "other", **elsewhere, seed=7)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind,more,expected", [
    ("linear-warmup+cosine-decay", dict(warmup_ratio=0.45), [0, 1, 0.75, 0.25]),
    ("step-based", dict(lr_rates={"0": 1e-3, "0.5": 5e-4}), [1, 1, 0.5, 0.5]),
    ("constant", dict(warmup_ratio=0.0), [1, 1, 1, 1]),
])
def test_the_rates_of_a_run(tmp_path, kind, more, expected):
    peak = dict(learning_rate=1e-3) if kind != "step-based" else {}
    made = run(tmp_path, "out", lr_scheduler=kind, **peak, **more)
    rates = np.array([r["learning_rate"] for r in made.log])
    np.testing.assert_allclose(rates, np.array(expected) * 1e-3, rtol=1e-9, atol=1e-12)
    record = json.loads((made.output_dir / "experiment_cfg/finetune.json").read_text())["config"]
    assert record["learning_rate"] == 1e-3 and record["lr_scheduler"] == kind
    again = run(tmp_path, "out", lr_scheduler=kind, **peak, **more)  # as its record has it: the same run
    assert again.log == made.log


def test_the_flags_of_a_schedule(tmp_path):
    config = dataclasses.replace(SHORT, lr_scheduler="step-based", lr_rates={"0": 1e-4, "0.5": 5e-5})
    flags = config.to_flags()
    at = flags.index("--lr-rates")
    assert flags[at : at + 5] == ["--lr-rates", "0", "0.0001", "0.5", "5e-05"]


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_weight_decay_on_matrices_alone(tmp_path, decay_vectors):
    """Without gradients weight decay alone moves a weight.

    NVIDIA's recipe decays norms of the language model, FluxVLA's none.
    """
    class Still(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            for p in model.parameters():
                if p.grad is not None: p.grad.zero_()

    callbacks, base = [Still()], dict(base_model_path="tiny-n1.5", learning_rate=1e-2, weight_decay=0.1)
    config = dataclasses.replace(SHORT, max_steps=1, output_dir=str(tmp_path), lr_scheduler="constant", **base)
    config = dataclasses.replace(config, warmup_ratio=0.0, decay_vectors=decay_vectors)
    after = finetune(config, callbacks).model.state_dict()
    before = load_file(resolve_base_model("tiny-n1.5") / "model.safetensors")
    moved = {n for n, w in before.items() if not torch.equal(w.float(), after[n].float())}
    assert sum(before[n].dim() > 1 for n in moved) > 50
    assert any(before[n].dim() < 2 for n in moved) == decay_vectors
    assert not [n for n in moved if n.endswith("bias")]


def test_the_plan_advises_epochs(tmp_path):
    plan = plan_run(dataclasses.replace(SHORT, output_dir=str(tmp_path)), gpu="24gb")
    assert "(FluxVLA advises 10 to 24 for 40 episodes)" in str(plan)


@pytest.mark.parametrize("given,expected", [({}, "finetune"), (dict(WANDB_PROJECT="lab"), "lab")])
def test_weights_and_biases_by_its_variables(tmp_path, monkeypatch, given, expected):
    for name, value in dict(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ENTITY="arms", **given).items():
        monkeypatch.setenv(name, value)
    if not given: monkeypatch.delenv("WANDB_PROJECT", raising=False)
    made = run(tmp_path, "out", use_wandb=True, max_steps=1)
    wandb.finish()
    known = json.loads((made.output_dir / "wandb_config.json").read_text())
    assert known["project"].startswith(expected)
    assert list((made.output_dir / "wandb").glob("offline-run-*"))


# ---------------------------------------------------------------- several nodes
def nodes(tmp_path, *arguments, **variables) -> subprocess.CompletedProcess:
    "The script beside a torchrun that only says what it was told."
    stand_in = tmp_path / "bin" / "torchrun"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    env = dict(PATH=f"{stand_in.parent}:{os.environ['PATH']}", HOME=str(tmp_path)) | variables
    command = [str(ROOT / "scripts/several_nodes.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)


MLP = dict(
    MLP_WORKER_GPU="8", MLP_WORKER_NUM="4", MLP_ROLE_INDEX="2", MLP_WORKER_0_HOST="10.0.0.1",
    MLP_WORKER_0_PORT="29400",
)
OWN = dict(NPROC_PER_NODE="2", WORLD_SIZE="3", RANK="1", MASTER_ADDR="first", MASTER_PORT="1234")


@pytest.mark.parametrize("variables,expected", [
    ({}, ["1", "1", "0", "localhost", "29500"]),
    (MLP, ["8", "4", "2", "10.0.0.1", "29400"]),
    (MLP | OWN, ["2", "3", "1", "first", "1234"]),
    (MLP | dict(NPROC_PER_NODE="6"), ["6", "4", "2", "10.0.0.1", "29400"]),
    (OWN | dict(NPROC_PER_NODE="08", WORLD_SIZE="010", RANK="08"), ["8", "10", "8", "first", "1234"]),
], ids=["alone", "MLP", "both", "one of them", "leading zeros"])
def test_nodes_know_each_other(tmp_path, variables, expected):
    done = nodes(tmp_path, "--max-steps", "3", "--dataset-path", "a b", **variables)
    assert done.returncode == 0, done.stderr
    flags = "nproc_per_node nnodes node_rank master_addr master_port".split()
    words = [f"--{flag}={value}" for flag, value in zip(flags, expected)]
    more = ["scripts/finetune.py", "--max-steps", "3", "--dataset-path", "a b"]
    assert done.stdout.splitlines() == words + more


@pytest.mark.parametrize("variables,said", [
    (dict(WORLD_SIZE="2", RANK="2"), "error: this is node 2 of 2: expected 0 to 1"),
    (dict(MLP_WORKER_GPU="all"), "error: 'all' is not a number"),
    (dict(MASTER_PORT="tcp://x"), "error: 'tcp://x' is not a number"),
])
def test_nodes_that_do_not_fit(tmp_path, variables, said):
    done = nodes(tmp_path, **variables)
    assert done.returncode == 2 and done.stderr.startswith(said) and not done.stdout
    assert len(done.stderr.splitlines()) == 1


def test_a_machine_without_torchrun_is_told_so(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "env"): (programs / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [str(ROOT / "scripts/several_nodes.sh")], capture_output=True, text=True, env=dict(PATH=str(programs))
    )
    assert done.returncode == 2 and done.stderr.startswith("error: there is no program torchrun: it comes")


def test_one_node_trains(tmp_path):
    "With the real torchrun, from another folder, on one node of one process."
    words = SHORT.to_flags() + ["--max-steps", "1", "--output-dir", str(tmp_path / "out")]
    torchrun = Path(os.sys.executable).parent
    env = os.environ | dict(PATH=f"{torchrun}:{os.environ['PATH']}", MASTER_PORT="29617", PYTHONPATH=str(ROOT))
    for name in ("RANK", "WORLD_SIZE"): env.pop(name, None)
    script = str(ROOT / "scripts/several_nodes.sh")
    done = subprocess.run([script, *words], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out/model.safetensors").exists()
