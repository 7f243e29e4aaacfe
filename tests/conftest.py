"Options of the whole test suite."


def pytest_addoption(parser):
    parser.addoption(
        "--reference",
        default=None,
        help=(
            "folder with the parity bundles (default: ../shared/reference/n1d6 beside the checkout)"
        ),
    )
