"""Runs of the processes of one machine, from one start: python forks.py RUNS.json

The file lists groups of runs: `processes`, and for each run `double` (compute in float64), `start` (a checkpoint to
go on from, or null) and `config`, the fields of a FinetuneConfig. The kit is imported once. The processes of a
group are forked from there, and do its runs one after the other.
"""
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import torch
from dummy import DUMMY
from torch.multiprocessing import start_processes

from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.families.registry import families, register
from gr00t_nb.training.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune


def in_double(family):
    "The family loads its models in float64, whatever the checkpoint asks for."
    load = type(family).load_model
    family.load_model = lambda *a, **k: load(family, *a, **k | dict(dtype=torch.float64))


def do_all(rank: int, processes: int, runs: list[dict], port: int):
    if processes > 1:
        places = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes)
        places |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        os.environ.update({k: str(v) for k, v in places.items()})
    for run in runs:
        for family in families():
            vars(family).pop("load_model", None)
            if run["double"]: in_double(family)
        finetune(FinetuneConfig(**run["config"]))
        MODALITY_CONFIGS.pop("new_embodiment")
    if processes > 1: torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    register(DUMMY)
    torch.set_num_threads(1)
    for group in json.loads(Path(sys.argv[1]).read_text()):
        for run in group["runs"]:
            if not run["start"]: continue
            start = Path(run["start"])
            shutil.copytree(start, Path(run["config"]["output_dir"]) / start.name)
        given = group["processes"], group["runs"], free_port()
        start_processes(do_all, given, group["processes"], start_method="fork")
