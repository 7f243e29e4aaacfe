"Messages of FluxVLA's clients and server: the same objects, and the same bytes where no picture was compressed."
import base64
import json

import numpy as np
import pytest

from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.serving.endpoints import Endpoints, read_head
from gr00t_nb.serving.fluxvla_wire import PICTURES, JPEG_QUALITY
from gr00t_nb.serving.fluxvla_wire import read_reply, read_request, write_reply, write_request


@pytest.fixture(scope="module")
def frames(bundle) -> dict:
    return json.loads(bundle("fluxvla/engine/serving_wire.json").read_text())


@pytest.fixture(scope="module")
def observation(bundle) -> dict:
    with np.load(bundle("fluxvla/engine/serving_obs.npz"), allow_pickle=False) as file:
        return dict(file) | dict(task_description="pick up the cube")


@pytest.mark.parametrize("protobuf", [True, False])
@pytest.mark.parametrize("compress", [True, False])
def test_requests(frames, observation, protobuf, compress):
    said = frames[f"request.{'protobuf' if protobuf else 'msgpack'}.compress={compress}"]
    endpoint, found, key = read_request(base64.b64decode(said["base64"]))
    assert (endpoint, key) == ("predict_action", said["decoded_unnorm_key"])
    assert sorted(found) == said["decoded_keys"]
    for name in ("qpos", "depth"):
        assert found[name].dtype == observation[name].dtype and (found[name] == observation[name]).all()
    worst = np.abs(found["cam_high"].astype(int) - observation["cam_high"]).max()
    assert abs(worst - said["cam_high_max_abs_error"]) <= 1  # decoders of JPEG may round otherwise
    assert compress or worst == 0
    ours = write_request(observation, key, compress, protobuf)
    assert len(ours) == said["n_bytes"] or compress
    again = read_request(ours)[1]
    assert again.keys() == found.keys() and ours[0] == said["first_byte"]


@pytest.mark.parametrize("protobuf", [True, False])
def test_replies(frames, protobuf):
    kind = f"response.{'protobuf' if protobuf else 'msgpack'}"
    action = np.array(frames["action"], np.float32)
    data = base64.b64decode(frames[f"{kind}.error=''"]["base64"])
    found, seconds = read_reply(data)
    assert (found == action).all() and seconds == 0.125
    assert write_reply(action, 0.125, protobuf=protobuf) == data
    failed = base64.b64decode(frames[f"{kind}.error='boom'"]["base64"])
    with pytest.raises(InputError, match="boom"): read_reply(failed)
    assert write_reply(error="boom", protobuf=protobuf) == failed


def test_cameras(frames):
    assert sorted(PICTURES) == frames["jpeg_keys"] and JPEG_QUALITY == frames["jpeg_quality"]


class Answers:
    "A policy of one camera and an arm of fourteen joints, that gives the recorded action."
    action = state = None

    def get_modality_config(self) -> dict:
        return dict(
            video=ModalityConfig([0], ["observation.images.cam_high"]),
            state=ModalityConfig([0], ["arm"]),
            action=ModalityConfig(range(5), ["arm"]),
            language=ModalityConfig([0], ["task"]),
        )

    def get_action(self, observation, options=None):
        self.state, self.said = observation["state"]["arm"], observation["language"]["task"]
        return dict(arm=self.action), {}


@pytest.mark.parametrize("protobuf", [True, False])
@pytest.mark.parametrize("compress", [True, False])
def test_the_server_answers_recorded_requests(frames, observation, protobuf, compress):
    "In the form of the request; robot's state and sentence reach the policy, its action the robot."
    kind = "protobuf" if protobuf else "msgpack"
    policy = Answers()
    policy.action = np.array(frames["action"], np.float32)
    request = read_head(base64.b64decode(frames[f"request.{kind}.compress={compress}"]["base64"]))
    reply, _, good = Endpoints(policy).answer(request)
    found, _ = read_reply(reply)
    assert good and (found == policy.action).all() and (reply[:1] == b"\x01") == protobuf
    assert (policy.state[0, 0] == observation["qpos"].astype(np.float32)).all()
    assert policy.said == [["pick up the cube"]]
