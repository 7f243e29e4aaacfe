"Options of the whole test suite, and what every test finds as it was."
import sys

import pytest

from gr00t_nb.embodiments import MODALITY_CONFIGS

KNOWN = dict(MODALITY_CONFIGS)  # the robots that are built in


def pytest_addoption(parser):
    parser.addoption(
        "--reference",
        default=None,
        help=(
            "folder with parity bundles of one generation (default: those in ../shared/reference"
            " beside the checkout)"
        ),
    )


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
