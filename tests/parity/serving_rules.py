"What the official servers' replies are, and how the official clients read them: for the tests of both dialects."
import io
from pathlib import Path

import msgpack
import numpy as np

from gr00t_nb.serving.endpoints import Endpoints, error_reply, read_head
from gr00t_nb.serving.wire import pack, unpack

HEALTH = dict(uptime_s=0.0, counts={}, latency_ms={})
REPLIES = dict(  # request -> the recorded reply
    req_ping="rep_ping",
    req_reset="rep_reset",
    req_get_modality_config="rep_get_modality_config",
    req_get_action="rep_get_action",
    req_get_action_with_token="rep_get_action",
)


class Recorded:
    "A policy whose answers are those of the recorded replies."

    def __init__(self, wire: Path):
        read = lambda name, absent: unpack(f.read_bytes()) if (f := wire / name).exists() else absent
        self.config = read("rep_get_modality_config.msgpack", {})
        self.answer = tuple(read("rep_get_action.msgpack", None))
        self.memory = read("rep_reset.msgpack", {})
        self.asked = []

    def get_modality_config(self) -> dict: return self.config

    def get_action(self, observation, options=None) -> tuple:
        self.asked.append((observation, options))
        return self.answer

    def reset(self, options=None) -> dict: return self.memory


def reply_to(frame: bytes, endpoints: Endpoints) -> bytes:
    "What the server sends, without its sockets."
    request = read_head(frame)
    if text := endpoints.refusal(request): return error_reply(text, request.dialect)
    if request.endpoint in endpoints.QUICK: return endpoints.quick(request, HEALTH)
    return endpoints.answer(request)[0]


def leaves(message) -> list:
    if isinstance(message, dict): return [x for v in message.values() for x in leaves(v)]
    if isinstance(message, list): return [x for v in message for x in leaves(v)]
    return [message]


def client_of_n1d6(obj: dict):
    "The decoding rule of N1.6's client, written after its specification."
    if "__ndarray_class__" in obj: return np.load(io.BytesIO(obj["as_npy"]), allow_pickle=False)
    return ("ModalityConfig", obj["as_json"]) if "__ModalityConfig_class__" in obj else obj


def client_of_n1d7(obj: dict):
    "The decoding rule of N1.7's client: keys of arrays are bytes."
    if b"nd" in obj:
        a = np.frombuffer(obj[b"data"], np.dtype(obj[b"type"]))
        return a.reshape(obj[b"shape"]) if obj[b"nd"] else a[0]
    return ("ModalityConfig", obj["as_json"]) if "__ModalityConfig__" in obj else obj


def read_as(client, frame: bytes): return msgpack.unpackb(frame, object_hook=client, raw=False)


def same(a, b) -> bool:
    "Whether two messages are equal, arrays by dtype and to the bit."
    if isinstance(a, dict): return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray): return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def answered_as_recorded(wire: Path, asked: str, reply: str | None, client, token: str):
    """By the client's own rules the reply is the recorded one, or {} where none was recorded; what it
    asked reaches the policy as it was sent."""
    policy, frame = Recorded(wire), (wire / f"{asked}.msgpack").read_bytes()
    said = reply_to(frame, Endpoints(policy, token if "token" in asked else None))
    recorded = (wire / f"{reply}.msgpack").read_bytes() if reply else pack({})
    assert same(read_as(client, said), read_as(client, recorded))
    if not policy.asked: return
    sent = read_as(client, frame)["data"]
    assert same(list(policy.asked[0]), [sent["observation"], sent["options"]])
