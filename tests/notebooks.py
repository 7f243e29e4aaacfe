"""Executes notebooks as nbdev_test does, in an order drawn from a printed seed, and sees that each
leaves nothing behind.

    python tests/notebooks.py                              # all of them, three at a time
    python tests/notebooks.py --seed 7                     # in the order of an earlier run
    python tests/notebooks.py nbs/data/00_video.ipynb      # one alone

Processes are reused, so what a notebook registers, sets or makes would be seen by the next one, and
whether that fails would depend on the order. A notebook is refused that leaves other settings of
matplotlib, robots, families, environment variables, folder, torch threads, default type or switches
than it found, or a new file in the checkout. What the kit's commands take that it starts (commands.py)
counts as its own.
"""
import argparse
import gc
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import commands

ROOT = Path(__file__).resolve().parents[1]
FREE = {"IN_TEST", "COLUMNS", "LINES"}  # set by nbdev and IPython


def process_state() -> dict:
    "What a process hands on to the next notebook, of the libraries that are loaded: name -> text."
    modules = sys.modules
    state = {f"environment variable {k}": v for k, v in os.environ.items() if k not in FREE}
    state["folder"] = os.getcwd()
    if plt := modules.get("matplotlib"):
        kept = {k: v for k, v in plt.rcParams.items() if k not in ("backend", "interactive")}
        state |= {f"matplotlib's {k}": repr(v) for k, v in kept.items()}
    if robots := modules.get("gr00t_nb.embodiments"):
        state |= {f"robot {k}": repr(v) for k, v in robots.MODALITY_CONFIGS.items()}
    if registry := modules.get("gr00t_nb.checkpoints.registry"):
        state |= {f"family {f.model_type}": "" for f in registry.families()}
    if torch := modules.get("torch"):
        state["torch's threads"] = str(torch.get_num_threads())
        state["torch's default type"] = str(torch.get_default_dtype())
        state["torch's deterministic switch"] = str(torch.are_deterministic_algorithms_enabled())
    return state


def loaded():
    "Loads what `process_state` looks at, so that the first notebook is compared with a fresh process."
    import matplotlib
    import torch
    import gr00t_nb.embodiments
    import gr00t_nb.checkpoints.base_models
    return matplotlib, torch, gr00t_nb


def plain_shell(book: Path | None = None):
    "nbdev's shell. A picture that nobody looks at is drawn once, not twice with four times the pixels."
    from execnb.shell import CaptureShell
    shell = CaptureShell(book, mpl_format="png")
    shell._run("set_matplotlib_formats('png', bbox_inches=None)")
    return shell


def run(book: Path) -> tuple[bool, float, list[str]]:
    "Whether a notebook passed, the seconds of a core that it took, and what it left behind."
    import nbdev.test
    from nbdev.config import get_config
    nbdev.test.CaptureShell, test_nb = plain_shell, nbdev.test.test_nb
    loaded()
    gc.freeze()  # no training run looks through modules and earlier notebooks for garbage
    flags = get_config().tst_flags.split()
    with tempfile.NamedTemporaryFile("r") as costs, patch.dict(os.environ, {commands.COSTS: costs.name}):
        before, start = process_state(), sum(os.times()[:4])
        passed, _ = test_nb(book, skip_flags=flags, basepath=ROOT, do_print=False)
        after, seconds = process_state(), sum(os.times()[:4]) - start + sum(map(float, costs))
    names = sorted(before.keys() | after.keys())
    left = [n for n in names if before.get(n) != after.get(n)]
    for n in left: print(f"{book.name} left {n}: {after.get(n)!r}, was {before.get(n)!r}")
    print(f"{'passed' if passed else 'FAILED'} with {seconds:4.0f} s of a core: {book.relative_to(ROOT)}", flush=True)
    return passed, seconds, left


def changed_files() -> set[str]:
    "Files of the checkout that git sees as new or changed."
    shown = ["git", "status", "--porcelain", "--untracked-files=all"]
    done = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.splitlines())


def nobody_waits(books: list[Path]) -> list[Path]:
    "One that needs the shared policy begins, and trains it; the others that need it come last."
    need = [b for b in books if "_shared_policy.py" in b.read_text()]
    return need[:1] + [b for b in books if b not in need] + need[1:]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--seed", type=int, help="of the order; default: drawn")
    parser.add_argument("--workers", type=int, default=3, help="notebooks at a time")
    return parser.parse_args()


def main():
    from fastcore.parallel import parallel
    from nbdev.doclinks import nbglob
    args = arguments()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    books = [p.resolve() for p in args.notebooks] or sorted(
        Path(p).resolve() for p in nbglob(ROOT / "nbs", as_path=True)
    )
    random.Random(seed).shuffle(books)
    books = nobody_waits(books)
    print(f"{len(books)} notebooks, order drawn from --seed {seed}", flush=True)
    files, start = changed_files(), time.perf_counter()
    workers = 0 if len(books) == 1 else args.workers
    with tempfile.TemporaryDirectory() as folder:
        job = commands.answer_commands(Path(folder))
        results = parallel(run, books, n_workers=workers, pause=0.01)
        job.terminate()
        job.join()
    seconds = time.perf_counter() - start
    print(f"{sum(took for _, took, _ in results):.0f} s of a core, most of it in")
    for (_, took, _), book in sorted(zip(results, books), key=lambda r: -r[0][1])[:10]:
        print(f"{took:6.0f} s  {book.relative_to(ROOT)}")
    bad = [not passed or bool(left) for passed, _, left in results]
    failed = [b.relative_to(ROOT) for b in itertools.compress(books, bad)]
    made = sorted(changed_files() - files)
    for m in made: print(f"a notebook left a file in the checkout: {m}")
    print(f"{len(books) - len(failed)} passed, {len(failed)} failed in {seconds:.0f} s", flush=True)
    for book in failed: print(f"failed: {book}   (again: python tests/notebooks.py {book})")
    sys.exit(bool(failed or made))


if __name__ == "__main__":
    # by its own name: a notebook's names become those of __main__, where the processes would look for `run`
    sys.path.insert(0, str(Path(__file__).parent))
    import notebooks
    notebooks.main()
