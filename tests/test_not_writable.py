"An output folder that may not be written to: one sentence, and nothing is changed."
import errno
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import RUN

from gr00t_nb.training.finetune import main


def test_a_run_that_may_not_write_says_so_in_one_sentence(tmp_path, monkeypatch, capsys):
    "The refusal is injected: tests may run as root, who may write everywhere."
    place, make = tmp_path / "shared", os.mkdir
    place.mkdir()
    (place / "notes.txt").write_text("of somebody else")

    def refused(path, *args, **kwargs):
        if place in Path(os.fspath(path)).absolute().parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return make(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refused)
    config = replace(RUN, output_dir=str(place / "runs/mine"))
    monkeypatch.setattr(sys, "argv", ["finetune.py", *config.to_flags()])
    with pytest.raises(SystemExit) as end: main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert end.value.code == 2 and len(said) == 1, said
    assert str(place / "runs") in said[0] and "Traceback" not in said[0]
    assert [p.name for p in place.iterdir()] == ["notes.txt"]
