"Messages of N1.7's clients and server, byte for byte; what is hostile is refused."
from pathlib import Path

import numpy as np
import pytest
from bundles import reference_root
from serving_rules import Recorded, client_of_n1d7, read_as, reply_to, same

from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.serving.endpoints import Endpoints, read_head
from gr00t_nb.serving.wire import dialect_of, pack, unpack


def pytest_generate_tests(metafunc):
    if "frame" not in metafunc.fixturenames: return
    files = sorted((reference_root(metafunc.config, "n1d7") / "policy" / "wire").glob("*.msgpack"))
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


@pytest.fixture(scope="module")
def wire(bundle) -> Path: return bundle("policy/wire")


REPLIES = dict(  # request -> the recorded reply
    req_ping="rep_ping",
    req_reset=None,  # none was recorded: N1.7's policy has no memory, and says {}
    req_get_modality_config="rep_get_modality_config",
    req_get_action="rep_get_action",
    req_get_action_with_token="rep_get_action",
)


@pytest.mark.parametrize("asked", REPLIES)
def test_recorded_requests_are_answered(wire, asked):
    "By the client's own rules the reply is the recorded one; what it asked reaches the policy as it was sent."
    policy, frame = Recorded(wire), (wire / f"{asked}.msgpack").read_bytes()
    reply = reply_to(frame, Endpoints(policy, "s3cret" if "token" in asked else None))
    recorded = (wire / f"{REPLIES[asked]}.msgpack").read_bytes() if REPLIES[asked] else pack({})
    assert same(read_as(client_of_n1d7, reply), read_as(client_of_n1d7, recorded))
    if policy.asked:
        sent = read_as(client_of_n1d7, frame)["data"]
        assert same(list(policy.asked[0]), [sent["observation"], sent["options"]])
        assert read_head(frame).dialect == "buffer"


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
