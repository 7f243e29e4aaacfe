"FluxVLA's schedules and its record of a run, against numbers that it wrote."
import json
import re

import pytest
import torch

from gr00t_nb.optimizer.schedule import Schedule
from gr00t_nb.runs.fluxvla_log import FluxvlaRecord, fluxvla_status

LINE = re.compile(r"(?P<kind>[^|]+)\|steps=(?P<steps>\d+)\|lr=(?P<rate>[^|]+)\|(?P<more>.*)")


def rates(kind: str, steps: int, peak: float, more: dict) -> list[float]:
    "The learning rate that an optimizer has in each step."
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    told = {float(at): rate / peak for at, rate in more.get("lr_schedule", {}).items()}
    own = Schedule(kind, more.get("warmup_ratio", 0.0), shares=told)
    schedule, found = own.on(optimizer, steps), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_every_schedule(bundle):
    told = json.loads(bundle("fluxvla/engine/lr_schedules.json").read_text())
    kinds = set()
    for name, expected in told.items():
        kind, steps, peak, more = LINE.fullmatch(name).groups()
        kinds.add(kind)
        if kind == "constant":
            assert expected == [float(peak)] * int(steps)  # as transformers', without warm-up
            continue
        found = rates(kind, int(steps), float(peak), json.loads(more))
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-22), name
    assert kinds == {"constant", "linear-warmup+cosine-decay", "step-based"}


@pytest.mark.parametrize("name,window,batches", [("demo_run", 1, 1), ("demo_window3", 3, 2)])
def test_every_line_of_the_record(bundle, name, window, batches):
    "Byte for byte: keys in their order, means in float32, the rate as a text."
    folder = bundle("fluxvla/engine/metric")
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    told = json.loads((folder / "expected.json").read_text())
    status = told["status_strings" if window == 1 else "status_strings_window3"]
    record = FluxvlaRecord(window, batches)
    for line, loss, said in zip(lines, told["losses"], status, strict=True):
        then = json.loads(line)
        rate = float(then["VLA Train/Learning Rate"])
        where = then["VLA Train/Step"], then["VLA Train/Epoch"]
        row = record.row(*where, loss, rate, then["VLA Train/Step Time"])
        assert json.dumps(row) == line
        assert fluxvla_status(row, rate) == said


def test_what_is_written_beside_it(bundle):
    about = json.loads((bundle("fluxvla/engine/metric") / "run-metrics.jsonl").read_text())
    assert set(about) == {"hparams", "run_id"} and isinstance(about["hparams"], str)
