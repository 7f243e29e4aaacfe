"""benchmarks/gpu.py goes through all its sections on a machine without a GPU, and keeps what was done."""
import json
import sys
from pathlib import Path

import pytest
from preloaded import python

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def gpu():
    import gpu as module
    return module


def test_quick_run(tmp_path):
    options = "--quick", "--device", "cpu", "--limit", 900, "--json", tmp_path / "gpu.json"
    done = python("benchmarks/gpu.py", *options, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == ["machine", "correctness", "inference", "training"]
    assert not [r for rows in found.values() for r in rows if "failed" in r or "time was up" in r["what"]]
    judged = [r for r in found["correctness"] if "ok" in r]
    assert len(judged) >= 14 and all(r["ok"] for r in judged)
    assert sum("recorded against plain" in r["what"] for r in judged) >= 3
    asked = [(r["what"].split(", ")[1], r["cameras"], r["robots"]) for r in found["inference"]]
    ways, places = ("an answer", "an answer as one graph"), ((1, 1), (2, 1), (1, 8))
    assert asked == [(way, *place) for place in places for way in ways]
    for row in found["inference"]: assert {"p50_ms", "p95_ms", "processor_ms", "first_seconds"} <= set(row)
    assert [r["what"] for r in found["training"]] == ["as the recipe has it", "as one graph"]
    for row in found["training"]: assert {"step_ms", "planned_gb", "operations", "waiting"} <= set(row)


def test_a_section_keeps_what_was_done_when_its_time_is_up(gpu, monkeypatch):
    import threading
    def slow(args):
        yield dict(what="first")
        threading.Event().wait(60)  # longer than the limit, which ends it
        yield dict(what="never")
    monkeypatch.setitem(gpu.SECTIONS, "machine", slow)
    rows, args = [], type("Arguments", (), dict(limit=0.2))
    gpu._section(args, "machine", rows.append)
    assert rows[0] == dict(what="first") and "time was up" in rows[1]["what"] and len(rows) == 2


def test_a_section_keeps_what_was_done_when_it_fails(gpu, monkeypatch):
    def broken(args):
        yield dict(what="first")
        raise ValueError("no such card")
    monkeypatch.setitem(gpu.SECTIONS, "machine", broken)
    rows, args = [], type("Arguments", (), dict(limit=60))
    gpu._section(args, "machine", rows.append)
    assert rows == [dict(what="first"), dict(failed="ValueError: no such card", ok=False)]
