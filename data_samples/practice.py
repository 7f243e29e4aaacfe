"""Practice for a small policy: cubes, a bowl and an arm as in `cube_to_bowl`, each time a little different.

    python data_samples/practice.py --out /tmp/practice.png      # what scenes look like, seconds

A scene costs mostly its pictures. So an expert acts it once without pictures (0.1 s), and only a few
of its moments are drawn, at the size that a policy sees (12 ms for both cameras). What differs from
scene to scene: places and turns of cubes and bowl, the shades of everything, the light, where the
cameras stand and look, by millimetres and tenths of a degree, and the words.

A third of the scenes is acted as planned. In a third the arm is pushed off its path again and again,
and what counts as right is the way back. In a third the expert errs, by centimetres or by the cube,
and the scene is about how it notices and corrects itself: only moments from there on are kept.
"""
import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gr00t_nb.simulators.arm_scene import CAMERAS, CUBE, CUBE_COLOURS, FPS, OPENING, TIMESTEP
from gr00t_nb.simulators.cube_to_bowl import BOWL_AREA, CUBE_AREA, HOME, CubeToBowl
from gr00t_nb.simulators.expert import Reach, minimum_jerk
from gr00t_nb.simulators.physics import load_mujoco, open_renderer, part_way, quaternion

#: Of the pictures, pixels: an edge of 112 after the letterbox.
HEIGHT, WIDTH = 84, 112
#: First number of the seed of every practice scene: no data set and no evaluation has it.
PRACTICE = 321
#: Commands that belong to a moment.
HORIZON = 16
WORDS = (
    "put the {} cube in the bowl",
    "put the {} cube into the bowl",
    "place the {} cube in the bowl",
    "move the {} cube into the bowl",
)


@dataclass
class Moment:
    "What a policy is told and shown, and what is right then."
    images: np.ndarray  # uint8 (2 cameras, HEIGHT, WIDTH, 3)
    state: np.ndarray  # float32 (7,)
    action: np.ndarray  # float32 (HORIZON, 7): targets in the units of the state
    places: np.ndarray  # float32 (6, 3): named cube, other cube, bowl, grip; cosine and sine of 4 x yaw, held
    task: int  # the cube's number in CUBE_COLOURS
    words: int  # number in WORDS


class Practice(CubeToBowl):
    "The simulator with another situation and other looks for each scene."

    def __init__(self):
        super().__init__()
        mujoco, visual = load_mujoco(), self.model.vis
        visual.quality.offsamples, visual.quality.shadowsize = 0, 512
        visual.quality.numslices, visual.quality.numstacks, visual.quality.numquads = 12, 6, 2
        visual.global_.offheight, visual.global_.offwidth = 2 * HEIGHT, 2 * WIDTH
        self.shown = mujoco.MjData(self.model)  # the moment that is drawn
        self.renderer = open_renderer(self.model, 2 * HEIGHT, 2 * WIDTH)
        m = self.model
        names = "mat_rgba light_diffuse light_dir cam_pos cam_quat cam_fovy".split()
        self.usual = {name: getattr(m, name).copy() for name in names}
        self.headlight = m.vis.headlight.ambient.copy(), m.vis.headlight.diffuse.copy()

    def vary_looks(self, rng: np.random.Generator):
        "Shades, light and cameras of a scene."
        m, usual = self.model, self.usual
        shade = rng.normal(1, 0.05, (m.nmat, 1)) * rng.normal(1, 0.03, (m.nmat, 3))
        m.mat_rgba[:, :3] = np.clip(usual["mat_rgba"][:, :3] * shade, 0, 1)
        strong = rng.normal(0, 0.025, (m.nmat, 3))
        m.mat_rgba[:, :3] = np.clip(m.mat_rgba[:, :3] + strong, 0, 1)
        m.light_diffuse[:] = usual["light_diffuse"] * rng.normal(1, 0.10, (m.nlight, 1))
        m.light_dir[:] = usual["light_dir"] + rng.normal(0, 0.06, m.light_dir.shape)
        for now, before in zip((m.vis.headlight.ambient, m.vis.headlight.diffuse), self.headlight):
            now[:] = before * rng.normal(1, 0.08)
        m.cam_fovy[:] = usual["cam_fovy"] * rng.normal(1, 0.005, m.ncam)
        for i, (place, degrees) in enumerate(((0.003, 0.2), (0.001, 0.2))):
            axis = rng.normal(size=3)
            turn = quaternion((axis / np.linalg.norm(axis), np.radians(rng.normal(0, degrees))))
            m.cam_pos[i] = usual["cam_pos"][i] + rng.normal(0, place, 3)
            load_mujoco().mju_mulQuat(m.cam_quat[i], usual["cam_quat"][i], turn)

    def reset(self, rng: np.random.Generator):
        "Places and the start pose, from an area a little larger than the sample's."
        mujoco = load_mujoco()
        mujoco.mj_resetData(self.model, self.data)
        bowl, places = drawn_places(rng)
        self.model.body("bowl").pos[:2] = bowl
        for name, place in zip(CUBE_COLOURS, places):
            yaw = np.radians(rng.uniform(-24, 24))
            start = self.model.joint(self.model.body(name).jntadr[0]).qposadr[0]
            self.data.qpos[start:start + 7] = *place, CUBE, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        pose = HOME + rng.normal(0, [0.15, 0.08, 0.08, 0.07, 0.07, 0.12])
        opening = rng.uniform(0.65, 1.0)
        self.data.qpos[self.arm], self.data.qpos[self.fingers] = pose, opening * OPENING
        self.data.ctrl[:] = (*pose, opening * OPENING)
        mujoco.mj_step(self.model, self.data, nstep=round(0.3 / TIMESTEP))

    def draw(self, qpos: np.ndarray) -> np.ndarray:  # uint8 (2, HEIGHT, WIDTH, 3)
        "Both cameras' pictures of a configuration, each pixel the mean of four."
        mujoco = load_mujoco()
        self.shown.qpos[:] = qpos
        mujoco.mj_forward(self.model, self.shown)
        out = np.empty((len(CAMERAS), HEIGHT, WIDTH, 3), np.uint8)
        for i, camera in enumerate(CAMERAS):
            self.renderer.update_scene(self.shown, camera)
            x = self.renderer.render().reshape(HEIGHT, 2, WIDTH, 2, 3)
            out[i] = (x.sum((1, 3), dtype=np.uint16) + 2) // 4
        return out


def drawn_places(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    "The middle of the bowl (2,) and of the cubes (2, 2), metres; 10 mm beyond the sample's areas."
    wider = lambda area: rng.uniform(area[0] - 0.01, area[1] + 0.01)
    bowl = np.array([wider(BOWL_AREA[0]), wider(BOWL_AREA[1])])
    while True:
        places = np.array([[wider(CUBE_AREA[0]), wider(CUBE_AREA[1])] for _ in range(2)])
        apart = np.linalg.norm(places[0] - places[1]) > 0.075
        if apart and np.linalg.norm(places - bowl, axis=1).min() > 0.125: return bowl, places


def nearest_yaw(matrix: np.ndarray, place: np.ndarray) -> float:
    "The turn of the gripper, radians, that grasps a cube with least twist of the arm."
    azimuth, yaw = np.arctan2(place[1], place[0]), np.arctan2(matrix[3], matrix[0])
    return yaw + np.round((azimuth - yaw) / (np.pi / 2)) * np.pi / 2


@dataclass
class Belief:
    "Where the expert takes the cube to be, and how it is in a hurry."
    place: np.ndarray  # (3,) metres
    yaw: float  # of a grasp, radians
    pace: float
    wide: float  # opening of the jaws before a grasp


def down(yaw: float, lean: float = 0.0) -> np.ndarray:
    return quaternion(([0, 0, 1], yaw), ([1, 0, 0], lean))


def route(sim: Practice, b: Belief, rng: np.random.Generator) -> list[Reach]:
    "From wherever the arm is, over the cube, down, closed, up, over the bowl, open, away."
    at, _ = sim.grip_pose(sim.data.ctrl[:6])
    bowl = sim.model.body("bowl").pos
    near = lambda point, spread: np.asarray(point) + rng.normal(0, spread, 3)
    x, y, z = b.place
    seconds = lambda low, high: rng.uniform(low, high) * b.pace
    above = near([x, y, rng.uniform(0.085, 0.105)], 0.002)
    grasp = near([x, y, z - 0.002], 0.001)
    lift = near([x, y, rng.uniform(0.10, 0.125)], 0.003)
    over = near([bowl[0], bowl[1], rng.uniform(0.105, 0.125)], 0.004)
    drop = near([bowl[0], bowl[1], rng.uniform(0.068, 0.078)], 0.003)
    away = near([bowl[0] - 0.03, bowl[1] + 0.06, rng.uniform(0.15, 0.175)], 0.006)
    bowl_yaw = np.arctan2(bowl[1], bowl[0]) * 0.8
    at_bowl, upright = down(bowl_yaw, rng.uniform(0.18, 0.27)), down(b.yaw)
    first = []
    if at[2] < 0.075 and np.hypot(*(at - b.place)[:2]) > 0.005:  # among the cubes: up first
        up = np.array([*at[:2], 0.085])
        first = [Reach(up, upright, b.wide, 0.25 + 3 * (0.085 - at[2]))]
        at = up
    way = np.linalg.norm(above - at)
    return first + [
        Reach(above, down(b.yaw, 0.8 * (y - 0.02)), b.wide, max(0.3, min(1.25, 0.35 + 4 * way)) * b.pace),
        Reach(grasp, upright, b.wide, seconds(0.60, 0.72)),
        Reach(grasp, upright, 0.0, seconds(0.38, 0.48)),
        Reach(lift, upright, 0.0, seconds(0.50, 0.62)),
        Reach(over, at_bowl, 0.0, seconds(1.0, 1.2)),
        Reach(drop, at_bowl, 0.0, seconds(0.33, 0.42)),
        Reach(drop, at_bowl, b.wide, seconds(0.28, 0.38)),
        Reach(away, down(bowl_yaw * 0.6), b.wide, seconds(0.52, 0.68)),
    ]


def commands(
    sim: Practice, way: list[Reach], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:  # (L, 7) targets, (L,) pieces counted from the last one back
    "Targets of joints and gripper along a route, from where the arm was sent last."
    joints, opening = sim.data.ctrl[:6].copy(), sim.data.ctrl[6] / OPENING
    position, orientation = sim.grip_pose(joints)
    out, piece = [], []
    for k, reach in enumerate(way):
        ahead = reach.position - position
        bend = rng.normal(0, 0.03) * np.cross(ahead, [0, 0, 1])
        bend = bend + rng.normal(0, 0.02) * np.linalg.norm(ahead[:2]) * np.array([0, 0, 1])
        for s in minimum_jerk(max(4, round(reach.seconds * FPS))):
            point = position + s * ahead + 16 * (s * (1 - s)) ** 2 * bend
            joints = sim.inverse(point, part_way(orientation, reach.orientation, s), joints)
            out.append((*joints, opening + s * (reach.opening - opening)))
            piece.append(k - len(way))
        position, orientation, opening = reach.position, reach.orientation, reach.opening
    low, high = [-4] * 6 + [0], [4] * 6 + [1]
    return np.clip(np.array(out), low, high), np.array(piece)


OVER, DOWN, CLOSE, LIFT = -8, -7, -6, -5  # pieces of a route, from its end
CALM = {OVER: 1.0, DOWN: 0.35, CLOSE: 0.1, LIFT: 0.3, -4: 1.0, -3: 0.4, -2: 0.3, -1: 1.0}


def pushes(piece: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # (L, 6) radians
    "Slow noise on the joints: strong on the way, weak where things are touched."
    size = rng.uniform(0.3, 1.0) * np.array([0.035, 0.03, 0.03, 0.02, 0.03, 0.05])
    x, out = np.zeros(6), np.zeros((len(piece), 6))
    for t in range(len(piece)):
        x = 0.88 * x + np.sqrt(1 - 0.88**2) * rng.normal(0, size)
        out[t] = x * CALM.get(piece[t], 0.5)
    return out


class Acting:
    "A scene while it is acted: what could be shown of it, and what was right at each moment."

    def __init__(self, sim: Practice, task: int):
        self.sim, self.task = sim, task
        self.qpos, self.state, self.action, self.places, self.piece = [], [], [], [], []

    @property
    def cube(self): return self.sim.data.body(CUBE_COLOURS[self.task])

    def remember(self, chunk: np.ndarray, piece: int):
        sim = self.sim
        self.qpos.append(sim.data.qpos.copy())
        self.state.append(sim.state())
        self.action.append(chunk.astype(np.float32))
        self.piece.append(piece)
        grip = sim.grip_pose(sim.data.qpos[sim.arm])[0]
        m = self.cube.xmat
        yaw = 4 * np.arctan2(m[3], m[0])
        held = self.cube.xpos[2] > CUBE + 0.008 and np.linalg.norm(self.cube.xpos - grip) < 0.03
        other = sim.data.body(CUBE_COLOURS[1 - self.task]).xpos
        last = np.cos(yaw), np.sin(yaw), float(held)
        rows = self.cube.xpos, other, sim.model.body("bowl").pos, grip, last, self.cube.xpos - grip
        self.places.append(np.array(rows, np.float32))

    def follow(self, b: Belief, rng, noisy: bool = False):
        "The whole route; moments are remembered."
        plan, piece = commands(self.sim, route(self.sim, b, rng), rng)
        push = pushes(piece, rng) if noisy else np.zeros((len(plan), 6))
        fading = 0.65 ** np.arange(1, HORIZON + 1)[:, None]
        for t in range(len(plan)):
            rows = np.minimum(np.arange(t, t + HORIZON), len(plan) - 1)
            chunk = plan[rows]
            if t: chunk[:, :6] += fading * push[t - 1]
            self.remember(chunk, piece[t])
            command = plan[t].copy()
            command[:6] += push[t]
            self.sim.step(command)

    def err(self, b: Belief, rng):
        "Follow a wrong belief for a while, up to a moment that is drawn; nothing is remembered."
        plan, piece = commands(self.sim, route(self.sim, b, rng), rng)
        last = rng.choice([OVER, OVER, DOWN, DOWN, CLOSE, LIFT])
        if np.linalg.norm(b.place - self.cube.xpos) > 0.05: last = rng.choice([OVER, OVER, DOWN])
        stop = rng.choice(np.flatnonzero(piece == last))
        before = [self.sim.data.body(c).xpos.copy() for c in CUBE_COLOURS]
        for t in range(stop):
            self.sim.step(plan[t])
            now = [self.sim.data.body(c).xpos for c in CUBE_COLOURS]
            if max(np.linalg.norm(a - n) for a, n in zip(before, now)) > 0.004: return


def act(sim: Practice, rng: np.random.Generator) -> Acting | None:
    "A scene from its first to its last moment; None where the named cube did not get into the bowl."
    sim.reset(rng)
    a = Acting(sim, int(rng.integers(2)))
    pace, wide = rng.uniform(0.80, 1.04), rng.uniform(0.88, 1.0)

    def truth():
        place = a.cube.xpos.copy()
        return Belief(place, nearest_yaw(a.cube.xmat, place) + rng.normal(0, 0.02), pace, wide)

    kind = rng.choice(["as planned", "pushed", "wrong"])
    if kind == "wrong":
        b = truth()
        if rng.random() < 0.4: wrong = sim.data.body(CUBE_COLOURS[1 - a.task]).xpos + rng.normal(0, [0.01, 0.01, 0])
        else:
            angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.006, 0.04)
            wrong = b.place + far * np.array([np.cos(angle), np.sin(angle), 0])
        a.err(replace(b, place=wrong, yaw=b.yaw + rng.normal(0, 0.15)), rng)
        if abs(a.cube.xpos[2] - CUBE) > 0.004: return None
    a.follow(truth(), rng, noisy=kind != "as planned" and rng.random() < 0.8)
    return a if sim.succeeded(a.task) else None


def scene(sim: Practice, seed, moments: int = 20) -> list[Moment]:
    "Some moments of a scene, half of them around the grasp; none where the scene went wrong."
    rng = np.random.default_rng(seed)
    a = act(sim, rng)
    if a is None: return []
    sim.vary_looks(rng)
    piece = np.array(a.piece)
    weight = np.where((piece >= DOWN) & (piece <= LIFT), 2.0, 1.0) + (piece == OVER) * 0.5
    chosen = rng.choice(len(piece), min(moments, len(piece)), replace=False, p=weight / weight.sum())
    words = int(rng.choice(len(WORDS), p=[0.7, 0.1, 0.1, 0.1]))
    gain, bias = rng.normal(1, 0.04, (2, 1, 1, 3)), rng.normal(0, 4, (2, 1, 1, 3))
    out = []
    for t in chosen:
        x = sim.draw(a.qpos[t]) * gain + bias + rng.normal(0, 2, (2, HEIGHT, WIDTH, 1))
        images = np.clip(x, 0, 255).astype(np.uint8)
        out.append(Moment(images, a.state[t], a.action[t], a.places[t], a.task, words))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a picture of some moments")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from PIL import Image
    sim, rows = Practice(), []
    while len(rows) < 8:
        found = scene(sim, [args.seed, len(rows)], 8)
        args.seed += 1
        if found: rows.append(np.concatenate([np.concatenate(m.images) for m in found], 1))
    Image.fromarray(np.concatenate(rows)).save(args.out)


if __name__ == "__main__": main()
