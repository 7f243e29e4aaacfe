"Messages of N1.7's clients and server, byte for byte; what is hostile is refused."
from pathlib import Path

import numpy as np
import pytest
from bundles import reference_root
from serving_rules import REPLIES, Recorded, answered_as_recorded, client_of_n1d7, leaves, reply_to

from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.serving.endpoints import Endpoints, read_head
from gr00t_nb.serving.wire import dialect_of, pack, unpack


def pytest_generate_tests(metafunc):
    if "frame" not in metafunc.fixturenames: return
    files = sorted((reference_root(metafunc.config, "n1d7") / "policy" / "wire").glob("*.msgpack"))
    absent = pytest.param(None, marks=pytest.mark.skip(reason="policy/wire/*.msgpack are absent"))
    metafunc.parametrize("frame", [pytest.param(f, id=f.stem) for f in files] or [absent])


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


@pytest.fixture(scope="module")
def wire(bundle) -> Path: return bundle("policy/wire")


@pytest.mark.parametrize("asked", REPLIES)
def test_recorded_requests_are_answered(wire, asked):
    "No reply to a reset was recorded: N1.7's policy has no memory, and says {}."
    reply = None if asked == "req_reset" else REPLIES[asked]
    answered_as_recorded(wire, asked, reply, client_of_n1d7, "s3cret")
    if "get_action" in asked: assert read_head((wire / f"{asked}.msgpack").read_bytes()).dialect == "buffer"


@pytest.mark.parametrize("bad", ["bad_object_array", "bad_modality_config"])
def test_what_is_hostile_is_refused_inside_a_question_too(wire, bad):
    policy, hostile = Recorded(wire), (wire / f"{bad}.msgpack").read_bytes()
    frame = pack(dict(endpoint="get_action", data=dict(observation=0)))
    reply = reply_to(frame[:-1] + hostile, Endpoints(policy))
    assert "is no message" in unpack(reply)["error"] and not policy.asked


def test_errors(wire):
    frame = (wire / "req_get_action.msgpack").read_bytes()
    assert unpack(reply_to(frame, Endpoints(Recorded(wire), "s3cret"))) == dict(error="Unauthorized: Invalid API token")
    foo = pack(dict(endpoint="foo", data=dict(a=np.zeros(3))), "buffer")
    assert unpack(reply_to(foo, Endpoints(Recorded(wire)))) == dict(error="Unknown endpoint: foo")
