"A plan on the command line, and what is refused before anything is loaded."
import re
import shutil
from subprocess import CompletedProcess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from preloaded import python

from gr00t_nb.errors import InputError
from gr00t_nb.training.config import FinetuneConfig
from gr00t_nb.training.plan import fit_memory, plan_run

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data_samples/cube_to_bowl"
RUN = FinetuneConfig("tiny", str(DATA), "NEW_EMBODIMENT", f"{DATA}_config.py", global_batch_size=16)


def finetune(*more) -> CompletedProcess:
    # on a CPU the update of 8-bit averages would be compiled for minutes: it runs as it is written
    uncompiled = dict(TORCHDYNAMO_DISABLE="1")
    return python("scripts/finetune.py", *RUN.to_flags(), *more, **uncompiled)


def test_a_plan_loads_and_writes_nothing(tmp_path):
    done = finetune("--plan", "--gpu", "24gb", "--pace", "100", "--output-dir", f"{tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "it fits (24 GB, " in done.stdout and "at 100 samples a second" in done.stdout
    assert not (tmp_path / "run").exists()


def test_an_unknown_gpu_is_refused(tmp_path):
    done = finetune("--memory", "rtx4080", "--output-dir", f"{tmp_path}/run")
    assert done.returncode == 2 and "There is no GPU 'rtx4080'" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is here")
def test_8_bits_without_torchao(tmp_path):
    done = finetune("--adamw-8bit", "--output-dir", f"{tmp_path}/run")
    assert done.returncode == 2 and "pip install torchao" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_8_bits_are_resumed_to_the_bit(tmp_path):
    "Tensors of 4,096 numbers and more have their averages in 8 bits."
    options = "--adamw-8bit --max-steps 4 --save-steps 2 --global-batch-size 4 --no-check-data"
    options = [*options.split(), "--tune-llm", "--dataloader-num-workers", "0"]
    weights = tmp_path / "run/model.safetensors"
    def run() -> bytes:
        done = finetune(*options, "--output-dir", f"{tmp_path}/run")
        assert done.returncode == 0, done.stderr
        return weights.read_bytes()
    once = run()
    averages = (tmp_path / "run/checkpoint-4/optimizer.pt").stat().st_size
    assert averages < weights.stat().st_size  # in 32 bits they are nearly twice as large
    shutil.rmtree(tmp_path / "run/checkpoint-4")
    assert run() == once


def test_a_card_that_is_too_small_and_what_is_advised():
    "The card that the refusal names is enough."
    small = replace(RUN, base_model_path="3b", memory="8gb")
    with pytest.raises(InputError, match="too small for this run") as refused: fit_memory(small)
    needed = re.search(r"--memory (\d+gb)", str(refused.value))[1]
    assert plan_run(replace(small, memory=needed)).fits


def test_what_the_user_says_stays():
    said = replace(RUN, micro_batch_size=2, adamw_8bit=False, memory="24gb")
    fitted = fit_memory(said)
    assert (fitted.micro_batch_size, fitted.adamw_8bit) == (2, False)
    least = plan_run(replace(said, memory=None), gpu="24gb").peak / 1e9
    with pytest.raises(InputError, match="too small"): fit_memory(replace(said, memory=f"{least / 4:.4f}gb"))
