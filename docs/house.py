"""The house as a picture: each folder of notebooks is a storey, each notebook a room that links to it, the tutorials are the roof.

`house(root)` gives the SVG text. It depends on nothing but the notebooks' places, titles and summaries, so that `make export` can write it to
`nbs/house.svg` and the tests can see that it is current. It reads well on light and on dark ground, and its colours follow the reader's theme.
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
                f"nbs/{path} does not begin with a title and a summary: its first Markdown cell"
                " must hold `# title`, an empty line and `> one sentence`."
            )
        module = next(
            (
                m[1]
                for c in cells
                if c["cell_type"] == "code"
                and (m := re.search(r"^#\|\s*default_exp\s+(\S+)", text(c), re.M))
            ),
            None,
        )
        nb = Notebook(path, title[1].strip(), summary[1].strip(), module)
        if nb.floor not in FLOORS:
            raise DocsError(
                f"nbs/{path} is on a floor that the house does not have: add '{nb.floor}' to FLOORS"
                " and HUES in docs/house.py, above what it imports from."
            )
        found.append(nb)
    floors = list(FLOORS)
    return sorted(
        found, key=lambda n: (n.path.name != "index.ipynb", floors.index(n.floor), n.path.name)
    )


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


def house(
    root: Path,  # the checkout
) -> str:  # SVG; links are relative to nbs/
    "The picture of all notebooks of a checkout."
    rooms = notebooks(root)
    floors = {f: [n for n in rooms if n.floor == f] for f in FLOORS}
    floors = {f: ns for f, ns in floors.items() if ns}
    parts, y = [], 26.0
    left, right = WALL, WIDTH - WALL
    for f in reversed(floors):
        roof = f == "tutorials"
        widths = [len(n.label) * LETTER + 22 for n in floors[f]]
        inner = right - left - LABEL - PAD
        if roof: rows = rows_of(widths, [inner - 150, inner - 60])
        else: rows = rows_of(widths, [inner])
        height = len(rows) * (ROOM + GAP) - GAP + 2 * PAD
        name, what = FLOORS[f]
        hue, saturation = HUES[f]
        storey = [f'<g class="storey" style="--h:{hue};--s:{saturation}%">']
        if roof:
            height += 10
            slope = 46 + 26 * len(rows)
            storey += [
                f'<path class="chimney" d="M{right - 190} {y - 22}h34v60h-34z"/>',
                (
                    f'<path class="wall" d="M{left + slope} {y}H{right - slope}L{WIDTH - EAVES}'
                    f' {y + height}H{EAVES}Z"/>'
                ),
            ]
            at = left + slope * 0.72 + 14
        else:
            storey += [
                f'<rect class="wall" x="{left}" y="{y}" width="{right - left}" height="{height}"/>',
                f'<rect class="edge" x="{left}" y="{y}" width="5" height="{height}"/>',
            ]
            at = left + 20
        middle = y + height / 2
        storey += [
            f'<text class="floor" x="{at:.0f}" y="{middle - 2:.0f}">{escape(name)}</text>',
            f'<text class="what" x="{at:.0f}" y="{middle + 15:.0f}">{escape(what)}</text>',
        ]
        top = y + PAD + (10 if roof else 0)
        for k, row in enumerate(rows):
            start = (
                (left + slope * (1 - k / max(len(rows), 2)) * 0.72 + LABEL)
                if roof
                else left + LABEL
            )
            end = (right - slope * (1 - k / max(len(rows), 2)) * 0.72 - 16) if roof else right - PAD
            natural = sum(widths[i] for i in row) + GAP * (len(row) - 1)
            grow = min((end - start - GAP * (len(row) - 1)) / (natural - GAP * (len(row) - 1)), 1.6)
            x = start
            for i in row:
                n, w = floors[f][i], widths[i] * grow
                door = " door" if n.path.name == "index.ipynb" else ""
                storey.append(
                    f'<a href="{escape(str(n.path))}"><title>{escape(n.title)}:'
                    f' {escape(n.plain_summary)}</title><rect class="room{door}" x="{x:.1f}"'
                    f' y="{top:.1f}" width="{w:.1f}" height="{ROOM}" rx="4"/><text'
                    f' class="name{door}" x="{x + w / 2:.1f}"'
                    f' y="{top + ROOM / 2 + 4.3:.1f}">{escape(n.label)}</text></a>'
                )
                x += w + GAP
            top += ROOM + GAP
        storey.append("</g>")
        parts.append("\n".join(storey))
        y += height
    bottom = y + 10
    ground = f'<path class="soil" d="M0 {y + 2}H{WIDTH}"/>'
    label = f"The kit as a house: {len(rooms)} notebooks on {len(floors)} floors, " + ", ".join(
        f"{FLOORS[f][0]} ({len(ns)})" for f, ns in floors.items()
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" class="house" viewBox="0 0 {WIDTH} {bottom:.0f}" width="{WIDTH}" height="{bottom:.0f}" role="img" aria-label="{escape(label)}">
<style>
.house {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; max-width: 100%; height: auto; }}
.house .wall {{ fill: hsl(var(--h) var(--s) 92%); stroke: hsl(var(--h) var(--s) 80%); }}
.house .edge, .house .chimney {{ fill: hsl(var(--h) var(--s) 45%); }}
.house .room {{ fill: #fff; stroke: hsl(var(--h) var(--s) 62%); }}
.house .floor {{ font-size: 15px; font-weight: 700; fill: hsl(var(--h) var(--s) 22%); }}
.house .what {{ font-size: 11px; fill: hsl(var(--h) var(--s) 28%); }}
.house .name {{ font-size: 12px; text-anchor: middle; fill: #1d232b; }}
.house .room.door {{ fill: hsl(var(--h) 30% 30%); stroke: none; }}
.house .name.door {{ fill: #fff; font-weight: 600; }}
.house a:hover .room, .house a:focus .room {{ stroke-width: 2.5; }}
.house .soil {{ stroke: #8a8a8a; stroke-width: 3; }}
@media (prefers-color-scheme: dark) {{
  .house .wall {{ fill: hsl(var(--h) var(--s) 15%); stroke: hsl(var(--h) var(--s) 27%); }}
  .house .room {{ fill: #14181d; stroke: hsl(var(--h) var(--s) 42%); }}
  .house .floor {{ fill: hsl(var(--h) var(--s) 86%); }}
  .house .what {{ fill: hsl(var(--h) var(--s) 76%); }}
  .house .name {{ fill: #e8ebee; }}
  .house .room.door {{ fill: hsl(var(--h) 25% 82%); }}
  .house .name.door {{ fill: #14181d; }}
}}
</style>
{chr(10).join(parts)}
{ground}
</svg>
"""
