"""Parity with the official implementation: values it computed, kept in a folder outside the
repository.

`pytest tests/parity --reference DIR`: a file of DIR tells of which generation its numbers are, and
the tests in the folder of that name run. A DIR with folders n1d7, n1d6 or n1d5 has several, and their
tests run. Without DIR all run, each on `../shared/reference/n1d6`, `n1d5` or `n1d7` beside the checkout.
Where there is no such folder every test skips with that reason; where one file of a bundle is absent,
only the test that needs it skips, and names the file. A DIR that is given must be whole: there a skip
is a failure, and so is a file of it that no test opens when all of tests/parity runs.
"""
import os
import sys
from pathlib import Path

import bundles
import pytest

OPENED = set()  # files and folders that tests asked for
TEXTS = ("README.md", "SPEC.md")
OTHERS = dict(  # what a bundle holds of things that this kit does not do
    n1d7=(),
    n1d6=(),
    n1d5=(),
)
HERE = Path(__file__).parent


def pytest_configure(config):
    "Notes what Python itself opens; what a library opens by its path was asked for by `bundle`."
    roots = tuple(f"{root}{os.sep}" for root in bundles.given(config).values())

    def note(event, args):
        if event == "open" and isinstance(args[0], str) and args[0].startswith(roots):
            OPENED.add(Path(args[0]))
    if roots: sys.addaudithook(note)


def pytest_ignore_collect(collection_path, config):
    "Tests of another generation than that of the given bundle are not collected."
    if not (own := bundles.given(config)): return None
    others = [HERE / g for g in bundles.GENERATIONS if g not in own]
    return True if any(o in (collection_path, *collection_path.parents) for o in others) else None


@pytest.fixture(scope="module")
def reference(request) -> Path:
    "Root of the parity bundles of the generation whose folder the test is in."
    places = [Path(request.path), *Path(request.path).parents]
    generation = next(g for g in bundles.GENERATIONS if HERE / g in places)
    path = bundles.reference_root(request.config, generation)
    if not path.is_dir():
        pytest.skip(f"no parity bundles at {path}: give their folder with --reference DIR")
    return path


@pytest.fixture(scope="module")
def bundle(reference):
    "`bundle('tiny_model/inputs.safetensors')` is the path of that file, or skips the test that asks."
    def find(name: str) -> Path:
        path = reference / name
        if not path.exists():
            pytest.skip(f"{name} is absent from {reference}")
        OPENED.add(path)
        return path
    return find


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    here = HERE in Path(item.path).parents
    if here and report.skipped and item.config.getoption("--reference"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, though --reference was given: {reason}"
    return report


def unopened(generation: str, root: Path) -> list[str]:
    "Files of the bundles that no test has opened."
    def seen(path):
        return path in OPENED or any(p in OPENED for p in path.parents)
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name not in TEXTS]
    names = [p.relative_to(root) for p in files if not seen(p)]
    return [f"{root / n}" for n in names if not n.as_posix().startswith(OTHERS[generation])]


def pytest_sessionfinish(session, exitstatus):
    config = session.config
    whole = any(Path(str(a)).resolve() == HERE for a in config.args)
    narrowed = config.getoption("keyword") or config.getoption("markexpr")
    if not (whole and config.getoption("--reference")) or narrowed or session.testsfailed: return
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        return  # one of several processes sees only its part
    if left := [file for one in bundles.given(config).items() for file in unopened(*one)]:
        print(f"\nerror: no test opened these files of the reference: {', '.join(left)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
