"A run that asks for the same bits: what is on inside of it, what is left behind, what cannot go along."
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import RUN
from transformers import TrainerCallback

from gr00t_nb.checkpoints.registry import training_record
from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.errors import InputError
from gr00t_nb.processes.deterministic import CUBLAS
from gr00t_nb.training.finetune import finetune

SAME = replace(RUN, deterministic=True, max_steps=2)


@pytest.fixture(autouse=True)
def no_robot_stays():
    yield
    MODALITY_CONFIGS.pop("new_embodiment", None)


def state() -> tuple:
    "Of this process."
    cudnn = torch.backends.cudnn
    switches = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    precisions = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    return *switches, *precisions, cudnn.conv.fp32_precision, os.environ.get(CUBLAS)


class Look(TrainerCallback):
    "Notes down the state in a step, and may end the run there."

    def __init__(self, error: Exception | None = None): self.error, self.seen = error, []

    def on_step_end(self, args, state_, control, **kwargs):
        self.seen.append(state())
        if self.error: raise self.error


def test_what_is_on_in_a_run_is_off_behind_it(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(CUBLAS, raising=False)
    before, look = state(), Look()
    finetune(replace(SAME, output_dir=str(tmp_path / "run")), [look])
    assert look.seen == [(True, True, False, "ieee", "ieee", "ieee", ":4096:8")] * 2
    assert state() == before
    assert training_record(tmp_path / "run")["config"]["deterministic"] is True
    assert "float32, deterministic kernels" in capsys.readouterr().out


def test_an_error_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.delenv(CUBLAS, raising=False)
    before = state()
    no_kernel = RuntimeError("bicubic_backward does not have a deterministic implementation, but you set")
    for error, said in ((ZeroDivisionError("own"), "own"), (no_kernel, "no kernel of bicubic_backward")):
        look = Look(error)
        with pytest.raises(Exception, match=said):
            finetune(replace(SAME, output_dir=str(tmp_path / said[:2])), [look])
        assert len(look.seen) == 1 and state() == before


def test_two_runs_are_equal_to_the_bit(tmp_path):
    "On a GPU, too, where there is one."
    files = [Path(tmp_path, name, "model.safetensors") for name in "ab"]
    losses = [finetune(replace(SAME, output_dir=str(f.parent))).log for f in files]
    assert [r["loss"] for r in losses[0]] == [r["loss"] for r in losses[1]]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_it_stays_on_or_off(tmp_path):
    half = replace(SAME, output_dir=str(tmp_path / "run"))
    finetune(half)
    with pytest.raises(InputError, match="deterministic was True, now False"):
        finetune(replace(half, deterministic=False, max_steps=3))


@pytest.mark.parametrize("lever", ["compile", "adamw_8bit"])
def test_what_is_compiled_is_refused(tmp_path, lever):
    with pytest.raises(InputError, match=f"--{lever.replace('_', '-')} compiles"):
        finetune(replace(SAME, output_dir=str(tmp_path / "run"), **{lever: True}))
    assert not (tmp_path / "run").exists()
