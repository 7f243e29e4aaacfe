"The server's messages, byte for byte."
import numpy as np
import pytest
from bundles import reference_root

from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.serving.wire import pack, unpack


def pytest_generate_tests(metafunc):
    files = sorted((reference_root(metafunc.config) / "policy" / "wire").glob("*.msgpack"))
    metafunc.parametrize(
        "frame",
        [pytest.param(f, id=f.stem) for f in files]
        or [pytest.param(None, marks=pytest.mark.skip(reason="policy/wire/*.msgpack are absent"))],
    )


def leaves(message):
    if isinstance(message, dict): return [x for v in message.values() for x in leaves(v)]
    if isinstance(message, list): return [x for v in message for x in leaves(v)]
    return [message]


def test_read_and_written(frame):
    data = frame.read_bytes()
    message = unpack(data)
    assert pack(message) == data
    marked = data.count(b"__ndarray_class__"), data.count(b"__ModalityConfig_class__")
    kinds = [type(x) for x in leaves(message)]
    assert (kinds.count(np.ndarray), kinds.count(ModalityConfig)) == marked
