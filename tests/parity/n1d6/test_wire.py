"The server's messages, byte for byte."
from pathlib import Path

import numpy as np
import pytest
from bundles import reference_root
from serving_rules import REPLIES, Recorded, answered_as_recorded, client_of_n1d6, leaves, reply_to

from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.serving.endpoints import Endpoints
from gr00t_nb.serving.wire import pack, unpack


def pytest_generate_tests(metafunc):
    if "frame" not in metafunc.fixturenames: return
    files = sorted((reference_root(metafunc.config) / "policy" / "wire").glob("*.msgpack"))
    metafunc.parametrize(
        "frame",
        [pytest.param(f, id=f.stem) for f in files]
        or [pytest.param(None, marks=pytest.mark.skip(reason="policy/wire/*.msgpack are absent"))],
    )


def test_read_and_written(frame):
    data = frame.read_bytes()
    message = unpack(data)
    assert pack(message) == data
    marked = data.count(b"__ndarray_class__"), data.count(b"__ModalityConfig_class__")
    kinds = [type(x) for x in leaves(message)]
    assert (kinds.count(np.ndarray), kinds.count(ModalityConfig)) == marked


@pytest.fixture(scope="module")
def wire(bundle) -> Path: return bundle("policy/wire")


@pytest.mark.parametrize("asked", REPLIES)
def test_recorded_requests_are_answered(wire, asked):
    answered_as_recorded(wire, asked, REPLIES[asked], client_of_n1d6, "secret")


def test_recorded_errors(wire):
    "Whoever has no token, and an endpoint that there is not, get the recorded words; one who has it ends the server."
    guarded = Endpoints(Recorded(wire), "secret")
    recorded = lambda name: (wire / f"{name}.msgpack").read_bytes()
    assert reply_to(recorded("req_get_action"), guarded) == recorded("rep_unauthorized")
    assert reply_to(pack(dict(endpoint="foo")), Endpoints(Recorded(wire))) == recorded("rep_unknown_endpoint")
    assert reply_to(recorded("req_kill"), guarded) == recorded("rep_unauthorized")
    kill = pack(unpack(recorded("req_kill")) | dict(api_token="secret"))
    assert reply_to(kill, guarded) == recorded("rep_kill")
