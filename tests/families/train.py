"""Fine-tune in a process of its own, with the dummy known: python train.py [--double] [--traced] [--eager] ARGUMENTS

The arguments are those of scripts/finetune.py.

With --double the model computes in float64: what is left between two ways of summing is then
far below what a difference in data, noise or schedule makes. With --traced what is compiled is
traced as ever and then run as it is written: a compiler of C++ takes minutes. With --eager it is
not traced either.
"""
import sys
from functools import partial

import torch
from dummy import DUMMY

from gr00t_nb.checkpoints.registry import families, register
from gr00t_nb.training.finetune import main


def in_double(family):
    "The family loads its models in float64, whatever the checkpoint asks for."
    load = family.load_model
    family.load_model = lambda *args, **kwargs: load(*args, **kwargs | dict(dtype=torch.float64))


if __name__ == "__main__":
    register(DUMMY)
    if "--traced" in sys.argv:
        sys.argv.remove("--traced")
        torch.compile = partial(torch.compile, backend="eager")
    if "--eager" in sys.argv:
        sys.argv.remove("--eager")
        torch.compiler.set_stance("force_eager")
    if "--double" in sys.argv:
        sys.argv.remove("--double")
        for family in families(): in_double(family)
    main()
