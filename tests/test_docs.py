"The site that `make docs` builds: every notebook is a page, every link leads somewhere, nothing comes from the network, nothing hidden is shown."
import ast
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)


class Seen(HTMLParser):
    "Anchors, links, what a page loads, and its text (that of code apart)."

    def __init__(self, html: str):
        super().__init__()
        self.ids, self.links, self.loads, self.text, self.code, self.inside = (
            set(),
            [],
            [],
            [],
            [],
            [],
        )
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs: self.ids.add(attrs["id"])
        if tag == "a" and "href" in attrs: self.links.append(attrs["href"])
        elif "href" in attrs: self.loads.append(attrs["href"])
        self.loads += [
            attrs[a] for a in ("src", "srcset", "poster", "data") if a in attrs and tag != "a"
        ]
        if tag in ("pre", "code", "script", "style"): self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]: self.inside.pop()

    def handle_data(self, data):
        (self.code if self.inside else self.text).append(data)


def run(root: Path, out: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "docs/build.py", "--root", root, "--out", out],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    done = run(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Seen]:
    return {
        p.relative_to(site).as_posix(): Seen(p.read_text(encoding="utf-8"))
        for p in site.rglob("*.html")
    }


def page_of(notebook: Path) -> str:
    return notebook.relative_to(ROOT / "nbs").with_suffix(".html").as_posix()


def test_every_notebook_is_a_page_and_they_can_be_read_in_a_row(site, pages):
    assert {page_of(n) for n in NOTEBOOKS} <= set(pages)
    here, read = "index.html", []
    while here:
        read.append(here)
        m = re.search(r'rel="next" href="([^"]+)"', (site / here).read_text(encoding="utf-8"))
        here = os.path.normpath(Path(here).parent / m[1]) if m else None
        assert here not in read, f"{here} comes twice"
    assert set(read) == {page_of(n) for n in NOTEBOOKS}


def test_every_link_and_anchor_resolves(site, pages):
    followed = 0
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"(https?|mailto):", link): continue
            path, _, anchor = link.partition("#")
            goal = os.path.normpath(Path(name).parent / unquote(path)) if path else name
            assert (site / goal).is_file(), f"{name}: {link}"
            if anchor: assert unquote(anchor) in pages[goal].ids, f"{name}: {link}"
            followed += 1
    assert followed > 50 * len(NOTEBOOKS)  # every page has the whole contents at its side


def test_nothing_is_loaded_from_the_network(site, pages):
    for name, page in pages.items():
        for load in page.loads:
            assert not re.match(r"\w+:|//", load), f"{name} loads {load}"
            assert (
                site / Path(name).parent / unquote(load)
            ).is_file(), f"{name} loads {load}, which is not there"
    assert not re.search(r"url\(|@import", (site / "style.css").read_text())
    assert not re.search(
        r"https?:|fetch\(|XMLHttpRequest|import\(", (site / "search.js").read_text()
    )
    made = {p.suffix for p in site.rglob("*") if p.is_file()}
    assert made <= {
        ".html",
        ".css",
        ".js",
        ".png",
        ".jpeg",
        ".md",
        ".py",
        ".svg",
        ".json",
        ".txt",
    }, made


def test_hidden_cells_and_directives_do_not_leak(pages):
    hidden = 0
    for notebook in NOTEBOOKS:
        cells = [
            dict(c, source="".join(c["source"]))
            for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        ]
        is_hidden = [bool(re.search(r"^#\|\s*hide\b", c["source"], re.M)) for c in cells]
        shown = "\n".join(c["source"] for c, h in zip(cells, is_hidden) if not h)
        page = pages[page_of(notebook)]
        text = "".join(page.code) + "".join(page.text)
        assert not re.search(r"^#\|", text, re.M), notebook
        for c in (c for c, h in zip(cells, is_hidden) if h):
            for line in (line.strip() for line in c["source"].splitlines()):
                if len(line) > 12 and line not in shown:
                    hidden += 1
                    assert line not in text, f"{notebook}: {line}"
    assert hidden > 20


def test_shown_code_and_its_prints_are_complete(pages):
    for notebook in NOTEBOOKS:
        text = "".join(pages[page_of(notebook)].code)
        for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            source = "".join(c["source"])
            if c["cell_type"] != "code" or re.search(r"^#\|\s*(hide|echo:\s*false)", source, re.M):
                continue
            code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
            assert code in text, f"{notebook} does not show\n{code}"
            for o in c["outputs"]:
                if o["output_type"] == "stream" and not re.search("[\x1b\r]", "".join(o["text"])):
                    assert "".join(o["text"]).rstrip() in text, notebook


def test_formulas_are_set(pages):
    formulas = sum(
        "".join(c["source"]).count("$") // 2
        for n in NOTEBOOKS
        for c in json.loads(n.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "markdown"
    )
    assert formulas > 50
    for name, page in pages.items():
        left = re.search(
            r"\\(frac|mathrm|sum|in|top|left|begin|theta|epsilon|times|cdot)\b|\$\S",
            "".join(page.text),
        )
        assert not left, f"{name} shows LaTeX: {left[0]}"


def test_formulas_use_letters_that_browsers_have():
    from build import formula
    assert (
        "<mi>ℒ</mi>" in formula(r"\mathcal L", "inline")
        and "<mi>𝔼</mi>" in formula(r"\mathbb E", "inline")
        and "<mi>𝔄</mi>" in formula(r"\mathfrak A", "inline")
    )
    assert formula(r"[-1, 1]", "inline").count(
        'form="prefix"'
    ) == 1 and 'form="prefix"' not in formula("a - b", "inline")
    assert '<msup><mo stretchy="false">&#x02016;</mo>' in formula(r"\lVert a\rVert^2", "inline")


def test_long_paths_can_be_broken():
    from build import breakable
    assert (
        breakable("<td title='a/b.c_d/e/f/g/h/i/j/k/l'>videos/chunk-000/front_0.mp4 a/b</td>")
        == "<td title='a/b.c_d/e/f/g/h/i/j/k/l'>videos/<wbr>chunk-000/<wbr>front_<wbr>0.<wbr>mp4"
        " a/b</td>"
    )


def test_the_house_names_every_notebook_and_is_current(pages):
    from house import house
    svg = house(ROOT)
    assert (
        svg == house(ROOT) == (ROOT / "nbs/house.svg").read_text(encoding="utf-8")
    ), "run make export"
    assert sorted(re.findall(r'<a href="([^"]+)">', svg)) == sorted(
        n.relative_to(ROOT / "nbs").as_posix() for n in NOTEBOOKS
    )
    drawing = re.search(
        r'<svg xmlns[^>]*class="house".*?</svg>', (ROOT / "nbs/house.svg").read_text(), re.S
    )[0]
    boxes = [
        tuple(map(float, b))
        for b in re.findall(
            r'class="room[^"]*" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', drawing
        )
    ]
    assert len(boxes) == len(NOTEBOOKS)
    for x, y, w in boxes:
        assert 0 < x and x + w < 960
        assert not any(y == y2 and x < x2 < x + w for x2, y2, _ in boxes), "two rooms overlap"


def test_the_first_page_shows_the_house_with_links_to_pages(site):
    html = (site / "index.html").read_text(encoding="utf-8")
    drawing = re.search(r'<svg[^>]*class="house".*?</svg>', html, re.S)[0]
    assert sorted(re.findall(r'<a href="([^"]+)">', drawing)) == sorted(
        page_of(n) for n in NOTEBOOKS
    )


def test_the_index_of_names_has_what_the_package_exports(site):
    listed = {}
    for module, name in re.findall(
        r'#([\w.]+?)\.((?:[\w]+\.)?\w+)"><code>\2</code>',
        (site / "names.html").read_text(encoding="utf-8"),
    ):
        if "." not in name: listed.setdefault(module, set()).add(name)
    for file in (ROOT / "gr00t_nb").rglob("*.py"):
        body = ast.parse(file.read_text()).body
        names = next(
            (
                ast.literal_eval(n.value)
                for n in body
                if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
            ),
            [],
        )
        elsewhere = {
            a.name for n in body if isinstance(n, ast.ImportFrom) for a in n.names
        }  # handed on: they stand where they are made
        module = file.relative_to(ROOT / "gr00t_nb").with_suffix("").as_posix().replace("/", ".")
        if made := {n for n in names if not n.startswith("_")} - elsewhere:
            assert listed.get(module) == made, module


def test_the_search_finds_names_and_sections(site, pages):
    entries = json.loads(
        (site / "search-index.js")
        .read_text(encoding="utf-8")
        .removeprefix("const SEARCH_INDEX = ")
        .rstrip(";\n")
    )
    for url, what, where, text in entries:
        path, _, anchor = url.partition("#")
        assert path in pages and (not anchor or anchor in pages[path].ids), url
        assert what
    found = {what for _, what, _, _ in entries}
    assert {"LeRobotDataset", "LeRobotDataset.frames", "finetune", "See it work"} <= found
    assert (site / "search-index.js").stat().st_size < 1_500_000


# ---------------------------------------------------------------- what stops a build
HEAD = "# first\n\n> a page\n\n"


def checkout(folder: Path, **notebooks) -> Path:
    for name, cells in notebooks.items():
        path = folder / "nbs" / (name.replace("__", "/") + ".ipynb")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(new_notebook(cells=cells)), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "cells, sentence",
    [
        (
            [new_markdown_cell(HEAD + "[there](data/00_none.ipynb)")],
            (
                "nbs/index.ipynb: the link (data/00_none.ipynb) leads nowhere: there is no such"
                " file in the checkout."
            ),
        ),
        (
            [new_markdown_cell(HEAD + "[there](../../../etc/passwd)")],
            "the link (../../../etc/passwd) leads nowhere",
        ),
        (
            [new_markdown_cell(HEAD + "[there](../nbs)")],
            "the link (../nbs) is a folder: link to a file in it.",
        ),
        (
            [new_markdown_cell(HEAD + "[there](#nothing)")],
            "the link (#nothing) names a section that nbs/index.ipynb does not have.",
        ),
        (
            [new_markdown_cell(HEAD + "![p](https://example.org/p.png)")],
            "would be loaded from the network: put it into the checkout.",
        ),
        ([new_markdown_cell(HEAD + "![p](p.png)")], "the link (p.png) leads nowhere"),
        (
            [new_markdown_cell(HEAD + r"$\frac{1$")],
            (
                r"nbs/index.ipynb: the formula $\frac{1$ cannot be set (its braces do not match):"
                r" write it with plainer LaTeX."
            ),
        ),
        ([new_markdown_cell(HEAD + r"$\fraq{1}{2}$")], r"cannot be set (\fraq is not known)"),
        (
            [new_markdown_cell(HEAD + r"$x^1^2$")],
            r"the formula $x^1^2$ cannot be set (DoubleSuperscriptsError)",
        ),
        (
            [new_markdown_cell("some words")],
            "nbs/index.ipynb does not begin with a title and a summary",
        ),
        (
            [
                new_markdown_cell(HEAD),
                new_code_cell(
                    "1/0",
                    outputs=[
                        new_output(
                            "error",
                            ename="ZeroDivisionError",
                            evalue="division by zero",
                            traceback=[],
                        )
                    ],
                ),
            ],
            "was stored with an error (ZeroDivisionError: division by zero)",
        ),
        (
            [
                new_markdown_cell(HEAD),
                new_code_cell(
                    "x", outputs=[new_output("display_data", {"application/x-of-tomorrow": "?"})]
                ),
            ],
            "shows only application/x-of-tomorrow, which no page can",
        ),
    ],
)
def test_a_fault_stops_the_build_with_a_sentence(tmp_path, cells, sentence):
    done = run(checkout(tmp_path / "kit", index=cells), tmp_path / "site")
    assert (
        done.returncode == 1 and done.stderr.startswith("error: ") and sentence in done.stderr
    ), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "site").exists()


def test_all_broken_links_are_named_at_once(tmp_path):
    done = run(
        checkout(tmp_path / "kit", index=[new_markdown_cell(HEAD + "[a](a.ipynb) [b](b.ipynb)")]),
        tmp_path / "site",
    )
    assert "(a.ipynb)" in done.stderr and "(b.ipynb)" in done.stderr


def test_a_folder_that_the_house_does_not_know(tmp_path):
    kit = checkout(
        tmp_path / "kit",
        index=[new_markdown_cell(HEAD)],
        cellar__00_wine=[new_markdown_cell("# wine\n\n> red\n")],
    )
    assert (
        "on a floor that the house does not have: add 'cellar' to FLOORS" in run(
            kit, tmp_path / "site"
        ).stderr
    )


def test_only_a_site_is_replaced(tmp_path):
    kit, out = checkout(tmp_path / "kit", index=[new_markdown_cell(HEAD)]), tmp_path / "site"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    done = run(kit, out)
    assert (
        done.returncode == 1
        and "holds something that is no site of this kit" in done.stderr
        and (out / "thesis.tex").read_text() == "years of work"
    )
    (out / "thesis.tex").unlink()
    assert run(kit, out).returncode == 0
    (out / "old.html").write_text("a notebook that is gone")
    assert run(kit, out).returncode == 0 and not (out / "old.html").exists()


def test_what_a_page_makes_of_cells(tmp_path):
    widget = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "a"},
        "text/plain": "Viewer(episode=0)",
    }
    cells = [
        new_markdown_cell(
            HEAD
            + "## One\n\nSee [two](data/00_two.ipynb#A-Section) and `two.open_it()`, `open_it`."
        ),
        new_code_cell("#| hide\nsecret = 1"),
        new_code_cell(
            "#| echo: false\nprint('x')",
            outputs=[new_output("stream", name="stdout", text="10%\r50%\r100%\nthe end\n")],
        ),
        new_code_cell(
            "from gr00t_nb.data.two import open_it\nopen_it(1)",
            outputs=[new_output("execute_result", widget)],
        ),
        new_code_cell(
            "a < b", outputs=[new_output("stream", name="stderr", text="\x1b[31m<red>\x1b[0m\n")]
        ),
    ]
    two = [
        new_markdown_cell("# data.two\n\n> The second"),
        new_code_cell("#| default_exp data.two"),
        new_markdown_cell("## A Section\n"),
        new_code_cell(
            "#| export\ndef open_it(x): return x\n\ndef _private(): pass\n\nCOLOURS = {}"
        ),
        new_code_cell("#| export\n@patch\ndef near(self: Box): 'Is it near?'"),
    ]
    all_of_it = [
        new_markdown_cell("# data.all\n\n> Both"),
        new_code_cell("#| default_exp data.all"),
        new_code_cell("#| export\nfrom gr00t_nb.data.two import open_it\n_all_ = ['open_it']"),
    ]
    kit, out = (
        checkout(tmp_path / "kit", index=cells, data__00_two=two, data__10_all=all_of_it),
        tmp_path / "site",
    )
    assert run(kit, out).returncode == 0
    first, second = (out / "index.html").read_text(encoding="utf-8"), (
        out / "data/00_two.html"
    ).read_text(encoding="utf-8")
    assert (
        "secret" not in first
        and "print(" not in first
        and "10%" not in first
        and "100%\nthe end" in first
    )
    assert "Viewer(episode=0)" in first and '<span class="ansi-red-fg">&lt;red&gt;</span>' in first
    assert 'href="data/00_two.html#a-section">two</a>' in first  # JupyterLab's spelling of the anchor
    assert (
        first.count('href="data/00_two.html#data.two.open_it"') == 3
    )  # once in the prose, at the import and at the call
    assert (
        all(f'id="data.two.{n}"' in second for n in ("open_it", "COLOURS", "Box.near"))
        and "_private" in second
        and 'id="data.two._private"' not in second
    )
    names = (out / "names.html").read_text(encoding="utf-8")
    assert "Is it near?" in names and "_private" not in names
    assert (
        'href="data/00_two.html#data.two.open_it"' in names
        and 'href="data/10_all.html#data.all.open_it"' in names
    )  # where it is defined, and where it is offered too
