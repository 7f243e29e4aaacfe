"The policy server on loopback: two dialects at one port, clients that die, hang, flood and lie, and its end."
import io
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq
from preloaded import ROOT, Running, free_port

from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.policy import check_observation
from gr00t_nb.serving.client import NoReply, PolicyClient
from gr00t_nb.serving.fluxvla_wire import read_reply, write_request
from gr00t_nb.serving.pictures import Jpeg
from gr00t_nb.serving.server import PolicyServer
from gr00t_nb.serving.wire import pack, unpack

LONG = 120  # seconds for what takes milliseconds: a machine may be loaded
CONFIG = dict(
    video=ModalityConfig([0], ["cam_high"]),
    state=ModalityConfig([0], ["arm"]),
    action=ModalityConfig(range(16), ["arm"]),
    language=ModalityConfig([0], ["task"]),
)


class Stays:
    "A policy that stays where it is; one that is blocked answers when it is let go."

    def __init__(self, blocked: bool = False):
        self.go, self.begun, self.asked = threading.Event(), threading.Event(), []
        if not blocked: self.go.set()

    def get_modality_config(self) -> dict: return CONFIG

    def get_action(self, observation, options=None):
        check_observation(observation, CONFIG)
        self.asked.append(float(observation["state"]["arm"][0, 0, 0]))
        self.begun.set()
        assert self.go.wait(LONG)
        return dict(arm=np.repeat(observation["state"]["arm"], 16, 1)), {}

    def reset(self, options=None) -> dict: return {}


def question(number: float = 0) -> dict:
    return dict(
        video=dict(cam_high=np.zeros((1, 1, 8, 8, 3), np.uint8)),
        state=dict(arm=np.full((1, 1, 6), number, np.float32)),
        language=dict(task=[["lift"]]),
    )


def asking(number: float = 0, **more) -> bytes:
    "A question as a client of N1.6 sends it."
    return pack(dict(endpoint="get_action", data=dict(observation=question(number), options=None)) | more)


def until(true):
    "Waits until something is so."
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def all_gone(server: PolicyServer) -> bool:
    "Whether nobody waits for what is in the queue."
    return all(t.gone for line in list(server.queue.lines.values()) for t in list(line))


@contextmanager
def raw(server: PolicyServer, kind: int = zmq.DEALER):
    "A socket that sends what it is told."
    with zmq.Context() as context, context.socket(kind) as s:
        s.linger, s.rcvtimeo = 0, 1000 * LONG
        s.connect(server.address)
        yield s


# ---- what it answers

def official_array(a: np.ndarray, dialect: str) -> dict:
    "As NVIDIA's code packs it, without this kit's."
    if dialect == "buffer":
        return {b"nd": True, b"type": a.dtype.str, b"kind": b"", b"shape": a.shape, b"data": a.tobytes()}
    out = io.BytesIO()
    np.save(out, a, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": out.getvalue()}


def official_reading(obj: dict):
    "What a client of N1.6 and one of N1.7 make of a map."
    if "__ndarray_class__" in obj: return "stream", np.load(io.BytesIO(obj["as_npy"]), allow_pickle=False)
    if b"nd" in obj: return "buffer", np.frombuffer(obj[b"data"], obj[b"type"]).reshape(obj[b"shape"])
    return obj


def test_official_clients_of_both_generations_at_one_port():
    "REQ sockets with frames packed by msgpack alone: each is answered in its own dialect."
    with PolicyServer(Stays(), port=0) as server:
        for turn, dialect in enumerate(("stream", "buffer", "stream")):
            seen = question(turn)
            parts = {m: {k: official_array(a, dialect) for k, a in seen[m].items()} for m in ("video", "state")}
            data = dict(observation=parts | dict(language=seen["language"]), options=None)
            with raw(server, zmq.REQ) as s:
                s.send(msgpack.packb(dict(endpoint="get_action", data=data)))
                actions, info = msgpack.unpackb(s.recv(), object_hook=official_reading)
                spoken, arm = actions["arm"]
                assert (spoken, arm.dtype, info) == (dialect, np.float32, {}) and (arm == turn).all()
                s.send(msgpack.packb(dict(endpoint="get_modality_config")))
                said = msgpack.unpackb(s.recv())
                for marker in ("__ModalityConfig_class__", "__ModalityConfig__"):
                    assert all(c[marker] is True and "as_json" in c for c in said.values())
                s.send(msgpack.packb(dict(endpoint="ping")))
                assert msgpack.unpackb(s.recv()) == dict(status="ok", message="Server is running")


def test_fluxvla_clients_at_the_same_port():
    frame = np.zeros((8, 8, 3), np.uint8)
    with PolicyServer(Stays(), port=0) as server, raw(server, zmq.REQ) as s:
        for protobuf in (True, False):
            asked = dict(cam_high=frame, qpos=np.arange(6.0), task_description="lift")
            s.send(write_request(asked, protobuf=protobuf))
            action, seconds = read_reply(s.recv())
            assert (action[0, 15] == np.arange(6)).all() and seconds >= 0
        s.send(msgpack.packb(dict(endpoint="get_status")))
        assert msgpack.unpackb(s.recv())["total_requests"] == 2


def test_frames_as_jpeg():
    with PolicyServer(Stays(), port=0) as server, PolicyClient(port=server.port, jpeg=90) as client:
        assert (client.get_action(question(2))[0]["arm"] == 2).all()


def test_a_message_of_two_frames_is_refused_and_nothing_else():
    with PolicyServer(Stays(), port=0) as server, raw(server, zmq.REQ) as s:
        s.send_multipart([b"two", b"frames"])
        assert "2 frames" in unpack(s.recv())["error"]
        s.send(asking(1))
        assert (unpack(s.recv())[0]["arm"] == 1).all()


def test_envelopes():
    "A client with an id of its own gets it back, one without an empty frame is answered without."
    with PolicyServer(Stays(), port=0) as server, raw(server) as s:
        for way in ([b"7", b""], [b""], []):
            s.send_multipart([*way, pack(dict(endpoint="ping"))])
            assert s.recv_multipart()[:-1] == way


# ---- who waits for whom

def test_a_ping_is_answered_while_the_policy_computes():
    policy = Stays(blocked=True)
    with PolicyServer(policy, port=0) as server, raw(server) as slow, PolicyClient(port=server.port) as client:
        slow.send_multipart([b"", asking()])
        assert policy.begun.wait(LONG)
        assert client.ping() and client.get_modality_config() == CONFIG
        assert client.health()["busy_s"] >= 0
        assert not policy.go.is_set()
        policy.go.set()
        assert "error" not in unpack(slow.recv_multipart()[-1])
        assert client.health()["counts"]["get_action"] == 1


def test_clients_take_turns():
    "Three questions of one client are waiting when another one asks: it is not the last."
    policy = Stays(blocked=True)
    with PolicyServer(policy, port=0) as server, raw(server) as greedy, raw(server) as other:
        for k in range(4): greedy.send_multipart([b"", asking(k)])
        until(lambda: policy.asked and len(server.queue) == 3)
        other.send_multipart([b"", asking(10)])
        until(lambda: len(server.queue) == 4)
        policy.go.set()
        for s, n in ((greedy, 4), (other, 1)):
            for _ in range(n): assert "error" not in unpack(s.recv_multipart()[-1])
    assert policy.asked.index(10) == 2 and [a for a in policy.asked if a != 10] == [0, 1, 2, 3]


def test_a_line_is_short():
    policy = Stays(blocked=True)
    with PolicyServer(policy, port=0, each=2) as server, raw(server) as s:
        for k in range(4): s.send_multipart([b"%d" % k, b"", asking(k)])
        number, _, reply = s.recv_multipart()
        refused = unpack(reply)["error"]
        until(lambda: len(server.queue) == 2 or policy.asked)
        policy.go.set()
        assert "wait for their replies" in refused and number in (b"2", b"3")


def test_a_late_question_is_dropped():
    "The clock stands still but for one jump, while two questions wait of which one is patient."
    policy, now = Stays(blocked=True), [0.0]
    with PolicyServer(policy, port=0, late_after=15, clock=lambda: now[0]) as server:
        with raw(server) as s, raw(server) as hasty:
            s.send_multipart([b"", asking(1)])
            assert policy.begun.wait(LONG)
            s.send_multipart([b"", asking(2)])
            hasty.send_multipart([b"", asking(3, timeout=2.0)])
            until(lambda: len(server.queue) == 2)
            now[0] = 10.0
            policy.go.set()
            assert "waited for 10.0 s and came too late" in unpack(hasty.recv_multipart()[-1])["error"]
            assert all("error" not in unpack(s.recv_multipart()[-1]) for _ in range(2))
        assert (policy.asked, server.figures.counts["late"]) == ([1, 2], 1)


def test_nobody_computes_for_a_client_that_gave_up():
    policy = Stays(blocked=True)
    with PolicyServer(policy, port=0) as server, PolicyClient(port=server.port, timeout=LONG) as client:
        with raw(server) as first:
            first.send_multipart([b"", asking(1)])
            assert policy.begun.wait(LONG)
            with pytest.raises(NoReply, match="within 0.3 s"):
                client.call("get_action", dict(observation=question(2)), timeout=0.3)
            until(lambda: all_gone(server))
            policy.go.set()
            assert (client.get_action(question(3))[0]["arm"] == 3).all()  # the same client, again
        assert policy.asked == [1, 3]


# ---- who may do what

def test_a_token_is_needed_by_everyone():
    with PolicyServer(Stays(), port=0, token="s3cret") as server:
        for token in (None, "", "s3cre", "s3crets", "\u00fc"):
            with PolicyClient(port=server.port, token=token) as client:
                assert not client.ping()
                for ask in (client.get_modality_config, client.reset, client.health, client.kill):
                    with pytest.raises(InputError, match="Unauthorized: Invalid API token"): ask()
        with PolicyClient(port=server.port, token="s3cret") as client:
            assert client.ping() and client.reset() == {}
            client.kill()
            assert server.ended.wait(LONG)


def test_beyond_this_machine_only_with_a_token():
    for host in ("0.0.0.0", "*", "::", "10.0.0.7"):
        with pytest.raises(InputError, match="give a --token"): PolicyServer(Stays(), host)
    with PolicyServer(Stays(), port=0) as server, PolicyClient(port=server.port) as client:
        with pytest.raises(InputError, match="without a token"): client.kill()
        assert client.ping()


# ---- its end

@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_with_and_without_brackets(host):
    try: socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError: pytest.skip("this machine has no IPv6")
    with PolicyServer(Stays(), host, 0) as server, PolicyClient(host, server.port, timeout=LONG) as client:
        assert server.address.startswith("tcp://[::1]:") and client.ping()


def threads() -> set: return {t for t in threading.enumerate() if t.name in ("policy", "listener")}


def test_a_stop_finishes_what_has_begun_and_refuses_what_waits():
    policy, before = Stays(blocked=True), threads()
    server = PolicyServer(policy, port=0).start()
    with raw(server) as s:
        for k in range(2): s.send_multipart([b"%d" % k, b"", asking(k)])
        until(lambda: policy.asked and len(server.queue) == 1)
        assert server.stop(timeout=0.01) is False
        s.send_multipart([b"2", b"", asking(2)])
        assert "stopping" in unpack(s.recv_multipart()[-1])["error"]
        policy.go.set()
        replies = dict((n, unpack(r)) for n, _, r in (s.recv_multipart() for _ in range(2)))
    assert server.stop() and server.ended.is_set() and threads() == before
    assert "error" not in replies[b"0"] and "is stopping" in replies[b"1"]["error"]


def test_a_client_finds_a_server_that_was_started_again():
    with PolicyServer(Stays(), port=free_port()) as server: pass
    with PolicyClient(port=server.port, timeout=0.2) as client:
        assert not client.ping()
        with PolicyServer(Stays(), port=server.port): assert client.ping(timeout=LONG)


def test_a_policy_that_fails_at_its_first_answer_opens_no_port():
    class Broken(Stays):
        def example_observation(self): raise RuntimeError("no weights")
    before = threads()
    with pytest.raises(RuntimeError, match="no weights"): PolicyServer(Broken(), port=0).start()
    until(lambda: threads() == before)


def test_the_command_ends_in_order(tmp_path):
    port = free_port()
    sample = ROOT / "data_samples/cube_to_bowl"
    words = ["-m", "gr00t_nb.serving.server", "--dataset-path", sample, "--port", port]
    running = Running(*words, "--modality-config-path", f"{sample}_config.py")
    with PolicyClient(port=port) as client:
        until(lambda: client.ping(timeout=1))
        assert client.reset(dict(episode_index=2))["current_step"] == 0
        os.kill(running.jobs[0].pid, signal.SIGTERM)
    done = running.end()
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "stopped", done
    assert f"cube_to_bowl is served at tcp://127.0.0.1:{port}" in done.stdout


# ---- clients that die

DYING = r"""
import signal, socket, sys, zmq
state, port, frame = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
if state == "half":  # of a greeting
    s = socket.create_connection(("127.0.0.1", port))
    s.send(b"\xff\0\0\0\0")
else:
    s = zmq.Context().socket(zmq.DEALER)
    s.connect(f"tcp://127.0.0.1:{port}")
    ping = bytes.fromhex(sys.argv[4])
    s.send_multipart([b"", ping])
    s.recv_multipart()
    if state == "waiting": s.send_multipart([b"", frame])
    if state == "unread":  # replies that it never takes
        for _ in range(300): s.send_multipart([b"", ping])
    if state == "cut":  # a second frame that never comes
        s.send_multipart([b"", frame])
        s.send(b"", zmq.SNDMORE)
print("ready", flush=True)
signal.pause()
"""


def test_clients_are_killed_in_any_state():
    "The next question is answered, and of the dead ones' only that is computed which had begun."
    policy = Stays(blocked=True)
    with PolicyServer(policy, port=0) as server, PolicyClient(port=server.port, timeout=LONG) as client:
        words = [sys.executable, "-S", "-c", DYING]
        ends = [str(server.port), asking(1).hex(), pack(dict(endpoint="ping")).hex()]
        env = dict(PYTHONPATH=str(Path(find_spec("zmq").origin).parents[1]))
        dying = []
        try:
            for state in ("waiting", "waiting", "waiting", "idle", "half", "unread", "cut"):
                dying.append(subprocess.Popen([*words, state, *ends], stdout=subprocess.PIPE, env=env))
            for job in dying: assert job.stdout.readline() == b"ready\n"
            until(lambda: policy.asked and len(server.queue) == 3)
            assert client.ping()
        finally:
            for job in dying: job.send_signal(signal.SIGKILL)
            for job in dying: job.communicate()
        until(lambda: all_gone(server))
        policy.go.set()
        assert (client.get_action(question(2))[0]["arm"] == 2).all()
        assert policy.asked == [1, 2] and server.figures.counts["gone"] == 3


# ---- frames that lie

def valid_frames(rng: np.random.Generator) -> list[bytes]:
    "One of each kind that a client may send."
    seen = question() | dict(video=dict(cam_high=rng.integers(0, 255, (1, 1, 8, 8, 3), dtype=np.uint8)))
    packed = dict(seen, video=dict(cam_high=Jpeg(seen["video"]["cam_high"])))
    asked = dict(endpoint="get_action", data=dict(observation=seen, options=dict(seed=1)), timeout=9.0)
    others = [dict(endpoint=e) for e in ("ping", "health", "get_modality_config", "kill", "get_status", "foo")]
    others += [dict(endpoint="reset", data=dict(options=dict(a=np.float32(1), c=1j)))]
    frames = [pack(m, d) for m in [asked, *others] for d in ("stream", "buffer") if m is asked or d == "buffer"]
    frames += [pack(dict(endpoint="get_action", data=dict(observation=packed)))] + frames[:2] * 4
    flux = dict(cam_high=seen["video"]["cam_high"][0, 0], qpos=np.arange(6.0), task_description="lift")
    return frames + [write_request(flux, compress=c, protobuf=p) for c in (True, False) for p in (True, False)]


def mutated(frame: bytes, frames: list[bytes], rng: random.Random) -> bytes:
    "A valid frame with one to three faults."
    out = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        at, n = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 4, 8, 60))
        match rng.randrange(7):
            case 0: out[at:at + n] = rng.randbytes(len(out[at:at + n]))
            case 1: del out[at:at + n]
            case 2: out[at:at] = rng.randbytes(n)
            case 3: out[at:] = b""
            case 4: out[at:at + n] = rng.choice((b"\xff", b"\x7f", b"\0", b"\xc1", b"\xdd", b"\xdf", b"\xc6")) * n
            case 5: out[at:at + n] = rng.choice(frames)[at:at + 4 * n]
            case 6:
                old = rng.choice((b"<f4", b"|u1", b"<f8", b"data", b"shape", b"as_npy", b"nd", b"arm", b"endpoint"))
                new = rng.choice((b"|O8", b"<U9", b"<f4", b"data", b"nd", b"__jpeg__", b"", b"type"))
                out = out.replace(old, new, 1)
    return bytes(out)


def is_fair(reply: bytes) -> bool:
    "An answer, or an error with a text."
    if reply[:1] == b"\x01":
        try: return read_reply(reply)[0].size > 0
        except InputError as e: return "could not answer: " in str(e) and len(str(e)) > 40
    said = msgpack.unpackb(reply, strict_map_key=False)
    if not isinstance(said, dict) or "error" not in said: return said is not None
    return isinstance(said["error"], str) and len(said["error"]) > 10


def test_ten_thousand_fuzzed_frames():
    "Every frame is answered, none with an empty error, and at the end a good question is."
    rng, silent = random.Random(0), logging.getLogger("gr00t_nb.serving")
    frames = valid_frames(np.random.default_rng(0))
    silent.disabled = True
    try:
        with PolicyServer(Stays(), port=0, late_after=LONG) as server, raw(server) as s:
            waiting = set()
            for k in range(10_000):
                broken, name = mutated(rng.choice(frames), frames, rng), b"%d" % k
                s.send_multipart([name, b"", *([broken] if k % 50 else [broken, broken])])
                waiting.add(name)
                while len(waiting) > (3 if k < 9_999 else 0):
                    found, _, reply = s.recv_multipart()
                    waiting.remove(found)
                    assert is_fair(reply), reply
            counts = server.figures.counts
            s.send_multipart([b"", asking(5)])
            assert (unpack(s.recv_multipart()[-1])[0]["arm"] == 5).all()
    finally: silent.disabled = False
    assert counts["refused"] > 1000 and counts["failed"] > 500 and counts["get_action"] > 50, counts


# ---- a robot's small computer

def test_the_client_needs_no_torch(tmp_path):
    "In an interpreter that has NumPy, msgpack, pyzmq and fastcore, and nothing else."
    for name in ("numpy", "msgpack", "zmq", "fastcore"):
        place = Path(find_spec(name).origin).parent
        (tmp_path / name).symlink_to(place)
        if (libs := place.with_name({"zmq": "pyzmq"}.get(name, name) + ".libs")).exists():
            (tmp_path / libs.name).symlink_to(libs)
    (tmp_path / "gr00t_nb").symlink_to(ROOT / "gr00t_nb")
    script = (
        "import sys, numpy as np\n"
        "from gr00t_nb.serving.client import PolicyClient\n"
        "client = PolicyClient(port=int(sys.argv[1]), timeout=100)\n"
        "arm = np.full((1, 1, 6), 4, np.float32)\n"
        "seen = dict(video=dict(cam_high=np.zeros((1, 1, 8, 8, 3), np.uint8)), state=dict(arm=arm))\n"
        "actions, info = client.get_action(seen | dict(language=dict(task=[['lift']])))\n"
        "print(actions['arm'].mean(), sorted({'torch', 'cv2', 'transformers', 'pyarrow'} & set(sys.modules)))\n"
        "PolicyClient(port=int(sys.argv[1]), jpeg=95).get_action(seen)\n"
    )
    with PolicyServer(Stays(), port=0) as server:
        words = [sys.executable, "-S", "-c", script, str(server.port)]
        done = subprocess.run(words, env=dict(PYTHONPATH=str(tmp_path)), capture_output=True, text=True)
    assert done.stdout == "4.0 []\n", done.stderr
    assert "run pip install opencv-python-headless, or send arrays" in done.stderr
