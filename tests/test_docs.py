"""The site that `make docs` builds.

Every notebook is a page, every link leads somewhere, nothing comes from the network, and nothing
hidden is shown.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from house import FLOORS, DocsError, house, notebooks

for package in ("sphinx", "myst_nb", "furo"):
    pytest.importorskip(package, reason=f"the site needs {package}: pip install -e '.[dev]'")
BOOKS = notebooks(ROOT)
IN_ORDER = BOOKS[:1] + sorted(BOOKS[1:], key=lambda b: b.floor != "tutorials")  # these come first
CELLS = {
    b.path: [
        dict(c, source="".join(c["source"]))
        for c in json.loads((ROOT / "nbs" / b.path).read_text(encoding="utf-8"))["cells"]
    ]
    for b in BOOKS
}


class Seen(HTMLParser):
    "Of a page: anchors, links, what it loads, its text, and how many formulas it has."

    def __init__(self, html: str):
        super().__init__()
        self.ids, self.links, self.loads, self.alts = set(), [], [], []
        self.words, self.formulas, self.quiet = [], 0, 0
        self.feed(html)
        self.text = "".join(self.words)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs: self.ids.add(attrs["id"])
        if tag == "a" and "href" in attrs: self.links.append(attrs["href"])
        elif "href" in attrs: self.loads.append(attrs["href"])
        loads = [attrs[a] for a in ("src", "srcset", "poster", "data") if a in attrs]
        self.loads += [place for place in loads if not place.startswith("data:")]  # the picture itself
        if tag == "img": self.alts.append(attrs.get("alt"))
        self.formulas += tag == "math"
        self.quiet += tag in ("script", "style")

    def handle_endtag(self, tag): self.quiet -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.quiet: self.words.append(data)


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    "As `make docs` does."
    options = ["-q", "-W", "--keep-going", "-j", "auto", "-c", ROOT / "docs"]
    command = [sys.executable, "-m", "sphinx", *options, root / "nbs", out]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Seen]:
    files = {p.relative_to(site).as_posix(): p for p in site.rglob("*.html")}
    return {name: Seen(p.read_text(encoding="utf-8")) for name, p in files.items()}


def page_of(book) -> str: return str(book.path.with_suffix(".html"))


def test_the_notebooks_are_read_in_a_row_the_tutorials_first(site):
    here, read = "index.html", []
    while here:
        assert here not in read, f"{here} comes twice"
        read.append(here)
        following = re.search(r'rel="next"[^>]* href="([^"]+)"', (site / here).read_text())
        here = following and os.path.normpath(Path(here).parent / following[1])
    assert read == [page_of(b) for b in IN_ORDER]


def test_the_menu_of_every_page_lists_all_in_that_order_and_marks_it(site):
    listed = [page_of(b) for b in IN_ORDER[1:]] + ["genindex.html"]
    for name in ["index.html", *listed]:
        html = (site / name).read_text()
        menu = re.findall(r'<li class="toctree-l1([^"]*)"><a class="([^"]*)" href="([^"]+)">', html)
        goals = [name if g == "#" else os.path.normpath(Path(name).parent / g) for _, _, g in menu]
        assert goals == listed, name
        marks = [(item.strip(), kind.partition(" ")[0]) for item, kind, _ in menu]
        here = [g for g, mark in zip(goals, marks) if mark == ("current current-page", "current")]
        assert here == [name] * (name in listed), name


def test_every_link_and_anchor_resolves_and_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        for link in page.links + page.loads:
            if link in page.links and re.match(r"(https?|mailto):", link): continue
            path, _, anchor = unquote(link).partition("#")
            goal = os.path.normpath(Path(name).parent / path.partition("?")[0]) if path else name
            assert (site / goal).is_file(), f"{name}: {link}"
            if anchor and goal in pages: assert anchor in pages[goal].ids | {"/"}, f"{name}: {link}"
    for style in site.rglob("*.css"):
        assert not re.search(r"""(url\(|@import )["']?(https?:)?//""", style.read_text()), style


def test_cells_are_shown_as_their_directives_say(pages):
    hidden = shown = 0
    for book in BOOKS:
        page, texts = pages[page_of(book)], []
        assert not re.search(r"^#\|", page.text, re.M), book.path
        for cell in CELLS[book.path]:
            if cell["cell_type"] != "code": continue
            if re.search(r"^#\|\s*(hide\b|echo:\s*false)", cell["source"], re.M): continue
            code = re.sub(r"^#\|.*\n?", "", cell["source"], flags=re.M).strip()
            assert code in page.text, f"{book.path} does not show\n{code}"
            texts.append(cell["source"])
            shown += 1
        for cell in CELLS[book.path]:
            if not re.match(r"#\|\s*hide\b", cell["source"]): continue
            for line in map(str.strip, cell["source"].splitlines()):
                if len(line) < 13 or any(line in text for text in texts): continue
                hidden += 1
                assert line not in page.text, f"{book.path}: {line}"
    assert hidden > 20 and shown > 20 * hidden ** 0.5


def test_pictures_say_what_they_show(pages):
    source = "\n".join(c["source"] for c in CELLS[BOOKS[0].path])
    said = re.findall(r"^#\|\s*fig-alt:\s*(.+)$", source, re.M)
    assert said and set(said) <= set(pages["index.html"].alts)
    assert all(alt for page in pages.values() for alt in page.alts)


def test_formulas_are_set(pages):
    assert sum(page.formulas for page in pages.values()) > 50
    for book in BOOKS:
        prose = "".join(c["source"] for c in CELLS[book.path] if c["cell_type"] == "markdown")
        prose = re.sub(r"```.*?```|`[^`]*`", "", prose, flags=re.S)
        written = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", prose, re.S)
        assert pages[page_of(book)].formulas == len(written), book.path


def test_names_in_code_letters_lead_to_their_cells(pages):
    link = "../model/20_flow.html#gr00t_nb.model.flow.sample_flow_time"
    assert link.removeprefix("../") in pages["genindex.html"].links
    prose = [link for name in map(page_of, BOOKS) for link in pages[name].links]
    assert sum("html#gr00t_nb." in link for link in prose) > 50


def test_the_house_names_every_notebook_and_is_current(pages):
    svg = house(ROOT)
    assert svg == (ROOT / "nbs/house.svg").read_text(encoding="utf-8"), "run make export"
    assert sorted(re.findall(r'<a href="([^"]+)">', svg)) == sorted(str(b.path) for b in BOOKS)
    numbers = r'class="room[^"]*" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"'
    boxes = [tuple(map(float, box)) for box in re.findall(numbers, svg)]
    for x, y, w in boxes:
        assert 0 < x and x + w < 960
        assert not any(y == y2 and x < x2 < x + w for x2, y2, _ in boxes), "two rooms overlap"
    names = re.findall(r'class="floor"[^>]*>(\w+)<', svg)
    assert names[0] == "tutorials" and set(names) <= {name for name, _ in FLOORS.values()}
    assert {page_of(b) for b in BOOKS} <= set(pages["index.html"].links)


# ---------------------------------------------------------------- what stops the build
KERNEL = dict(name="python3", display_name="python3", language="python")
HEAD = "# Start\n\n> Here it starts\n\n"


def checkout(root: Path, **books: list) -> Path:
    "A kit of a few notebooks: `data__00_two=[cell, ...]` is nbs/data/00_two.ipynb."
    for name, cells in books.items():
        path = root / "nbs" / (name.replace("__", "/") + ".ipynb")
        path.parent.mkdir(parents=True, exist_ok=True)
        nb = new_notebook(cells=cells, metadata=dict(kernelspec=KERNEL))
        path.write_text(json.dumps(nb), encoding="utf-8")
    return root


def test_what_a_page_makes_of_cells(tmp_path):
    drawn = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    cells = [
        new_markdown_cell(HEAD + "See [two](data/00_two.ipynb#a-section), `open_it()`, $x^2$."),
        new_code_cell("#| hide\nsecret = 1"),
        new_code_cell("#| echo: false\n#| fig-alt: A dot\ndraw()", outputs=[drawn]),
    ]
    two = [
        new_code_cell("#| default_exp data.two"),
        new_markdown_cell("# two\n\n> The second\n\n## A section"),
        new_code_cell("#| export\ndef open_it(x): return x\n\ndef _private(): pass"),
    ]
    done = build(checkout(tmp_path / "kit", index=cells, data__00_two=two), tmp_path / "site")
    assert done.returncode == 0, done.stderr
    first = Seen((tmp_path / "site/index.html").read_text())
    assert "secret" not in first.text and "draw()" not in first.text and "A dot" in first.alts
    name = "gr00t_nb.data.two.open_it"
    assert {"data/00_two.html#a-section", f"data/00_two.html#{name}"} <= set(first.links)
    second = Seen((tmp_path / "site/data/00_two.html").read_text())
    assert name in second.ids and not any("_private" in i for i in second.ids)


def test_every_fault_is_named(tmp_path):
    links = "[a](a.ipynb), [b](#nothing), [c](data/00_two.ipynb#no), [d](d.md)"
    pictures = " ![e](e.png) ![f](f.svg)"
    cells = [new_markdown_cell(HEAD + links + pictures + r" $\fraq{1}{2}$ and $\frac{1$")]
    two = [new_markdown_cell("# two\n\n> The second")]
    done = build(checkout(tmp_path / "kit", index=cells, data__00_two=two), tmp_path / "site")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    for fault in ("'a.ipynb'", "'nothing'", "'no'", "d.md", "e.png", "f.svg"):
        assert re.search(f"nbs/index.ipynb:.*{fault}", done.stderr), f"{fault}\n{done.stderr}"
    assert r"the formula \fraq{1}{2} cannot be set: Unknown LaTeX command" in done.stderr
    assert r"the formula \frac{1 cannot be set" in done.stderr


@pytest.mark.parametrize(
    "books, sentence",
    [
        (dict(data__00_a=["a"]), "data/00_a.ipynb does not begin with a title and a summary"),
        (dict(data__00_a=["# a\n\n> a"], data__10_b=["# a\n\n> b"]), "have the same title, 'a'"),
        (dict(cellar__00_wine=["# wine\n\n> red"]), "add 'cellar' to FLOORS"),
    ],
)
def test_titles_and_floors(tmp_path, books, sentence):
    books = {name: [new_markdown_cell(text) for text in texts] for name, texts in books.items()}
    kit = checkout(tmp_path / "kit", index=[new_markdown_cell(HEAD)], **books)
    with pytest.raises(DocsError, match=re.escape(sentence)): notebooks(kit)
    if "cellar__00_wine" not in books: return
    done = build(kit, tmp_path / "site")
    assert done.returncode == 1 and re.match(f"error: .*{sentence}", done.stderr)


# ---------------------------------------------------------------- in a browser
@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program: pytest.skip("no Chromium: sudo apt-get install -y chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        yield p.chromium.launch(executable_path=program, args=["--no-sandbox"])


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
def test_the_site_from_disk(browser, site, scheme, width):
    "Without server and network, no wider than the window; what is searched is found."
    page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
    complaints = []
    page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("requestfailed", lambda r: complaints.append(f"failed: {r.url}"))
    page.on("request", lambda r: r.url.startswith("file:") or complaints.append(f"asks {r.url}"))
    for name in ("index", "tutorials/10_look_at_your_data", "model/20_flow"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    formula = page.locator("math[display=block]").first.bounding_box()
    assert formula["height"] > 15 and formula["width"] > 50
    page.goto((site / "search.html").as_uri() + "?q=sample_flow_time")
    found = page.locator("#search-results li a").first
    found.wait_for()
    assert "gr00t_nb.model.flow.sample_flow_time" in found.inner_text()
    found.click()
    page.wait_for_url(re.compile(r"20_flow\.html.*#gr00t_nb\.model\.flow\.sample_flow_time"))
    assert not complaints
    page.close()
