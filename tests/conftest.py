"Options of the whole test suite, and what every test finds as it was."
import gc
import sys

import pytest

from gr00t_nb.embodiments import MODALITY_CONFIGS

KNOWN = dict(MODALITY_CONFIGS)  # the robots that are built in
LONGEST = ("test_browser.py", "families", "test_tutorials.py", "test_cases.py", "test_users_runs.py")


def pytest_addoption(parser):
    parser.addoption(
        "--reference",
        default=None,
        help=(
            "folder with parity bundles of one generation (default: those in ../shared/reference"
            " beside the checkout)"
        ),
    )
    every = "hold what the engine promises with every family, not with the first and the dummy alone"
    parser.addoption("--all-families", action="store_true", help=every)
    each = "train every recipe, not one of each kind"
    parser.addoption("--all-recipes", action="store_true", help=each)


def pytest_collection_modifyitems(items):
    "What takes longest comes first: of two processes none has to wait for the other at the end."
    first = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: min(first.get(part, len(first)) for part in item.path.parts))


def pytest_collection_finish():
    "What has been imported stays: no run has to look through it for garbage."
    gc.collect()
    gc.freeze()


def forget_robots() -> None:
    MODALITY_CONFIGS.clear()
    MODALITY_CONFIGS.update(KNOWN)


@pytest.fixture(autouse=True)
def as_in_a_new_process():
    "No test sees a robot or a figure of another, whatever came before it in its process."
    forget_robots()
    yield
    forget_robots()
    if "matplotlib.pyplot" in sys.modules: sys.modules["matplotlib.pyplot"].close("all")
