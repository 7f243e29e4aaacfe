"""What a user sees: JupyterLab in a real browser, where notebooks are run, sliders moved and pictures
looked at.

One JupyterLab serves all tests: on a free port of this machine, with a token, in a copy of the
notebooks and the sample data, and with settings, cache and runtime files of its own. Two tutorials
are run whole; the other viewers stand in notebooks of a cell, because tests/notebooks.py runs
theirs. Screenshots go to outputs/screenshots/.
Without Chromium or Playwright the tests are skipped; with GR00T_NB_BROWSER=required, as CI sets it,
they fail instead.
"""
import json
import os
import re
import runpy
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from preloaded import free_port
from test_tutorials import edited

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "outputs" / "screenshots"
WINDOW = dict(width=1280, height=900)  # a small laptop
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
# Errors in the browser's console that are none of a notebook's, each with its reason. Empty is best.
BENIGN: list[str] = []


def missing(what: str):
    if os.environ.get("GR00T_NB_BROWSER") == "required": pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright is not installed: pip install -c constraints.txt playwright")
    if not CHROMIUM:
        missing("there is no Chromium on this machine: sudo apt-get install -y chromium")
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()


# ---------------------------------------------------------------- JupyterLab
class Lab:
    "A running JupyterLab, and a window that looks at it."

    def __init__(self, url: str, kit: Path, settings: Path):
        self.url, self.kit, self.settings = url, kit, settings

    def set(self, plugin: str, **values):
        "A setting of JupyterLab's, as its settings editor stores it."
        package, name = plugin.split(":")
        file = self.settings / package / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))


def copy_of_the_kit(home: Path) -> Path:
    "The folders that notebooks need, so that running them changes nothing here."
    kit = home / "kit"
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "data_samples", "gr00t_nb", "scripts", "docs"):
        shutil.copytree(ROOT / name, kit / name, ignore=skip)
    shutil.copy(ROOT / "settings.ini", kit)
    return kit


def environment(home: Path, kit: Path, token: str) -> dict[str, str]:
    "Folders of its own for all that JupyterLab writes."
    own = {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}
    return own | dict(
        JUPYTERLAB_SETTINGS_DIR=str(home / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces"),
        IPYTHONDIR=str(home / "ipython"),
        GR00T_NB_CACHE=str(home / "cache"),
        JUPYTER_TOKEN=token,
        PYTHONPATH=str(kit),
        IN_TEST="1",
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        WANDB_MODE="disabled",
    )


def wait_for_server(server: subprocess.Popen, url: str, log: Path):
    "Until it answers; its log where it does not."
    for _ in range(1500):
        if server.poll() is not None:
            raise RuntimeError("JupyterLab ended: " + log.read_text()[-2000:])
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError: time.sleep(0.2)
    raise RuntimeError("JupyterLab does not answer: " + log.read_text()[-2000:])


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    home = tmp_path_factory.mktemp("lab")
    kit, port, token = copy_of_the_kit(home), free_port(), secrets.token_hex(16)
    lab = Lab(f"http://127.0.0.1:{port}", kit, home / "settings")
    # it asks the network otherwise
    quiet = dict(fetchNews="false", checkForUpdates=False)
    lab.set("@jupyterlab/apputils-extension:notification", **quiet)
    # every cell is in the page, not only what is scrolled to
    lab.set("@jupyterlab/notebook-extension:tracker", windowingMode="none")
    options = f"""--no-browser --allow-root --ServerApp.ip=127.0.0.1 --ServerApp.port={port}
        --ServerApp.port_retries=0 --ServerApp.root_dir={kit} --LabApp.extension_manager=readonly"""
    command = [sys.executable, "-m", "jupyterlab", *options.split()]
    env = os.environ | environment(home, kit, token)
    with open(home / "log", "w") as log:
        streams = dict(stdout=log, stderr=subprocess.STDOUT)
        server = subprocess.Popen(command, cwd=kit, env=env, **streams)
        try:
            wait_for_server(server, f"{lab.url}/api?token={token}", home / "log")
            lab.context = browser.new_context(viewport=WINDOW)
            lab.context.request.get(f"{lab.url}/lab?token={token}")  # signs in by a cookie
            yield lab
            lab.context.close()
        finally:
            server.terminate()  # it ends its kernels, too
            try: server.wait(20)
            except subprocess.TimeoutExpired: server.kill()


DONE = """() => {
    const all = selector => [...document.querySelectorAll(selector)];
    const full = c => c.querySelector('.cm-content')?.textContent.trim();
    const cells = all('.jp-Notebook .jp-CodeCell').filter(full);
    const indicator = document.querySelector('.jp-Notebook-ExecutionIndicator');
    const errors = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]';
    const failed = all(errors).some(o => /^Traceback|Traceback \\(most/m.test(o.textContent));
    const ran = c => /\\[\\d+\\]/.test(c.querySelector('.jp-InputPrompt').textContent);
    return cells.length && indicator?.dataset.status === 'idle' && (failed || cells.every(ran));
}"""

WIDGET_FAULT = (
    "Error (displaying|creating|rendering)|Model not found|Failed to load model|Loading widget"
)


class Notebook:
    "A notebook that is open in JupyterLab, and what the browser complained of."

    def __init__(self, lab: Lab, path: str):
        self.lab, self.path, self.complaints = lab, path, []
        self.page = page = lab.context.new_page()
        page.on("console", self.hear)
        page.on("pageerror", lambda e: self.complaints.append(f"exception: {e}"))
        page.on("request", self.watch)
        page.goto(f"{lab.url}/lab/tree/{path}?reset")
        idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first
        idle.wait_for(timeout=60_000)
        page.locator(".jp-StatusBar-Widget", has_text="| Idle").wait_for(timeout=60_000)

    def hear(self, message):
        "Keeps what the console calls an error."
        if message.type != "error" or any(re.search(b, message.text) for b in BENIGN): return
        self.complaints.append(f"console: {message.text} ({message.location.get('url')})")

    def watch(self, request):
        "Keeps what is asked of other machines."
        if request.url.startswith("http") and not request.url.startswith(self.lab.url):
            self.complaints.append(f"asks {request.url}")

    def menu(self, *entries: str):
        "Clicks through the menu bar, as a user does."
        self.page.locator(
            "#jp-MainMenu .lm-MenuBar-item", has_text=re.compile(f"^{entries[0]}$")
        ).click()
        for entry in entries[1:]:
            self.page.locator(
                ".lm-Menu .lm-Menu-itemLabel", has_text=re.compile(f"^{entry}$")
            ).last.click()

    def run_all(self, seconds: float = 300):
        for _ in range(3):  # what is asked of a kernel that is just being connected is lost
            self.menu("Run", "Run All Cells")
            try:
                self.page.locator(
                    ".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")
                ).first.wait_for(timeout=4000)
                break
            except Exception:
                pass
        try:
            self.page.wait_for_function(DONE, timeout=seconds * 1000, polling=200)
        except Exception:
            self.shot(f"{Path(self.path).stem}-timeout")
            raise AssertionError(
                f"{self.path} was not through after {seconds} s, see {SHOTS}; {self.faults()}"
            ) from None
        try:
            self.page.wait_for_function(
                "() => !/Loading widget/.test(document.querySelector('.jp-Notebook').textContent)",
                timeout=20_000,
                polling=200,
            )
        except Exception:
            pass  # `faults` names it
        return self

    def outputs(self, mime: str):
        return self.page.locator(f'.jp-OutputArea-output[data-mime-type="{mime}"]')

    def faults(self) -> list[str]:
        "What is wrong on the page: error outputs, widgets that did not come up, complaints of the browser."
        errors = self.outputs("application/vnd.jupyter.stderr").all_inner_texts()
        # how JupyterLab shows an error
        wrong = [e[:2000] for e in errors if "Traceback (most recent call last)" in e]
        wrong += ["an empty red box" for e in errors if not e.strip()]
        texts = self.page.locator(".jp-OutputArea-output").all_inner_texts()
        return wrong + [t for t in texts if re.search(WIDGET_FAULT, t)] + self.complaints

    def shot(self, name: str, whole: bool = False):
        "A screenshot of the window; `whole`: of everything below it as well."
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")
        if whole:
            self.page.locator(".jp-WindowedPanel-outer, .jp-Notebook").first.screenshot(
                path=SHOTS / f"{name}-whole.png"
            )

    def theme(self, name: str):
        self.menu("Settings", "Theme", name)
        self.page.wait_for_function(
            "dark => document.body.dataset.jpThemeLight === (dark ? 'false' : 'true')",
            arg="Dark" in name,
        )
        self.page.wait_for_timeout(400)

    def viewer(self, contains: str, which: int = 0):
        "The widget of an output that has an element of this selector; of several the one by this number."
        output = self.page.locator(
            ".jp-OutputArea-output", has=self.page.locator(f".jupyter-widgets {contains}")
        ).nth(which)
        found = output.locator(".jupyter-widgets").first
        found.scroll_into_view_if_needed()
        return found

    def close(self):
        kernels = self.lab.context.request.get(f"{self.lab.url}/api/sessions").json()
        self.page.close()
        xsrf = next((c["value"] for c in self.lab.context.cookies() if c["name"] == "_xsrf"), "")
        for k in kernels:
            self.lab.context.request.delete(
                f"{self.lab.url}/api/sessions/{k['id']}", headers={"X-XSRFToken": xsrf}
            )


@pytest.fixture
def opened(lab):
    "Opens notebooks, and ends their kernels afterwards."
    notebooks = []
    def open_it(path: str) -> Notebook:
        notebooks.append(Notebook(lab, path))
        return notebooks[-1]
    yield open_it
    for n in notebooks: n.close()


# ---------------------------------------------------------------- what a viewer must be
# A picture that is shown while it is replaced has no pixels for a moment: waiting and reading happen
# in one call, between two of the page's own steps.
PIXELS = """async img => {
    for (const end = performance.now() + 10000; !(img.complete && img.naturalWidth);) {
        if (performance.now() > end) throw new Error('the picture has not loaded in 10 seconds');
        await new Promise(r => setTimeout(r, 20));
    }
    const c = document.createElement('canvas');
    c.width = img.naturalWidth;
    c.height = img.naturalHeight;
    const x = c.getContext('2d');
    x.drawImage(img, 0, 0);
    const data = x.getImageData(0, 0, c.width, c.height).data;
    return data.reduce((h, v) => (h * 31 + v) | 0, c.width);
}"""


def pixels(img) -> int:
    "A number that stands for the picture's pixels."
    return img.evaluate(PIXELS)


def wait_for_other(img, before: int, seconds: float = 30) -> int:
    "Waits until the picture is another one."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (now := pixels(img)) != before: return now
        img.page.wait_for_timeout(150)
    raise AssertionError("the picture did not change")


def settled(img, seconds: float = 30) -> int:
    "What the picture shows once it has been the same for 0.8 seconds: a dragged slider's last answer may come late."
    end, now = time.monotonic() + seconds, pixels(img)
    while time.monotonic() < end:
        img.page.wait_for_timeout(800)
        if (then := pixels(img)) == now: return now
        now = then
    raise AssertionError(f"the picture still changes after {seconds} s")


def wait_until(page, true, what: str, seconds: float = 20):
    "Waits until a condition holds: a viewer's parts are told of a change one after the other."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"after {seconds} s: not {what}"
        page.wait_for_timeout(50)


def drag(slider, to: float):
    "Drags a slider's handle to a part of its length, with the mouse."
    track = slider.locator(".noUi-base").bounding_box()
    handle = slider.locator(".noUi-handle").first.bounding_box()
    middle = handle["y"] + handle["height"] / 2
    mouse = slider.page.mouse
    mouse.move(handle["x"] + handle["width"] / 2, middle)
    mouse.down()
    mouse.move(track["x"] + track["width"] * to, middle, steps=8)
    mouse.up()


TOO_FAR = """w => {
    const place = w.closest('.jp-OutputArea-output').getBoundingClientRect();
    const end = Math.min(innerWidth, place.right) + 1;
    const box = e => e.getBoundingClientRect();
    const beyond = e => box(e).width && box(e).height && box(e).right > end;
    const name = e => `${e.tagName} ${e.getAttribute('class')}`;
    const at = e => Math.round(box(e).right);
    const said = e => `${name(e)}: ends at ${at(e)}, its place at ${Math.round(end)}`;
    return [w, ...w.querySelectorAll('*')].filter(beyond).map(said);
}"""


def fits(widget):
    "Nothing of the widget is cut off, and nothing must be scrolled sideways, in a window of 1280 pixels."
    far = widget.evaluate(TOO_FAR)
    assert not far, far[:5]


CONTRAST = """root => {
    const rgb = s => (s.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = c => {
        const [r, g, b] = c.map(linear);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = e => {
        for (; e; e = e.parentElement) {
            const c = rgb(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0.5) return c;
        }
        return [255, 255, 255];
    };
    const seen = {opacityProperty: true, visibilityProperty: true};
    const silent = /^(STYLE|SCRIPT|TITLE|OPTION)$/;
    const off = '[disabled], .jupyter-widgets-disconnected';
    const poor = [];
    const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
        if (!text || silent.test(e.tagName) || !e.checkVisibility(seen) || e.closest(off)) continue;
        const colour = getComputedStyle(e).color;
        const a = light(rgb(colour).slice(0, 3)), b = light(ground(e).slice(0, 3));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const least = /[\\p{L}\\p{N}]/u.test(text) ? 4.5 : 3;
        if (ratio < least) poor.push(`${text.slice(0, 60)}: ${ratio.toFixed(1)} to 1, ${colour}`);
    }
    return poor;
}"""


def is_readable(widget):
    "Words stand out from their ground by 4.5 to 1 and signs by 3 to 1, as accessibility guidelines ask."
    poor = widget.evaluate(CONTRAST)
    assert not poor, poor


# ---------------------------------------------------------------- the tests
SLIDER = """import io, numpy as np, ipywidgets as w
from PIL import Image
def png(k):
    f = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 7 * k, np.uint8)).save(f, "png")
    return f.getvalue()
slider, picture = w.IntSlider(0, 0, 30, description="step"), w.Image(value=png(0))
slider.observe(lambda c: setattr(picture, "value", png(c.new)), "value")
w.VBox([slider, picture])"""

BROKEN = """from IPython.display import HTML, display
display(HTML('<img src=/nothing.png>'))
import ipywidgets as w
display(w.HTML('<div style="width: 3000px; background: white; color: #ccc">pale</div>'))
1/0"""


def write(lab: Lab, name: str, *cells: str):
    "A notebook of these cells."
    kernel = dict(display_name="python3", language="python", name="python3")
    nb = new_notebook(cells=[new_code_cell(c) for c in cells], metadata=dict(kernelspec=kernel))
    (lab.kit / f"nbs/{name}.ipynb").write_text(json.dumps(nb))


def test_the_harness_sees_what_it_must(lab, opened):
    "A test of the tests: a picture that follows is seen to change, one that does not is not; errors are found."
    write(lab, "sound", SLIDER)
    write(lab, "broken", BROKEN, "2")
    nb = opened("nbs/sound.ipynb").run_all()
    v = nb.viewer("img")
    before = pixels(v.locator("img"))
    drag(v.locator(".widget-slider"), 0.5)
    assert wait_for_other(v.locator("img"), before) != before
    still = settled(v.locator("img"))
    with pytest.raises(AssertionError, match="did not change"):
        wait_for_other(v.locator("img"), still, seconds=0.5)
    fits(v)
    is_readable(v)
    assert not nb.faults()
    bad = opened("nbs/broken.ipynb").run_all()
    wait_until(bad.page, lambda: bad.complaints, "a complaint of the browser's")
    faults = "\n".join(bad.faults())
    assert "ZeroDivisionError" in faults and "console: Failed to load resource" in faults
    pale = bad.page.locator(".jp-OutputArea-output .jupyter-widgets").first
    with pytest.raises(AssertionError, match="its place at"): fits(pale)
    with pytest.raises(AssertionError, match="pale"): is_readable(pale)


def is_drawn_for_its_place(picture):
    "The type of a figure is as large as it was drawn: the figure is hardly scaled."
    scale = "i => i.clientWidth / i.naturalWidth"
    wait_until(picture.page, lambda: 0.85 < picture.evaluate(scale) < 1.15, "drawn for its width")


def stand_in_one_row(*parts):
    "Their middles are at one height."
    middles = [(b := part.bounding_box())["y"] + b["height"] / 2 for part in parts]
    assert max(middles) - min(middles) < 6, middles


def labels_stand_beside(viewer):
    "The label of a choice is in one row with its buttons."
    choices = [c for c in viewer.locator(".gr00t-choice").all() if c.is_visible()]
    assert choices
    for c in choices: stand_in_one_row(c.locator("label"), c.locator("button").first)


def look(nb: Notebook, viewer, name: str):
    "What every viewer must be: as wide as its place, readable in light and dark; with screenshots."
    SHOTS.mkdir(parents=True, exist_ok=True)
    for theme in ("Light", "Dark"):
        nb.theme(f"JupyterLab {theme}")
        viewer.scroll_into_view_if_needed()
        fits(viewer)
        is_readable(viewer)
        viewer.screenshot(path=SHOTS / f"{name}-{theme.lower()}.png")
        nb.shot(f"{name}-window-{theme.lower()}")
    nb.theme("JupyterLab Light")
    nb.menu("View", "Appearance", "Show Left Sidebar")  # without the list of files there is more room
    nb.page.wait_for_timeout(300)
    fits(viewer)
    nb.shot(f"{name}-window-wide")


def shorten(lab: Lab, tutorial: str, **values) -> str:
    "Other values in the first cell of a tutorial; tests/notebooks.py runs it on all that it names."
    path = f"nbs/tutorials/{tutorial}.ipynb"
    nb = json.loads((lab.kit / path).read_text())
    first = next(c for c in nb["cells"] if c["cell_type"] == "code")
    first["source"] = edited("".join(first["source"]), values)
    (lab.kit / path).write_text(json.dumps(nb))
    return path


FOUR = [*range(4, 40)]  # what is left out of the sample


def test_a_tutorial_from_end_to_end(lab, opened):
    nb = opened(shorten(lab, "00_first_policy", STEPS=10)).run_all()
    assert not nb.faults()
    assert nb.outputs("image/png").count() >= 5
    nb.page.locator("p", has_text="Now the training itself").scroll_into_view_if_needed()
    nb.shot("00_first_policy")


def drawn_for_the_page(viewer):
    "Until each figure is drawn for the width in which it stands: a narrower page is told to the kernel in steps."
    sizes = "all => all.map(img => [img.naturalWidth, img.clientWidth]).filter(s => s[1] > 0)"
    fits_in = lambda natural, shown: shown <= natural < shown + 50
    figures = viewer.locator("img.gr00t-figure")
    as_drawn = lambda: all(fits_in(*s) for s in figures.evaluate_all(sizes))
    wait_until(viewer.page, as_drawn, "drawn for the width of the page", seconds=60)


def places(viewer) -> list[tuple[int, int]]:
    "Where the controls of a viewer stand in it."
    drawn_for_the_page(viewer)
    top, wanted = viewer.bounding_box(), "button, select, input[type=text], .noUi-base"
    boxes = [w.bounding_box() for w in viewer.locator(wanted).all() if w.is_visible()]
    return [(round(b["x"] - top["x"]), round(b["y"] - top["y"])) for b in boxes]


def touched_with_mouse_and_keys(nb: Notebook, viewer, at):
    "A click on a trace goes there, on the strip too; Space plays and pauses; an arrow goes one step."
    glass = viewer.locator(".gr00t-touch")
    for pane, share in ((glass.last, 0.06), (glass.first, 0.9)):
        box, step = pane.bounding_box(), at()
        pane.click(position=dict(x=share * box["width"], y=0.2 * box["height"]))
        wait_until(nb.page, lambda: at() != step, "where it was clicked")
    assert at() > 60
    glass.last.click(position=dict(x=glass.last.bounding_box()["width"] * 0.06, y=30))
    wait_until(nb.page, lambda: at() < 40, "at the beginning")
    step = at()
    nb.page.keyboard.press("Space")
    wait_until(nb.page, lambda: at() > step + 3, "playing")
    nb.page.keyboard.press("Space")
    settled(viewer.locator("img:not(.gr00t-figure)").first)
    step = at()
    nb.page.keyboard.press("ArrowRight")
    wait_until(nb.page, lambda: at() == step + 1, "one step further")


def test_episodes_are_watched(lab, opened):
    "A slider is dragged, a step clicked, an episode played, another opened: each time the camera changes."
    nb = opened(shorten(lab, "10_look_at_your_data", EXCLUDE=FOUR)).run_all()
    assert not nb.faults()
    viewer = nb.viewer(".widget-slider")
    camera = viewer.locator("img:not(.gr00t-figure)").first
    clock = viewer.get_by_text(re.compile(r"step \d+ of \d+"))
    first = pixels(camera)
    drag(viewer.locator(".widget-slider").first, 0.6)
    wait_for_other(camera, first)
    there = settled(camera)
    at = lambda: int(re.search(r"step (\d+)", clock.inner_text())[1])
    assert (step := at()) > 20
    viewer.locator("button:has(.fa-step-forward)").click()
    wait_for_other(camera, there)
    wait_until(nb.page, lambda: at() == step + 1, f"at step {step + 1}")
    play, stop = (viewer.locator(".widget-play button").nth(k) for k in (0, 1))
    now = pixels(camera)
    play.click()
    wait_for_other(camera, now)
    wait_until(nb.page, lambda: at() > step + 5, f"beyond step {step + 5}")
    stop.click()
    settled(camera)
    touched_with_mouse_and_keys(nb, viewer, at)
    now, words, before = settled(camera), viewer.inner_text(), places(viewer)
    viewer.locator("button:has(.fa-chevron-right)").click()
    wait_for_other(camera, now)
    wait_until(nb.page, lambda: viewer.inner_text() != words, "another episode's words")
    settled(camera)
    assert places(viewer) == before  # no control has moved
    seconds = viewer.locator(".widget-slider", has=nb.page.get_by_text("seconds", exact=True))
    stand_in_one_row(seconds, viewer.get_by_role("button", name="whole"))
    look(nb, viewer, "10_look_at_your_data")
    assert not nb.faults()


def at_900(nb: Notebook, viewer):
    "In a narrow window nothing is cut, the list stays between its arrows, another episode moves no control."
    traces = viewer.locator("img.gr00t-figure").last
    drawn = pixels(traces)
    nb.page.set_viewport_size(dict(WINDOW, width=900))
    wait_for_other(traces, drawn, seconds=60)  # two panels beside each other in place of four
    arrow = lambda side: viewer.locator(f"button:has(.fa-chevron-{side})")
    for theme in ("Light", "Dark"):
        nb.theme(f"JupyterLab {theme}")
        fits(viewer)
        is_readable(viewer)
        labels_stand_beside(viewer)
        fits(nb.page.locator(".jp-RenderedHTML:has(table)").first)  # the check-up's
        nb.shot(f"40_episode_viewer-900-{theme.lower()}")
    drawn_for_the_page(viewer)
    left, right = (arrow(side).bounding_box() for side in ("left", "right"))
    assert left["y"] == right["y"] and left["x"] < right["x"]
    assert left["width"] >= 36 <= right["width"]  # they are whole
    words, before = viewer.inner_text(), places(viewer)
    arrow("left").click()
    wait_until(nb.page, lambda: viewer.inner_text() != words, "another episode's words")
    settled(viewer.locator("img").first)
    assert places(viewer) == before


BROKEN_EPISODE = """import shutil
from pathlib import Path
from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
from gr00t_nb.viz.episode_viewer import EpisodeViewer
load_modality_config("../data_samples/cube_to_bowl_config.py")
config, data = MODALITY_CONFIGS["new_embodiment"], Path("../broken")
shutil.copytree("../data_samples/cube_to_bowl", data, dirs_exist_ok=True)
(data / "videos/chunk-000/observation.images.wrist/episode_000002.mp4").unlink()
report = check_dataset(data, config=config, exclude_episodes=range(3, 40), progress=False)
display(report)
EpisodeViewer(data, config, report=report, episode=1, step=50)"""


def test_an_episode_with_a_fault_is_watched(lab, opened):
    write(lab, "broken_episode", BROKEN_EPISODE)
    nb = opened("nbs/broken_episode.ipynb").run_all()
    viewer = nb.viewer(".widget-slider")
    fault = viewer.get_by_text("There is no video file")
    assert not fault.is_visible()
    viewer.locator("button:has(.fa-chevron-right)").click()  # on to the episode with the fault
    wait_until(nb.page, fault.is_visible, "the fault, in words")
    settled(viewer.locator("img").first)
    look(nb, viewer, "40_episode_viewer")
    at_900(nb, viewer)
    assert not nb.faults()


def another_sentence(nb: Notebook, viewer, drawn: int):
    "Asking something else moves no control, and nothing must be scrolled sideways."
    before = places(viewer)
    told = viewer.locator("input[type=text]").first
    told.fill("wave to the audience, slowly, with all that you have")
    told.press("Enter")
    wait_for_other(viewer.locator("img.gr00t-figure").first, drawn, seconds=60)
    wait_until(nb.page, lambda: "moved by the prompt" in viewer.inner_text(), "what it changed")
    assert places(viewer) == before
    fits(viewer)


def denoising(nb: Notebook, viewer):
    "The slider says which Euler step it is at, and moves nothing but the picture."
    picture = viewer.locator("img.gr00t-figure").first
    chunk, strip = settled(picture), viewer.locator(".gr00t-strip")
    below = lambda: strip.bounding_box()["y"] - viewer.bounding_box()["y"]
    before = below()
    labels_stand_beside(viewer)
    viewer.get_by_role("button", name="denoising", exact=True).click()
    wait_for_other(picture, chunk, seconds=60)
    assert below() == before  # another view moves nothing below it
    words = re.compile(r"^Euler step \d+ of \d+$")
    slider = viewer.locator(".widget-slider", has=nb.page.get_by_text(words))
    at = lambda: int(re.search(r"\d+", slider.inner_text())[0])
    handle = slider.locator(".noUi-handle")
    handle.press("Home")
    wait_until(nb.page, lambda: at() == 0, "at the noise")
    drawn, before = settled(picture), places(viewer)
    handle.press("ArrowRight")
    wait_until(nb.page, lambda: at() == 1, "one Euler step further")
    wait_for_other(picture, drawn)
    assert places(viewer) == before
    nb.shot("70_prediction_viewer-denoising")
    viewer.get_by_role("button", name="chunk", exact=True).click()


def two_in_a_row(nb: Notebook, viewer):
    "At 900 pixels panels stand in two columns, in type that can be read, in light and dark."
    fan = viewer.locator("img.gr00t-figure").first
    for width in (1280, 900):
        nb.page.set_viewport_size(dict(WINDOW, width=width))
        settled(fan)
        is_drawn_for_its_place(fan)
    told, undo = viewer.locator("input[type=text]").first, viewer.get_by_text("as recorded").first
    stand_in_one_row(told, undo)
    for theme in ("Dark", "Light"):
        nb.theme(f"JupyterLab {theme}")
        fits(viewer)
        is_readable(viewer)
        viewer.scroll_into_view_if_needed()
        viewer.screenshot(path=SHOTS / f"70_prediction_viewer-900-{theme.lower()}.png")


def stacked(nb: Notebook, viewer):
    "Below 700 pixels the picture stands under the cameras, and nothing is cut off."
    nb.page.set_viewport_size(dict(WINDOW, width=680))
    fan, cameras = viewer.locator("img.gr00t-figure").first, viewer.locator(".gr00t-camera")
    lowest = lambda: max(b["y"] + b["height"] for c in cameras.all() if (b := c.bounding_box()))
    wait_until(nb.page, lambda: fan.bounding_box()["y"] >= lowest(), "below the cameras")
    fits(viewer)
    viewer.screenshot(path=SHOTS / "70_prediction_viewer-680.png")


PREDICTIONS = """%run _shared_policy.py
from gr00t_nb.evaluation.asking import held_out_episodes
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.viz.prediction_viewer import PredictionViewer
run = shared_policy()
early, *_, late = sorted(run.glob("checkpoint-*"))
policies = [Gr00tPolicy("NEW_EMBODIMENT", p, device="cpu") for p in (early, late)]
data, episode = "../data_samples/cube_to_bowl", held_out_episodes(run)[0]
viewer = PredictionViewer(policies, data, episode=episode, step=60)
viewer.wait()
viewer"""


@pytest.fixture
def shared_policy(lab):
    "The policy that notebooks share is in the copy, too: nobody trains it again."
    run = runpy.run_path(str(ROOT / "nbs/_shared_policy.py"))["shared_policy"]()
    shutil.copytree(run, lab.kit / run.relative_to(ROOT))


def test_predictions_are_looked_at(lab, shared_policy, opened):
    "The fan follows the slider, and so does the camera."
    write(lab, "predictions", PREDICTIONS)
    nb = opened("nbs/predictions.ipynb").run_all()
    assert not nb.faults()
    viewer = nb.viewer(".widget-slider")
    camera = viewer.locator("img:not(.gr00t-figure)").first
    fan = viewer.locator("img.gr00t-figure").first
    before, drawn = pixels(camera), pixels(fan)
    drag(viewer.locator(".widget-slider").first, 0.15)
    wait_for_other(camera, before)
    wait_for_other(fan, drawn, seconds=60)  # the policy is asked
    another_sentence(nb, viewer, settled(fan))
    strip = viewer.locator(".gr00t-strip .gr00t-touch")
    clock = viewer.get_by_text(re.compile(r"step \d+ of \d+")).first
    strip.click(position=dict(x=0.5 * strip.bounding_box()["width"], y=20))
    half = lambda now, all: abs(int(now) - int(all) / 2) <= 1
    wait_until(nb.page, lambda: half(*re.findall(r"\d+", clock.inner_text())[-2:]), "half-way")
    denoising(nb, viewer)
    look(nb, viewer, "70_prediction_viewer")
    two_in_a_row(nb, viewer)
    stacked(nb, viewer)
    assert not nb.faults()


TWO_RUNS = """import json
from pathlib import Path
from gr00t_nb.viz.monitor import TrainingMonitor
def write(folder, falls):
    (folder / "experiment_cfg").mkdir(parents=True, exist_ok=True)
    told = dict(config=dict(global_batch_size=32, max_steps=400))
    (folder / "experiment_cfg/finetune.json").write_text(json.dumps(told))
    fixed = dict(grad_norm=1.0, learning_rate=1e-4, samples_per_second=128.0, data_wait=0.02)
    loss = lambda s: falls / (s + falls) + 0.03 * (s // 10 % 3)
    rows = [fixed | dict(step=s, loss=loss(s), time=1000 + s / 4) for s in range(10, 401, 10)]
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\\n" for r in rows))
runs = {"falls fast": Path("../runs/fast"), "falls slowly": Path("../runs/slow")}
for folder, falls in zip(runs.values(), (40, 400)): write(folder, falls)
TrainingMonitor(runs)"""


def test_the_training_monitor(lab, opened):
    write(lab, "two_runs", TWO_RUNS)
    nb = opened("nbs/two_runs.ipynb").run_all()
    assert not nb.faults()
    viewer = nb.viewer(".widget-slider")
    said = viewer.inner_text()
    assert all(name in said for name in ("falls fast", "falls slowly", "done: 400 steps"))
    curves = viewer.locator("img").first
    before = pixels(curves)
    drag(viewer.locator(".widget-slider").first, 0.1)  # less smoothing: other curves
    wait_for_other(curves, before)
    look(nb, viewer, "80_monitor")
    nb.page.set_viewport_size(dict(WINDOW, width=900))
    stand_in_one_row(*(viewer.get_by_role("button", name=n) for n in ("steps", "live")))
    fits(viewer)
    assert not nb.faults()
