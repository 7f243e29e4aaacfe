"""Make `cube_to_bowl`, the sample data set of this kit: a simulated six-joint arm puts a red or a blue cube into a bowl.

    python data_samples/make_cube_to_bowl.py --out data_samples/cube_to_bowl            # the committed data set, a few minutes
    python data_samples/make_cube_to_bowl.py --out /tmp/c --episodes 2 --no-render      # numbers only, no OpenGL, seconds

What happens in an episode: MuJoCo simulates an arm of our own design at a table with two cubes and a bowl at random places. A
scripted expert plans a path of the gripper (minimum-jerk pieces between way points, with the small irregularities of a person),
inverse kinematics turns it into joint targets at 20 Hz, and position servos follow them. The grasp is held by friction alone. An
episode is kept if the cube named by the task ends up in the bowl, otherwise the next draw is tried. Both cubes always lie on the
table, so only the language says which one to take.

The output is a LeRobot v2.1 data set with the `meta/modality.json` that GR00T expects. One seed gives one data set: parquet files
repeat byte for byte on one machine; pixels depend on the OpenGL driver. Needs mujoco, torchcodec, pyarrow, Pillow and tqdm.
"""
import argparse, io, json, os, shutil, sys, tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault(
    "MUJOCO_GL", "disable" if "--no-render" in sys.argv else "egl"
)  # off-screen, without a display or a GPU; read when mujoco is imported

import mujoco
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

FPS, HEIGHT, WIDTH = 20, 240, 320
CAMERAS = ("front", "wrist")
COLOURS = ("red", "blue")
TASKS = tuple(f"put the {colour} cube in the bowl" for colour in COLOURS)
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "forearm_roll", "wrist_flex", "wrist_roll")
OPENING = 0.030                        # metres one finger travels: the jaws open to 60 mm
CUBE = 0.020                           # half the edge of a cube, metres
BOWL_RADIUS, BOWL_HEIGHT = 0.062, 0.044
CUBE_AREA = ((0.20, 0.35), (-0.075, 0.125))       # x and y of cube centres on the table, metres
BOWL_AREA = ((0.23, 0.28), (-0.23, -0.20))
TIMESTEP = 0.0025
HOME = np.array(
    [0.0, -0.35, 0.25, 0.0, 0.10, 0.0]
)  # joint angles, radians; all zero: upper arm up, forearm level, gripper down


# -------------------------------------------------------------------------------------------------------------- orientations
def quaternion(*turns):
    "The product of rotations, each (axis, radians): quaternion (4,), w first."
    result = np.array([1.0, 0.0, 0.0, 0.0])
    for axis, radians in turns:
        one = np.zeros(4)
        mujoco.mju_axisAngle2Quat(one, np.asarray(axis, float), radians)
        mujoco.mju_mulQuat(result, result.copy(), one)
    return result


def turn_between(a, b):
    "The rotation vector (3,), in world axes, that turns orientation `a` into `b`."
    inverse, both, vector = np.zeros(4), np.zeros(4), np.zeros(3)
    mujoco.mju_negQuat(inverse, a)
    mujoco.mju_mulQuat(both, b, inverse)
    mujoco.mju_quat2Vel(vector, both, 1.0)
    return vector


def part_way(a, b, s):
    "The orientation at fraction `s` of the shortest turn from `a` to `b`."
    vector, turn, result = turn_between(a, b), np.zeros(4), np.zeros(4)
    angle = np.linalg.norm(vector)
    mujoco.mju_axisAngle2Quat(
        turn, vector / angle if angle else np.array([0.0, 0.0, 1.0]), s * angle
    )
    mujoco.mju_mulQuat(result, turn, a)
    return result


# ---------------------------------------------------------------------------------------------------------------- the scene
def wood(size=256):
    "PNG bytes of a quiet plank texture: enough to judge distances by, smooth enough to compress well."
    from PIL import Image
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    plank = np.floor(y * 4).astype(int)
    tone = np.array([0.0, 0.5, -0.4, 0.25])[plank] * 0.06
    grain = (
        sum(
            np.sin(
                2 * np.pi * (f * y + rng.uniform()) + 1.2 * np.sin(2 * np.pi * (x + rng.uniform()))
            )
            for f in (9, 14, 23)
        )
        * 0.008
    )
    seam = -0.14 * (np.abs((y * 4) % 1 - 0.5) > 0.485)
    image = np.clip(np.array([0.70, 0.63, 0.54]) * (1 + (tone + grain + seam)[..., None]), 0, 1)
    file = io.BytesIO()
    Image.fromarray((image * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def bowl_mesh(segments=48):
    "MJCF vertices and faces of the bowl, a thick profile turned about z."
    t = np.linspace(0, np.pi / 2, 7)
    inner = np.stack(
        [BOWL_RADIUS * np.sin(t) ** 0.8, 0.005 + (BOWL_HEIGHT - 0.005) * (1 - np.cos(t)) ** 1.1], 1
    )
    outer = np.stack([inner[::-1, 0] + 0.005, np.maximum(inner[::-1, 1] - 0.005, 0)], 1)
    outer[0, 1], outer[-1] = BOWL_HEIGHT, (0, 0)
    profile = np.concatenate([inner, outer])
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    vertex = np.stack(
        [
            profile[:, :1] * np.cos(angle),
            profile[:, :1] * np.sin(angle),
            profile[:, 1:] + 0 * angle,
        ],
        -1,
    )  # (P, S, 3)
    n = len(profile)
    a = np.arange(n * segments).reshape(n, segments)
    b, c, d = np.roll(a, -1, 1)[:-1], a[1:], np.roll(a, -1, 1)[1:]
    a = a[:-1]
    face = np.concatenate(
        [np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)]
    )
    points = vertex.reshape(-1, 3)
    p, q, r = (points[face[:, i]] for i in range(3))
    face = face[
        np.linalg.norm(np.cross(q - p, r - p), axis=1) > 1e-10
    ]  # the profile starts and ends on the axis: drop flat triangles
    return " ".join(f"{v:.5f}" for v in points.ravel()), " ".join(map(str, face.ravel()))


def bowl_walls(segments=20):
    "MJCF boxes that stand for the bowl in collisions: MuJoCo would take the convex hull of the mesh and close the bowl."
    bottom, top, height = 0.038, BOWL_RADIUS + 0.002, BOWL_HEIGHT
    tilt, mid = np.degrees(np.arctan2(top - bottom, height)), (top + bottom) / 2
    half = np.hypot(height, top - bottom) / 2
    boxes = []
    for k in range(segments):
        angle = 360 * k / segments
        x, y = mid * np.cos(np.radians(angle)), mid * np.sin(np.radians(angle))
        width = np.pi * top / segments * 1.05
        boxes.append(
            f'<geom class="hidden" type="box" size="0.003 {width:.5f} {half:.5f}" pos="{x:.5f}'
            f' {y:.5f} {height / 2:.5f}" euler="0 {tilt:.3f} {angle:.3f}"/>'
        )
    return "".join(boxes)


def look_at(position, target):
    "MJCF `pos` and `xyaxes` of a camera (it looks along its own -z)."
    position, target = np.array(position, float), np.array(target, float)
    z = (position - target) / np.linalg.norm(position - target)
    x = np.cross([0, 0, 1], z)
    x /= np.linalg.norm(x)
    return (
        f'pos="{position[0]} {position[1]} {position[2]}"'
        f' xyaxes="{" ".join(f"{v:.5f}" for v in (*x, *np.cross(z, x)))}"'
    )


def scene():
    "MJCF of the arm, the table, two cubes and the bowl. Table top at z = 0, base of the arm at the origin, +x away from it."
    vertex, face = bowl_mesh()
    cubes = "".join(f'''
    <body name="{name}" pos="0.3 {y} {CUBE}"><freejoint/>
      <geom type="box" size="{CUBE} {CUBE} {CUBE}" material="{name}" mass="0.04" friction="1.0 0.01 0.001" condim="4"/>
    </body>''' for name, y in zip(COLOURS, (-0.05, 0.05)))
    fingers = "".join(f'''
              <body name="finger_{side}" pos="0 {sign * 0.009} -0.075">
                <joint name="finger_{side}" type="slide" axis="0 {sign} 0" range="-0.002 {OPENING + 0.002}" damping="8" armature="0.05"/>
                <geom type="box" size="0.011 0.006 0.034" pos="0 0 -0.028" material="graphite" mass="0.02" contype="0" conaffinity="0"/>
                <geom type="box" size="0.010 0.003 0.019" pos="0 {-sign * 0.006} -0.049" material="pad" mass="0.01"
                      friction="2.0 0.03 0.001" condim="4" solref="0.01 1"/>
                <geom class="hidden" type="box" size="0.011 0.006 0.034" pos="0 0 -0.028" mass="0.001"/>
              </body>''' for side, sign in (("left", 1), ("right", -1)))
    servos = "".join(
        f'<position name="{joint}" joint="{joint}" kp="{kp}" kv="{kv}" forcerange="-{force}'
        f' {force}"/>'
        for joint, kp, kv, force in zip(
            JOINTS, (90, 110, 90, 30, 30, 15), (9, 11, 9, 3, 3, 1.2), (30, 40, 30, 12, 12, 8)
        )
    )
    return f'''
<mujoco model="cube_to_bowl">
  <compiler angle="degree" autolimits="true" eulerseq="XYZ"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10" noslip_iterations="4"/>
  <visual>
    <global offwidth="{WIDTH}" offheight="{HEIGHT}"/>
    <quality shadowsize="1024" offsamples="4"/>
    <headlight ambient="0.38 0.38 0.40" diffuse="0.28 0.28 0.28" specular="0.05 0.05 0.05"/>
    <map znear="0.02" zfar="20" shadowclip="1"/>
  </visual>
  <statistic center="0.2 -0.05 0.1" extent="0.6"/>
  <default>
    <default class="hidden"><geom group="4" rgba="0 0 0 0"/></default>
    <default class="look"><geom contype="0" conaffinity="0"/></default>
    <default class="arm"><joint damping="0.6" armature="0.08"/></default>
  </default>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.86 0.89 0.92" rgb2="0.62 0.67 0.73" width="64" height="384"/>
    <texture name="wood" type="2d" file="wood.png"/>
    <material name="wood" texture="wood" texrepeat="2 2" specular="0.1" shininess="0.2"/>
    <material name="floor" rgba="0.46 0.50 0.55 1" specular="0"/>
    <material name="mat" rgba="0.30 0.36 0.38 1" specular="0.05"/>
    <material name="shell" rgba="0.93 0.93 0.91 1" specular="0.3" shininess="0.4"/>
    <material name="graphite" rgba="0.17 0.18 0.20 1" specular="0.3" shininess="0.3"/>
    <material name="pad" rgba="0.36 0.80 0.62 1" specular="0.1"/>
    <material name="red" rgba="0.86 0.13 0.12 1" specular="0.2" shininess="0.3"/>
    <material name="blue" rgba="0.10 0.33 0.88 1" specular="0.2" shininess="0.3"/>
    <material name="bowl" rgba="0.98 0.78 0.24 1" specular="0.3" shininess="0.5"/>
    <mesh name="bowl" vertex="{vertex}" face="{face}"/>
  </asset>
  <worldbody>
    <light pos="0.6 0.6 1.6" dir="-0.3 -0.42 -1" directional="true" castshadow="true" diffuse="0.62 0.61 0.58" specular="0.2 0.2 0.2"/>
    <light pos="0.9 -0.8 1.2" dir="-0.5 0.5 -1" directional="true" castshadow="false" diffuse="0.16 0.17 0.20" specular="0 0 0"/>
    <camera name="front" {look_at((0.76, -0.07, 0.56), (0.215, -0.046, 0.075))} fovy="36"/>
    <geom name="floor" type="plane" size="4 4 0.1" pos="0 0 -0.6" material="floor"/>
    <geom name="table" type="box" size="0.40 0.52 0.02" pos="0.18 -0.05 -0.02" material="wood" friction="0.8 0.01 0.001"/>
    <geom class="look" type="box" size="0.118 0.235 0.0006" pos="0.272 -0.062 0.0002" material="mat"/>
    <geom class="look" type="cylinder" size="0.058 0.016" pos="0 0 0.016" material="graphite"/>
    <geom type="cylinder" size="0.046 0.034" pos="0 0 0.034" material="shell"/>
    <body name="shoulder" pos="0 0 0.068" childclass="arm" gravcomp="1">
      <joint name="shoulder_pan" axis="0 0 1" range="-100 100"/>
      <geom class="look" type="cylinder" size="0.044 0.012" pos="0 0 0.012" material="graphite" mass="0.3"/>
      <geom class="look" type="box" size="0.026 0.008 0.030" pos="0 0.036 0.040" material="shell" mass="0.1"/>
      <geom class="look" type="box" size="0.026 0.008 0.030" pos="0 -0.036 0.040" material="shell" mass="0.1"/>
      <body name="upper_arm" pos="0 0 0.052" gravcomp="1">
        <joint name="shoulder_lift" axis="0 1 0" range="-100 100"/>
        <geom class="look" type="cylinder" size="0.026 0.028" euler="90 0 0" material="graphite" mass="0.2"/>
        <geom class="look" type="capsule" size="0.021" fromto="0 0 0.02 0 0 0.20" material="shell" mass="0.3"/>
        <body name="forearm" pos="0 0 0.22" gravcomp="1">
          <joint name="elbow_flex" axis="0 1 0" range="-110 110"/>
          <geom class="look" type="cylinder" size="0.025 0.030" euler="90 0 0" material="graphite" mass="0.15"/>
          <geom class="look" type="capsule" size="0.018" fromto="0.02 0 0 0.085 0 0" material="shell" mass="0.12"/>
          <body name="forearm_tube" pos="0.10 0 0" gravcomp="1">
            <joint name="forearm_roll" axis="1 0 0" range="-120 120"/>
            <geom class="look" type="cylinder" size="0.021 0.010" euler="0 90 0" material="graphite" mass="0.08"/>
            <geom class="look" type="capsule" size="0.016" fromto="0.01 0 0 0.11 0 0" material="shell" mass="0.10"/>
            <body name="wrist" pos="0.12 0 0" gravcomp="1">
              <joint name="wrist_flex" axis="0 1 0" range="-110 110"/>
              <geom class="look" type="cylinder" size="0.020 0.024" euler="90 0 0" material="graphite" mass="0.08"/>
              <body name="hand" pos="0 0 -0.015" gravcomp="1">
              <joint name="wrist_roll" axis="0 0 1" range="-150 150"/>
              <geom class="look" type="cylinder" size="0.017 0.014" pos="0 0 -0.020" material="shell" mass="0.06"/>
              <geom class="look" type="box" size="0.020 0.046 0.013" pos="0 0 -0.047" material="shell" mass="0.08"/>
              <geom class="look" type="box" size="0.016 0.044 0.006" pos="0 0 -0.064" material="graphite" mass="0.02"/>
              <geom class="look" type="box" size="0.012 0.012 0.009" pos="0.045 0 -0.030" material="graphite" mass="0.01"/>
              <geom class="look" type="box" size="0.020 0.005 0.004" pos="0.028 0 -0.034" material="graphite" mass="0.01"/>
              <camera name="wrist" pos="0.060 0 -0.038" xyaxes="0 1 0 -0.920 0 0.392" fovy="72"/>
              <site name="grip" pos="0 0 -0.125" group="4"/>{fingers}
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
    <body name="bowl" pos="0.25 -0.23 0">
      <geom class="look" type="mesh" mesh="bowl" material="bowl"/>
      <geom class="hidden" type="cylinder" size="0.042 0.0025" pos="0 0 0.0025"/>
      {bowl_walls()}
    </body>{cubes}
  </worldbody>
  <equality><joint joint1="finger_left" joint2="finger_right" polycoef="0 1 0 0 0" solref="0.005 1"/></equality>
  <contact><exclude body1="finger_left" body2="finger_right"/></contact>
  <actuator>{servos}
    <position name="gripper" joint="finger_left" kp="700" kv="40" forcerange="-14 14" ctrlrange="0 {OPENING}"/>
  </actuator>
</mujoco>'''


# ------------------------------------------------------------------------------------------------------------ the simulator
class Simulator:
    "The scene as a robot sees it: `reset` draws a situation, `state` reads the sensors, `act` holds one command for one step of 50 ms."

    def __init__(self):
        self.model = mujoco.MjModel.from_xml_string(scene(), {"wood.png": wood()})
        self.data = mujoco.MjData(self.model)
        self.scratch = mujoco.MjData(self.model)      # inverse kinematics works here, away from the physics
        self.renderer = None
        self.arm = np.array([self.model.joint(name).qposadr[0] for name in JOINTS])
        self.arm_dof = np.array([self.model.joint(name).dofadr[0] for name in JOINTS])
        self.fingers = np.array(
            [self.model.joint(f"finger_{side}").qposadr[0] for side in ("left", "right")]
        )
        self.limits = np.array([self.model.joint(name).range for name in JOINTS])

    def reset(self, rng):
        "Draws places of cubes and bowl, and the start pose; lets everything come to rest."
        mujoco.mj_resetData(self.model, self.data)
        bowl = np.array([rng.uniform(*BOWL_AREA[0]), rng.uniform(*BOWL_AREA[1])])
        while True:
            places = np.stack([rng.uniform(*CUBE_AREA[0], 2), rng.uniform(*CUBE_AREA[1], 2)], 1)      # (2 cubes, xy)
            if (
                np.linalg.norm(places[0] - places[1]) > 0.085
                and np.linalg.norm(places - bowl, axis=1).min() > 0.135
            ):
                break
        self.model.body("bowl").pos[:2] = bowl
        for name, place in zip(COLOURS, places):
            yaw = np.radians(rng.uniform(-20, 20))
            start = self.model.joint(self.model.body(name).jntadr[0]).qposadr[0]
            self.data.qpos[start:start + 7] = (*place, CUBE, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
        pose = HOME + rng.normal(0, [0.12, 0.06, 0.06, 0.06, 0.06, 0.10])
        opening = rng.uniform(0.7, 1.0)
        self.data.qpos[self.arm], self.data.qpos[self.fingers] = pose, opening * OPENING
        self.data.ctrl[:] = (*pose, opening * OPENING)
        mujoco.mj_step(self.model, self.data, nstep=round(0.3 / TIMESTEP))

    def state(self):
        "Six joint angles in radians and the opening of the gripper, 0 closed to 1 open: float32 (7,)."
        opening = self.data.qpos[self.fingers].mean() / OPENING
        return np.array([*self.data.qpos[self.arm], np.clip(opening, 0, 1)], np.float32)

    def act(self, action):
        "Holds the targets `action` (7,), in the units of `state`, for one step."
        self.data.ctrl[:6], self.data.ctrl[6] = action[:6], action[6] * OPENING
        mujoco.mj_step(self.model, self.data, nstep=round(1 / FPS / TIMESTEP))

    def render(self, camera):
        "uint8 (240, 320, 3)."
        if self.renderer is None:
            self.renderer = mujoco.Renderer(self.model, HEIGHT, WIDTH)
        self.renderer.update_scene(self.data, camera)
        return self.renderer.render()

    def in_bowl(self, colour):
        "Whether that cube lies at rest inside the bowl."
        body, bowl = self.data.body(colour), self.model.body("bowl").pos
        offset = body.xpos - bowl
        return bool(
            np.hypot(*offset[:2]) < BOWL_RADIUS - 0.015
            and offset[2] < BOWL_HEIGHT
            and np.linalg.norm(body.cvel) < 0.2
        )

    def grip_pose(self, joints):
        "Position (3,) and orientation quaternion (4,) of the point between the finger tips for given joint angles."
        self.scratch.qpos[self.arm] = joints
        mujoco.mj_kinematics(self.model, self.scratch)
        mujoco.mj_comPos(self.model, self.scratch)
        site, orientation = self.scratch.site("grip"), np.zeros(4)
        mujoco.mju_mat2Quat(orientation, site.xmat)
        return site.xpos.copy(), orientation

    def inverse(self, position, orientation, joints):
        "Joint angles that bring the gripper to a pose: damped least squares on the jacobian, started from `joints`."
        jacobian, joints = np.zeros((6, self.model.nv)), joints.copy()
        for _ in range(100):
            at, turned = self.grip_pose(joints)
            error = np.concatenate([position - at, turn_between(turned, orientation)])
            if np.abs(error).max() < 1e-4:
                break
            mujoco.mj_jacSite(
                self.model, self.scratch, jacobian[:3], jacobian[3:], self.model.site("grip").id
            )
            J = jacobian[:, self.arm_dof]
            step = J.T @ np.linalg.solve(J @ J.T + 1e-5 * np.eye(6), error)
            joints = np.clip(
                joints + np.clip(step, -0.2, 0.2), self.limits[:, 0], self.limits[:, 1]
            )
        return joints


# --------------------------------------------------------------------------------------------------------------- the expert
@dataclass
class Reach:
    "One piece of the path: where the gripper goes, how fast, and how far the jaws are open at the end."
    position: np.ndarray      # (3,) metres
    orientation: np.ndarray   # (4,) quaternion
    opening: float            # 0 closed to 1 open
    seconds: float


def minimum_jerk(count):
    "Fraction of the way at steps 1..count of a movement that starts and ends at rest (Flash and Hogan, 1985)."
    t = np.arange(1, count + 1) / count
    return 10 * t**3 - 15 * t**4 + 6 * t**5


def reaches(sim, colour, rng):
    "The way points of picking up that cube and dropping it into the bowl, with a person's spread in place, height and pace."
    cube, bowl = sim.data.body(colour), sim.model.body("bowl").pos
    pace = rng.uniform(0.78, 1.06)

    def near(point, spread):
        return np.asarray(point) + rng.normal(0, spread, 3)

    def seconds(low, high):
        return rng.uniform(low, high) * pace

    def down(yaw, lean=0.0):      # the gripper points down, turned about the vertical, and leans to its own side
        return quaternion(([0, 0, 1], yaw), ([1, 0, 0], lean + rng.normal(0, 0.02)))

    azimuth = np.arctan2(cube.xpos[1], cube.xpos[0])
    yaw = np.arctan2(cube.xmat[3], cube.xmat[0])
    yaw += (
        np.round((azimuth - yaw) / (np.pi / 2)) * np.pi / 2
    )  # of the cube's four sides take the pair that the arm reaches with least twist
    yaw += rng.normal(0, 0.03)
    bowl_yaw = np.arctan2(bowl[1], bowl[0]) * 0.8 + rng.normal(0, 0.05)
    x, y, z = cube.xpos
    wide = rng.uniform(0.85, 1.0)
    above = near([x, y, rng.uniform(0.085, 0.11)], 0.004)
    grasp = near([x, y, z - 0.002], [0.0015, 0.0015, 0.0015])
    lift = near([x, y, rng.uniform(0.10, 0.13)], 0.005)
    over = near([bowl[0], bowl[1], rng.uniform(0.105, 0.13)], 0.006)
    drop = near([bowl[0], bowl[1], rng.uniform(0.068, 0.080)], 0.004)
    away = near([bowl[0] - 0.03, bowl[1] + 0.06, rng.uniform(0.15, 0.18)], 0.010)
    at_cube, at_bowl = down(yaw), down(bowl_yaw, rng.uniform(0.15, 0.30))
    return [
        Reach(above, down(yaw, 0.8 * (y - 0.02)), wide, seconds(1.0, 1.3)),
        Reach(grasp, at_cube, wide, seconds(0.55, 0.75)),
        Reach(grasp, at_cube, 0.0, seconds(0.35, 0.50)),
        Reach(lift, down(yaw), 0.0, seconds(0.50, 0.65)),
        Reach(over, at_bowl, 0.0, seconds(0.95, 1.25)),
        Reach(drop, at_bowl, 0.0, seconds(0.30, 0.45)),
        Reach(drop, at_bowl, wide, seconds(0.25, 0.40)),
        Reach(away, down(bowl_yaw * 0.6), wide, seconds(0.50, 0.70)),
    ]


def plan(sim, colour, rng):
    "Joint and gripper targets of a whole episode: float32 (L, 7). The expert looks once, at the start, and does not correct itself."
    joints, opening = sim.data.ctrl[:6].copy(), sim.data.ctrl[6] / OPENING
    position, orientation = sim.grip_pose(joints)
    actions = []
    hesitate = set(rng.choice(8, size=2, replace=False))      # two of the eight reaches begin with a short pause
    for k, reach in enumerate(reaches(sim, colour, rng)):
        for _ in range(int(rng.integers(1, 4)) if k in hesitate else 0):
            actions.append((*joints, opening))
        way = reach.position - position
        bend = rng.normal(0, 0.06) * np.cross(way, [0, 0, 1]) + rng.normal(
            0, 0.04
        ) * np.linalg.norm(way[:2]) * np.array([0, 0, 1])
        for s in minimum_jerk(max(4, round(reach.seconds * FPS))):
            joints = sim.inverse(
                position + s * way + 16 * (s * (1 - s)) ** 2 * bend,
                part_way(orientation, reach.orientation, s),
                joints,
            )
            actions.append((*joints, opening + s * (reach.opening - opening)))
        position, orientation, opening = reach.position, reach.orientation, reach.opening
    actions += [actions[-1]] * 2                              # a person lets go of the recording a moment after the end
    return np.clip(np.array(actions), [-4] * 6 + [0], [4] * 6 + [1]).astype(np.float32)


def record(sim, task, rng, cameras=CAMERAS):
    "One try at one episode: states (L, 7), actions (L, 7), frames {camera: uint8 (L, 240, 320, 3)}, and whether the cube is in the bowl."
    sim.reset(rng)
    actions = plan(sim, COLOURS[task], rng)
    states, frames = [], {camera: [] for camera in cameras}
    for action in actions:
        states.append(sim.state())
        for camera in cameras:
            frames[camera].append(sim.render(camera))
        sim.act(action)
    success = sim.in_bowl(COLOURS[task]) and not sim.in_bowl(COLOURS[1 - task])
    return np.stack(states), actions, {camera: np.stack(x) for camera, x in frames.items()}, success


def record_success(sim, seed, episode, cameras=CAMERAS):
    "The first try of this episode that succeeds. Physics alone decides which one that is, so only that one is rendered."
    for attempt in range(100):
        *_, success = record(
            sim, episode % 2, np.random.default_rng([seed, episode, attempt]), cameras=()
        )
        if success:
            return record(
                sim, episode % 2, np.random.default_rng([seed, episode, attempt]), cameras
            )
    raise RuntimeError(
        f"Episode {episode} of seed {seed} failed 100 times: the scene or the expert was changed"
        " and no longer works."
    )


# ----------------------------------------------------------------------------------------------- LeRobot v2.1 on disk
SCALARS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def features(cameras):
    "The `features` of meta/info.json: everything a row of an episode has."
    vector = {"dtype": "float32", "shape": [7], "names": [*JOINTS, "gripper"]}
    video = {
        "dtype": "video",
        "shape": [HEIGHT, WIDTH, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": HEIGHT,
            "video.width": WIDTH,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": FPS,
            "video.channels": 3,
            "has_audio": False,
        },
    }
    return {
        "observation.state": vector,
        "action": vector,
        **{f"observation.images.{camera}": video for camera in cameras},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in SCALARS.items()},
    }


def write_parquet(path, columns):
    "One episode. The schema is lerobot's: lists of fixed size, and the metadata by which Hugging Face `datasets` knows the types."
    arrays, types = {}, {}
    for name, x in columns.items():
        flat = pa.array(x.ravel())
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, x.shape[1]) if x.ndim == 2 else flat
        value = {"dtype": str(x.dtype), "_type": "Value"}
        types[name] = (
            {"feature": value, "length": x.shape[1], "_type": "Sequence"} if x.ndim == 2 else value
        )
    metadata = {"huggingface": json.dumps({"info": {"features": types}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), path)


def write_video(path, frames, crf):
    "H.264 with a key frame every half second and no B frames, so that random access is cheap; one thread, so that bytes repeat."
    import torch
    from torchcodec.encoders import VideoEncoder
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = VideoEncoder(
        torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), frame_rate=FPS
    )
    encoder.to_file(str(path), codec="libx264", pixel_format="yuv420p", crf=crf, preset="slow",
                    extra_options={"g": "10", "bf": "0", "threads": "1"})


def statistics(x, axis):
    "Minimum, maximum, mean, standard deviation and count in lerobot's form."
    keep = x.ndim != 2
    return {
        "min": x.min(axis, keepdims=keep),
        "max": x.max(axis, keepdims=keep),
        "mean": x.mean(axis, keepdims=keep),
        "std": x.std(axis, keepdims=keep),
    }


def episode_statistics(columns, frames):
    "One line of meta/episodes_stats.jsonl. Images: per channel in [0, 1], of every tenth frame, shaped (3, 1, 1)."
    stats = {
        name: {**statistics(x.astype(np.float64), 0), "count": np.array([len(x)])}
        for name, x in columns.items()
    }
    for camera, x in frames.items():
        sample = x[::10].transpose(0, 3, 1, 2) / 255.0
        stats[f"observation.images.{camera}"] = {
            **{k: v[0] for k, v in statistics(sample, (0, 2, 3)).items()},
            "count": np.array([len(sample)]),
        }
    return {name: {k: v.tolist() for k, v in s.items()} for name, s in stats.items()}


def modality(cameras):
    "meta/modality.json: which part of the vectors is what, and where video and language lie (GR00T's addition to LeRobot)."
    groups = {"single_arm": {"start": 0, "end": 6}, "gripper": {"start": 6, "end": 7}}
    return {
        "state": groups,
        "action": groups,
        "video": {c: {"original_key": f"observation.images.{c}"} for c in cameras},
        "annotation": {"human.task_description": {"original_key": "task_index"}},
    }


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(out, episodes=40, seed=0, render=True, crf=29):
    "Writes the data set into the new folder `out`; nothing is left there if anything goes wrong on the way."
    out, cameras = Path(out), CAMERAS if render else ()
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        work.chmod(0o755)
        sim, total, listing, stats = Simulator(), 0, [], []
        for episode in tqdm(range(episodes), desc="episodes", disable=None):
            states, actions, frames, _ = record_success(sim, seed, episode, cameras)
            steps, task = np.arange(len(states)), episode % 2
            columns = {
                "observation.state": states,
                "action": actions,
                "timestamp": (steps / FPS).astype(np.float32),
                "frame_index": steps,
                "episode_index": np.full(len(steps), episode),
                "index": total + steps,
                "task_index": np.full(len(steps), task),
            }
            write_parquet(work / f"data/chunk-000/episode_{episode:06d}.parquet", columns)
            for camera, x in frames.items():
                write_video(
                    work
                    / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4",
                    x,
                    crf,
                )
            listing.append({"episode_index": episode, "tasks": [TASKS[task]], "length": len(steps)})
            stats.append({"episode_index": episode, "stats": episode_statistics(columns, frames)})
            total += len(steps)
        meta = work / "meta"
        meta.mkdir()
        info = {
            "codebase_version": "v2.1",
            "robot_type": "six_joint_arm",
            "total_episodes": episodes,
            "total_frames": total,
            "total_tasks": len(TASKS),
            "total_videos": episodes * len(cameras),
            "total_chunks": 1,
            "chunks_size": 1000,
            "fps": FPS,
            "splits": {"train": f"0:{episodes}"},
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": (
                "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
                if cameras
                else None
            ),
            "features": features(cameras),
        }
        (meta / "info.json").write_text(json.dumps(info, indent=2) + "\n")
        (meta / "modality.json").write_text(json.dumps(modality(cameras), indent=2) + "\n")
        write_lines(meta / "episodes.jsonl", listing)
        write_lines(
            meta / "tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
        )
        write_lines(meta / "episodes_stats.jsonl", stats)
        if out.exists():
            shutil.rmtree(out)
        os.rename(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--crf", type=int, default=29, help="H.264 quality, lower is better and larger"
    )
    parser.add_argument(
        "--no-render",
        action="store_true",
        help="physics, parquet and meta only: no OpenGL, no videos",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    args = parser.parse_args()
    if args.episodes < 1:
        parser.error(f"--episodes {args.episodes}: a data set needs at least one episode")
    if args.out.exists() and not args.overwrite:
        parser.error(f"{args.out} exists already; give another --out, or --overwrite to replace it")
    make(args.out, args.episodes, args.seed, not args.no_render, args.crf)


if __name__ == "__main__":
    main()
