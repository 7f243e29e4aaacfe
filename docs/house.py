"""The house as a picture: each folder is a floor, each notebook a room that links to it, the tutorials are the roof.

`house(root)` gives the SVG text. It depends on nothing but the places, titles and summaries of the
notebooks, so `make export` can write it to `nbs/house.svg` and the tests see that it is current.
Small floors that follow each other share a storey, the earlier one to the left. The colours follow
the theme of the reader.
"""
import json
import re
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath

# folder below nbs/: its name, and what happens there; ground first, as the imports go
FLOORS = {
    "": ("ground", "what all stand on"),
    "plots": ("plots", "arrays to pictures"),
    "data": ("data", "reading LeRobot"),
    "checkup": ("checkup", "is the data sound?"),
    "processing": ("processing", "steps to tensors"),
    "cosmos": ("cosmos", "as Qwen3-VL reads"),
    "loading": ("loading", "in order, fast"),
    "fluxvla": ("fluxvla", "another system's data"),
    "conversion": ("conversion", "into LeRobot"),
    "model": ("model", "shared parts"),
    "backbones": ("backbones", "pictures and words"),
    "families": ("families", "a whole GR00T"),
    "checkpoints": ("checkpoints", "where models rest"),
    "replay": ("replay", "computed once, played again"),
    "policy": ("policy", "observation to action"),
    "evaluation": ("evaluation", "how good is it?"),
    "runs": ("runs", "what a run writes"),
    "processes": ("processes", "many as one"),
    "optimizer": ("optimizer", "what learns, how fast"),
    "engine": ("engine", "step after step"),
    "settings": ("settings", "what a run is told"),
    "training": ("training", "settings to checkpoint"),
    "serving": ("serving", "over the wire"),
    "robots": ("robots", "bodies with limits"),
    "ros": ("ros", "robots as topics"),
    "simulators": ("simulators", "worlds to act in"),
    "rollout": ("rollout", "closed loop"),
    "viz": ("viz", "look at all of it"),
    "recipes": ("recipes", "a page for each robot"),
    "tutorials": ("tutorials", "begin here"),
}
# per floor: hue and saturation of the wall, from Okabe and Ito's palette where it has one
HUES = {
    "": (210, 8),
    "plots": (220, 30),
    "data": (202, 60),
    "checkup": (186, 50),
    "processing": (202, 45),
    "cosmos": (209, 48),
    "loading": (216, 50),
    "fluxvla": (230, 40),
    "conversion": (202, 30),
    "model": (41, 75),
    "backbones": (48, 65),
    "families": (33, 75),
    "replay": (334, 38),
    "policy": (327, 45),
    "evaluation": (312, 40),
    "checkpoints": (300, 30),
    "runs": (150, 35),
    "processes": (142, 30),
    "optimizer": (154, 38),
    "engine": (158, 42),
    "settings": (161, 46),
    "training": (164, 50),
    "serving": (340, 45),
    "robots": (352, 40),
    "ros": (8, 42),
    "simulators": (265, 35),
    "rollout": (280, 40),
    "viz": (220, 45),
    "recipes": (28, 45),
    "tutorials": (18, 62),
}


class DocsError(Exception):
    "Notebooks that no site can be made of: a sentence that says what, where, and what to do."


@dataclass(frozen=True)
class Notebook:
    path: PurePosixPath  # below nbs/, such as data/00_video.ipynb
    title: str  # of its first heading
    summary: str  # the line under it, without the mark; Markdown
    module: str | None  # what it exports to, such as data.video

    @property
    def floor(self) -> str: return str(self.path.parent) if len(self.path.parts) > 1 else ""

    @property
    def label(self) -> str:  # the title as one says it inside its own floor
        short = self.title.removeprefix(f"{self.floor}.").removesuffix(" overview")
        return short.replace("_", " ") if self.module else short

    @property
    def plain_summary(self) -> str: return re.sub(r"[`*]", "", self.summary)


def notebook(root: Path, path: PurePosixPath) -> Notebook:
    "A notebook's title, summary and module; its floor must be one of the house."
    cells = json.loads((root / "nbs" / path).read_text(encoding="utf-8"))["cells"]
    texts = [(c["cell_type"], "".join(c["source"])) for c in cells]
    head = next((text for kind, text in texts if kind == "markdown"), "")
    title, summary = re.search(r"\A\s*# (.+)", head), re.search(r"^> (.+)", head, re.M)
    if not title or not summary:
        raise DocsError(
            f"nbs/{path} does not begin with a title and a summary: its first Markdown cell"
            " must hold `# title`, an empty line and `> one sentence`."
        )
    code = "\n".join(text for kind, text in texts if kind == "code")
    module = re.search(r"^#\|\s*default_exp\s+(\S+)", code, re.M)
    found = Notebook(path, title[1].strip(), summary[1].strip(), module[1] if module else None)
    if found.floor not in FLOORS:
        raise DocsError(
            f"nbs/{path} is on a floor that the house does not have: add '{found.floor}' to FLOORS"
            " and HUES in docs/house.py, above what it imports from."
        )
    return found


def notebooks(
    root: Path,  # the checkout
) -> list[Notebook]:  # the first page, then floor by floor from the ground, by number
    "Every notebook of the checkout, with its title and summary."
    files = sorted((root / "nbs").rglob("*.ipynb"))
    paths = [PurePosixPath(f.relative_to(root / "nbs").as_posix()) for f in files]
    seen = [p for p in paths if not any(part.startswith((".", "_")) for part in p.parts)]
    found = [notebook(root, p) for p in seen]
    twice = [t for t, n in Counter((b.floor, b.title) for b in found).items() if n > 1]
    for title in twice:
        same = " and ".join(f"nbs/{b.path}" for b in found if (b.floor, b.title) == title)
        raise DocsError(f"{same} have the same title, '{title[1]}': give each its own.")
    order = {floor: k for k, floor in enumerate(FLOORS)}
    return sorted(found, key=lambda b: (str(b.path) != "index.ipynb", order[b.floor], b.path))


# ---------------------------------------------------------------- the drawing
WIDTH, EAVES, WALL = 960, 4, 28  # units of the picture: all of it, beside the roof, beside the walls
LABEL, ROOM, GAP, PAD = 140, 28, 7, 10  # a floor's name, a room's height, between rooms, around them
LETTER, FRAME = 7.2, 18  # a letter's width in the widest common font; what a room is wider than its name
STYLE = """
svg.house:root { color-scheme: light dark; }
.house { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.house { max-width: 100%; height: auto; }
.house .wall { fill: light-dark(hsl(var(--h) var(--s) 92%), hsl(var(--h) var(--s) 15%)); }
.house .wall { stroke: light-dark(hsl(var(--h) var(--s) 80%), hsl(var(--h) var(--s) 27%)); }
.house .edge, .house .chimney { fill: hsl(var(--h) var(--s) 45%); }
.house .room { fill: light-dark(#fff, #14181d); }
.house .room { stroke: light-dark(hsl(var(--h) var(--s) 62%), hsl(var(--h) var(--s) 42%)); }
.house .floor { font-size: 15px; font-weight: 700; }
.house .floor { fill: light-dark(hsl(var(--h) var(--s) 22%), hsl(var(--h) var(--s) 86%)); }
.house .what { font-size: 11px; }
.house .what { fill: light-dark(hsl(var(--h) var(--s) 28%), hsl(var(--h) var(--s) 76%)); }
.house .name { font-size: 12px; text-anchor: middle; fill: light-dark(#1d232b, #e8ebee); }
.house .room.door { fill: light-dark(hsl(var(--h) 30% 30%), hsl(var(--h) 25% 82%)); stroke: none; }
.house .name.door { fill: light-dark(#fff, #14181d); font-weight: 600; }
.house a:hover .room, .house a:focus .room { stroke-width: 2.5; }
.house .soil { stroke: #8a8a8a; stroke-width: 3; }
"""


def room_width(notebook: Notebook) -> float: return len(notebook.label) * LETTER + FRAME


def row_width(widths: list[float]) -> float: return sum(widths) + GAP * (len(widths) - 1)


def floor_width(rooms: list[Notebook]) -> float:
    "Of a floor in one row, with its name."
    return LABEL + row_width([room_width(n) for n in rooms]) + PAD


def storeys_of(floors: dict[str, list[Notebook]]) -> list[list[str]]:
    "Which floors stand beside each other, from the ground; the roof stands alone."
    storeys = []
    for floor, rooms in floors.items():
        below = [] if floor == "tutorials" or not storeys else storeys[-1]
        together = sum(floor_width(floors[f]) for f in below) + floor_width(rooms)
        if below and together <= WIDTH - 2 * WALL: below.append(floor)
        else: storeys.append([floor])
    return storeys


def rows_of(
    rooms: list[Notebook],  # in reading order
    limits: list[float],  # width of the first row, the second, ...; the last holds for all further rows
) -> list[list[Notebook]]:
    "Rooms laid into as few rows as they need, and these as even as they can be."
    def lay(share):
        rows = [[]]
        for room in rooms:
            limit = limits[min(len(rows), len(limits)) - 1] * share
            if rows[-1] and row_width([room_width(n) for n in [*rows[-1], room]]) > limit:
                rows.append([])
            rows[-1].append(room)
        return rows
    fewest = len(lay(1.0))
    return next(rows for s in range(10, 51) if len(rows := lay(s / 50)) <= fewest)


def group(floor: str, shapes: list[str]) -> str:
    hue, saturation = HUES[floor]
    return "\n".join([f'<g class="storey" style="--h:{hue};--s:{saturation}%">', *shapes, "</g>"])


def label(floor: str, x: float, middle: float) -> list[str]:
    name, what = FLOORS[floor]
    return [
        f'<text class="floor" x="{x:.0f}" y="{middle - 2:.0f}">{escape(name)}</text>',
        f'<text class="what" x="{x:.0f}" y="{middle + 13:.0f}">{escape(what)}</text>',
    ]


def row(rooms: list[Notebook], start: float, end: float, y: float) -> list[str]:
    "Rooms side by side, as wide as the row lets them be, but not much wider than their names."
    widths = [room_width(n) for n in rooms]
    grow = min((end - start - GAP * (len(rooms) - 1)) / sum(widths), 1.6)
    shapes, x = [], start
    for n, natural in zip(rooms, widths):
        w, door = natural * grow, " door" if n.path.name == "index.ipynb" else ""
        about = escape(f"{n.title}: {n.plain_summary}")
        shapes.append(
            f'<a href="{escape(str(n.path))}"><title>{about}</title>'
            f'<rect class="room{door}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{ROOM}" rx="4"/>'
            f'<text class="name{door}" x="{x + w / 2:.1f}" y="{y + ROOM / 2 + 4.3:.1f}">'
            f"{escape(n.label)}</text></a>"
        )
        x += w + GAP
    return shapes


def height_of(rows: list[list[Notebook]]) -> float: return len(rows) * (ROOM + GAP) - GAP + 2 * PAD


def storey(beside: list[str], floors: dict[str, list[Notebook]], y: float) -> tuple[str, float]:
    "One or several floors side by side: their shapes, and how high they are."
    free = WIDTH - 2 * WALL - sum(floor_width(floors[f]) for f in beside)
    parts, x, height = [], WALL, 0.0
    for f in beside:
        natural = floor_width(floors[f])
        width = natural + free / len(beside) if len(beside) > 1 else WIDTH - 2 * WALL
        rows = rows_of(floors[f], [width - LABEL - PAD])
        height = height_of(rows)
        shapes = [
            f'<rect class="wall" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}"/>',
            f'<rect class="edge" x="{x:.1f}" y="{y}" width="5" height="{height}"/>',
            *label(f, x + 16, y + height / 2),
        ]
        for k, rooms in enumerate(rows):
            shapes += row(rooms, x + LABEL, x + width - PAD, y + PAD + k * (ROOM + GAP))
        parts.append(group(f, shapes))
        x += width
    return "\n".join(parts), height


def roof(rooms: list[Notebook], y: float) -> tuple[str, float]:
    "The tutorials under a sloping roof: its shapes, and how high it is."
    left, right = WALL, WIDTH - WALL
    inner = right - left - LABEL - PAD
    rows = rows_of(rooms, [inner - 150, inner - 60])
    height, slope = height_of(rows) + 10, 46 + 26 * len(rows)
    corners = f"M{left + slope} {y}H{right - slope}L{WIDTH - EAVES} {y + height}H{EAVES}Z"
    shapes = [
        f'<path class="chimney" d="M{right - 190} {y - 22}h34v60h-34z"/>',
        f'<path class="wall" d="{corners}"/>',
        *label("tutorials", left + slope * 0.72 + 14, y + height / 2),
    ]
    for k, rooms in enumerate(rows):
        indent = slope * (1 - k / max(len(rows), 2)) * 0.72
        top = y + PAD + 10 + k * (ROOM + GAP)
        shapes += row(rooms, left + indent + LABEL + 10, right - indent - 16, top)
    return group("tutorials", shapes), height


def house(
    root: Path,  # the checkout
) -> str:  # SVG; links are relative to nbs/
    "The picture of all notebooks of a checkout."
    books = notebooks(root)
    floors = {f: [n for n in books if n.floor == f] for f in FLOORS}
    floors = {f: rooms for f, rooms in floors.items() if rooms}
    parts, y = [], 26.0
    for beside in reversed(storeys_of(floors)):
        is_roof = beside == ["tutorials"]
        drawn, height = roof(floors["tutorials"], y) if is_roof else storey(beside, floors, y)
        parts.append(drawn)
        y += height
    counts = ", ".join(f"{FLOORS[f][0]} ({len(rooms)})" for f, rooms in floors.items())
    about = f"The kit as a house: {len(books)} notebooks on {len(floors)} floors, {counts}"
    size = f'viewBox="0 0 {WIDTH} {y + 10:.0f}" width="{WIDTH}" height="{y + 10:.0f}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" class="house" {size} role="img" aria-label="{escape(about)}">',
        f"<style>{STYLE}</style>",
        *parts,
        f'<path class="soil" d="M0 {y + 2}H{WIDTH}"/>',
        "</svg>\n",
    ])
