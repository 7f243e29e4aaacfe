"""The house as a picture.

Each folder of notebooks is a storey, each notebook a room that links to it, the tutorials are the
roof. `house(root)` gives the SVG text. It depends on nothing but the notebooks' places, titles and
summaries, so that `make export` can write it to `nbs/house.svg` and the tests can see that it is
current. It reads well on light and on dark ground, and its colours follow the reader's theme.
"""
import json
import re
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
    "loading": ("loading", "in order, fast"),
    "conversion": ("conversion", "into LeRobot"),
    "model": ("model", "shared parts"),
    "backbones": ("backbones", "pictures and words"),
    "families": ("families", "a whole GR00T"),
    "policy": ("policy", "observation to action"),
    "evaluation": ("evaluation", "how good is it?"),
    "runs": ("runs", "what a run writes"),
    "training": ("training", "batch to checkpoint"),
    "serving": ("serving", "over the wire"),
    "simulators": ("simulators", "worlds to act in"),
    "viz": ("viz", "look at all of it"),
    "tutorials": ("tutorials", "begin here"),
}
WIDTH, EAVES, WALL, LABEL, ROOM, GAP, PAD = 960, 4, 28, 166, 30, 8, 14  # units of the picture
LEFT, RIGHT = WALL, WIDTH - WALL  # of all storeys but the roof
LETTER = 7.2  # a letter's width in the widest common font
# per floor: hue and saturation of the wall, from Okabe and Ito's palette where it has one
HUES = {
    "": (210, 8),
    "plots": (220, 30),
    "data": (202, 60),
    "checkup": (186, 50),
    "processing": (202, 45),
    "loading": (216, 50),
    "conversion": (202, 30),
    "model": (41, 75),
    "backbones": (48, 65),
    "families": (33, 75),
    "policy": (327, 45),
    "evaluation": (312, 40),
    "runs": (150, 35),
    "training": (164, 50),
    "serving": (340, 45),
    "simulators": (265, 35),
    "viz": (220, 45),
    "tutorials": (18, 62),
}

# how it looks; it follows the reader's choice of light or dark
LOOK = """\
.house { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.house { max-width: 100%; height: auto; }
.house .wall { fill: hsl(var(--h) var(--s) 92%); stroke: hsl(var(--h) var(--s) 80%); }
.house .edge, .house .chimney { fill: hsl(var(--h) var(--s) 45%); }
.house .room { fill: #fff; stroke: hsl(var(--h) var(--s) 62%); }
.house .floor { font-size: 15px; font-weight: 700; fill: hsl(var(--h) var(--s) 22%); }
.house .what { font-size: 11px; fill: hsl(var(--h) var(--s) 28%); }
.house .name { font-size: 12px; text-anchor: middle; fill: #1d232b; }
.house .room.door { fill: hsl(var(--h) 30% 30%); stroke: none; }
.house .name.door { fill: #fff; font-weight: 600; }
.house a:hover .room, .house a:focus .room { stroke-width: 2.5; }
.house .soil { stroke: #8a8a8a; stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  .house .wall { fill: hsl(var(--h) var(--s) 15%); stroke: hsl(var(--h) var(--s) 27%); }
  .house .room { fill: #14181d; stroke: hsl(var(--h) var(--s) 42%); }
  .house .floor { fill: hsl(var(--h) var(--s) 86%); }
  .house .what { fill: hsl(var(--h) var(--s) 76%); }
  .house .name { fill: #e8ebee; }
  .house .room.door { fill: hsl(var(--h) 25% 82%); }
  .house .name.door { fill: #14181d; }
}
"""


class DocsError(Exception):
    "Something in the notebooks that no page can be made of: a sentence that says what, where, and what to do."


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


def notebooks(
    root: Path,  # the checkout
) -> list[Notebook]:  # the first page, then floor by floor from the ground, by number
    "Every notebook of the checkout, with its title and summary."
    found = []
    for file in sorted((root / "nbs").rglob("*.ipynb")):
        path = PurePosixPath(file.relative_to(root / "nbs").as_posix())
        if any(p.startswith((".", "_")) for p in path.parts): continue
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        text = lambda c: "".join(c["source"])
        head = next((text(c) for c in cells if c["cell_type"] == "markdown"), "")
        title, summary = re.search(r"\A\s*# (.+)", head), re.search(r"^> (.+)", head, re.M)
        if not title or not summary:
            raise DocsError(
                f"nbs/{path} does not begin with a title and a summary:"
                " its first Markdown cell must hold `# title`, an empty line and `> one sentence`."
            )
        code = "\n".join(text(c) for c in cells if c["cell_type"] == "code")
        module = re.search(r"^#\|\s*default_exp\s+(\S+)", code, re.M)
        module = module[1] if module else None
        nb = Notebook(path, title[1].strip(), summary[1].strip(), module)
        if nb.floor not in FLOORS:
            raise DocsError(
                f"nbs/{path} is on a floor that the house does not have:"
                f" add '{nb.floor}' to FLOORS and HUES in docs/house.py, above what it imports from."
            )
        found.append(nb)
    floors = list(FLOORS)
    place = lambda n: (n.path.name != "index.ipynb", floors.index(n.floor), n.path.name)
    return sorted(found, key=place)


def rows_of(
    widths: list[float],  # of the rooms, in reading order
    room: list[float],  # width of the first row, the second, ...; the last is that of all further rows
) -> list[list[int]]:  # which rooms stand in which row
    "Rooms laid into as few rows as they need, and these as even as they can be."
    def lay(share):
        rows, used = [[]], 0.0
        for i, w in enumerate(widths):
            limit = room[min(len(rows), len(room)) - 1] * share
            if rows[-1] and used + w > limit:
                rows.append([])
                used = 0.0
            rows[-1].append(i)
            used += w + GAP
        return rows
    fewest = len(lay(1.0))
    share = next(s / 50 for s in range(10, 51) if len(lay(s / 50)) <= fewest)
    return lay(share)


@dataclass(frozen=True)
class _Shape:
    "Where a storey stands. The roof's walls lean, so that its rows get narrower towards the top."
    y: float  # of its upper edge
    rows: int  # of rooms
    roof: bool

    @property
    def height(self) -> float: return self.rows * (ROOM + GAP) - GAP + 2 * PAD + 10 * self.roof

    @property
    def slope(self) -> float: return (46 + 26 * self.rows) * self.roof

    @property
    def first_row(self) -> float: return self.y + PAD + 10 * self.roof

    def ends(self, row: int) -> tuple[float, float]:  # x where its first room begins and its last one ends
        if not self.roof: return LEFT + LABEL, RIGHT - PAD
        lean = self.slope * (1 - row / max(self.rows, 2)) * 0.72
        return LEFT + lean + LABEL, RIGHT - lean - 16


def _walls(shape: _Shape, name: str, what: str) -> list[str]:
    "A storey without its rooms: wall or roof, and the two lines of its name."
    y, bottom = shape.y, shape.y + shape.height
    if shape.roof:
        left, right = LEFT + shape.slope, RIGHT - shape.slope
        parts = [
            f'<path class="chimney" d="M{RIGHT - 190} {y - 22}h34v60h-34z"/>',
            f'<path class="wall" d="M{left} {y}H{right}L{WIDTH - EAVES} {bottom}H{EAVES}Z"/>',
        ]
        at = LEFT + shape.slope * 0.72 + 14
    else:
        size = f'height="{shape.height}"'
        parts = [
            f'<rect class="wall" x="{LEFT}" y="{y}" width="{RIGHT - LEFT}" {size}/>',
            f'<rect class="edge" x="{LEFT}" y="{y}" width="5" {size}/>',
        ]
        at = LEFT + 20
    middle = y + shape.height / 2
    return parts + [
        f'<text class="floor" x="{at:.0f}" y="{middle - 2:.0f}">{escape(name)}</text>',
        f'<text class="what" x="{at:.0f}" y="{middle + 15:.0f}">{escape(what)}</text>',
    ]


def _room(n: Notebook, x: float, y: float, width: float) -> str:
    "One room: a link with the notebook's name, and its summary where the pointer rests."
    door = " door" if n.path.name == "index.ipynb" else ""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROOM}"'
    middle = f'x="{x + width / 2:.1f}" y="{y + ROOM / 2 + 4.3:.1f}"'
    return (
        f'<a href="{escape(str(n.path))}">'
        f"<title>{escape(n.title)}: {escape(n.plain_summary)}</title>"
        f'<rect class="room{door}" {place} rx="4"/>'
        f'<text class="name{door}" {middle}>{escape(n.label)}</text></a>'
    )


def _row(rooms: list[Notebook], y: float, start: float, end: float) -> list[str]:
    "Rooms beside each other from `start` to `end`, as much wider than their names as there is room."
    widths = [_width(n) for n in rooms]
    grow = min((end - start - GAP * (len(rooms) - 1)) / sum(widths), 1.6)
    parts, x = [], start
    for n, width in zip(rooms, widths):
        parts.append(_room(n, x, y, width * grow))
        x += width * grow + GAP
    return parts


def _width(n: Notebook) -> float:  # of its room, at least
    return len(n.label) * LETTER + 22


def _storey(floor: str, rooms: list[Notebook], y: float) -> tuple[str, float]:  # SVG, and its height
    "A storey whose upper edge is at `y`."
    roof = floor == "tutorials"
    inner = RIGHT - LEFT - LABEL - PAD
    rows = rows_of([_width(n) for n in rooms], [inner - 150, inner - 60] if roof else [inner])
    shape = _Shape(y, len(rows), roof)
    hue, saturation = HUES[floor]
    parts = [f'<g class="storey" style="--h:{hue};--s:{saturation}%">']
    parts += _walls(shape, *FLOORS[floor])
    for k, row in enumerate(rows):
        top = shape.first_row + k * (ROOM + GAP)
        parts += _row([rooms[i] for i in row], top, *shape.ends(k))
    return "\n".join([*parts, "</g>"]), shape.height


def house(
    root: Path,  # the checkout
) -> str:  # SVG; links are relative to nbs/
    "The picture of all notebooks of a checkout."
    rooms = notebooks(root)
    floors = {f: [n for n in rooms if n.floor == f] for f in FLOORS}
    floors = {f: ns for f, ns in floors.items() if ns}
    storeys, y = [], 26.0
    for f in reversed(floors):
        storey, height = _storey(f, floors[f], y)
        storeys.append(storey)
        y += height
    counts = ", ".join(f"{FLOORS[f][0]} ({len(ns)})" for f, ns in floors.items())
    label = f"The kit as a house: {len(rooms)} notebooks on {len(floors)} floors, {counts}"
    height = f"{y + 10:.0f}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="house" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img" aria-label="{escape(label)}">',
        f"<style>\n{LOOK}</style>",
        *storeys,
        f'<path class="soil" d="M0 {y + 2}H{WIDTH}"/>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
