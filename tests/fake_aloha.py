"""An ALOHA without metal, a process of its own: three cameras and two arms on the topics of `ALOHA_ROS`, 30 Hz.

The arms follow what is commanded. Each line on stdin is a wish: `silence f` ends the pictures of a
camera (f, l or r), `speak f` begins them again. On stdout it says `ready`, then a line of JSON for
every command: [topic, names, position]. It ends with its stdin.
"""
import json
import sys
import threading

import numpy as np

from gr00t_nb.ros.ros1 import ros1_modules

HEIGHT, WIDTH, RATE = 480, 640, 30
GREY = dict(f=60, l=120, r=180)  # each camera has its own shade, and a column that moves


def picture(Image, rospy, camera: str, step: int):
    pixels = np.full((HEIGHT, WIDTH, 3), GREY[camera], np.uint8)
    pixels[:, step * 4 % WIDTH] = 255
    message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=WIDTH * 3, data=pixels.tobytes())
    message.header.stamp = rospy.Time.now()
    return message


def main():
    ros = ros1_modules()
    rospy, Image, Joints = ros.rospy, *map(ros.message_class, ("sensor_msgs/Image", "sensor_msgs/JointState"))
    rospy.init_node("fake_aloha", disable_signals=True)
    at, silent, ended = {s: np.zeros(7) for s in ("left", "right")}, set(), threading.Event()
    turn = threading.Lock()  # each topic has a thread of its own

    def commanded(message, side):
        at[side] = np.array(message.position)
        line = json.dumps([f"/master/joint_{side}", message.name, list(message.position)])
        with turn: print(line, flush=True)

    def listen():
        for line in sys.stdin:
            wish, camera = line.split()
            (silent.add if wish == "silence" else silent.discard)(camera)
        ended.set()

    for side in at: rospy.Subscriber(f"/master/joint_{side}", Joints, commanded, side, tcp_nodelay=True)
    make = lambda topic, kind: rospy.Publisher(topic, kind, queue_size=2, tcp_nodelay=True)
    cameras = {c: make(f"/camera_{c}/color/image_raw", Image) for c in GREY}
    arms = {side: make(f"/puppet/joint_{side}", Joints) for side in at}
    threading.Thread(target=listen, daemon=True).start()
    print("ready", flush=True)
    step, rate = 0, rospy.Rate(RATE)
    while not ended.is_set():
        for camera, out in cameras.items():
            if camera not in silent: out.publish(picture(Image, rospy, camera, step))
        for side, out in arms.items():
            message = Joints(name=[f"joint{i}" for i in range(7)], position=at[side].tolist())
            message.header.stamp = rospy.Time.now()
            out.publish(message)
        step += 1
        rate.sleep()


if __name__ == "__main__": main()
