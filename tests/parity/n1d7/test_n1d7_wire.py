"Messages of N1.7's clients and server, byte for byte; what is hostile is refused."
import numpy as np
import pytest
from bundles import reference_root

from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.serving.wire import dialect_of, pack, unpack


def pytest_generate_tests(metafunc):
    files = sorted((reference_root(metafunc.config) / "policy" / "wire").glob("*.msgpack"))
    absent = pytest.param(None, marks=pytest.mark.skip(reason="policy/wire/*.msgpack are absent"))
    metafunc.parametrize("frame", [pytest.param(f, id=f.stem) for f in files] or [absent])


def leaves(message) -> list:
    if isinstance(message, dict): return [x for v in message.values() for x in leaves(v)]
    if isinstance(message, list): return [x for v in message for x in leaves(v)]
    return [message]


def test_read_and_written(frame):
    data = frame.read_bytes()
    if frame.stem.startswith("bad_"):
        with pytest.raises(InputError, match="is no message"): unpack(data)
        return
    message = unpack(data)
    assert pack(message, "buffer") == data
    kinds = [type(x) for x in leaves(message)]
    assert kinds.count(ModalityConfig) == data.count(b"__ModalityConfig__")
    numbers = sum(isinstance(x, (np.ndarray, np.generic)) for x in leaves(message))
    assert numbers == data.count(b"\xc4\x02nd")
    if numbers or b"__ModalityConfig__" in data: assert dialect_of(data) == "buffer"
