"""Parity with the official implementation: values it computed, kept in a folder outside the repository.

`pytest tests/parity --reference DIR`; without DIR, `../shared/reference/n1d6` beside the checkout. Where there is no such folder every
test skips with that reason; where one file of a bundle is absent, only the test that needs it skips, and names the file.
"""
from pathlib import Path

import pytest
from bundles import reference_root


@pytest.fixture(scope="session")
def reference(request) -> Path:
    "Root of the parity bundles."
    path = reference_root(request.config)
    if not path.is_dir():
        pytest.skip(f"no parity bundles at {path}: give their folder with --reference DIR")
    return path


@pytest.fixture(scope="session")
def bundle(reference):
    "`bundle('tiny_model/inputs.safetensors')` is the path of that file, or skips the one test that asks for it."
    def find(name: str) -> Path:
        path = reference / name
        if not path.exists():
            pytest.skip(f"{name} is absent from {reference}")
        return path
    return find
