"""How `make docs` makes the site: one page a notebook, from the outputs as committed.

Nothing is executed and nothing comes from the network: formulas become MathML, and the pages can be
opened from disk.
"""
import json
import re
import sys
from functools import partial
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from house import FLOORS, DocsError, notebooks
from sphinx.util import logging

project = author = "gr00t_nb"
html_title = "gr00t_nb"
extensions = ["myst_nb"]
exclude_patterns = ["**.ipynb_checkpoints", "**/_*"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nitpicky = True
html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = html_show_copyright = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses from disk

NAMES = "All names"  # what the page of them is called


def shelves(books) -> list[tuple[str, list[str]]]:  # heading, pages in the order of reading
    "The tutorials, then the floors from the ground."
    found = []
    for floor in ("tutorials", *(f for f in FLOORS if f != "tutorials")):
        pages = [str(b.path.with_suffix("")) for b in books if b.floor == floor]
        pages = [p for p in pages if p != "index"]
        if pages: found.append((", ".join(FLOORS[floor]), pages))
    return found


def contents(books) -> dict:
    "A cell with the order of the pages: the tutorials, the floors from the ground, the names."
    lines = []
    for heading, pages in shelves(books):
        lines += ["```{toctree}", ":hidden:", f":caption: {heading}", "", *pages, "```", ""]
    lines += ["```{toctree}", ":hidden:", ":caption: more", "", f"{NAMES} <genindex>", "```"]
    return dict(cell_type="markdown", id="contents", metadata={}, source="\n".join(lines))


def menu(app, page: str, template, context: dict, doctree, books):
    "All pages, at the left of each. Furo asks Sphinx for them page by page: half of the build."
    up, lines, plain = "../" * page.count("/"), [], partial(escape, quote=False)
    titles = {name: title.astext() for name, title in app.env.titles.items()} | dict(genindex=NAMES)
    for heading, pages in [*shelves(books), ("more", ["genindex"])]:
        text = f'<span class="caption-text">{plain(heading)}</span>'
        lines += [f'<p class="caption" role="heading">{text}</p>', "<ul>"]
        for goal in pages:
            item, kind, href = "", "", f"{up}{goal}.html"
            if goal == page: item, kind, href = " current current-page", "current ", "#"
            link = f'<a class="{kind}reference internal" href="{href}">{plain(titles[goal])}</a>'
            lines.append(f'<li class="toctree-l1{item}">{link}</li>')
        lines.append("</ul>")
    context["furo_navigation_tree"] = "\n".join(lines)


def no_menu(app, page: str, template, context: dict, doctree):
    "Keeps Furo from asking."
    if "toctree" in context: context["toctree"] = lambda **how: ""


def with_files(text: str, folder: Path) -> str:
    "An SVG stands in the page itself, so that its links can be followed; a Markdown file is offered as it is."
    def drawing(m):
        if not (folder / m[2]).is_file(): return m[0]  # Sphinx will say so
        svg = (folder / m[2]).read_text(encoding="utf-8")
        svg = re.sub(r'(<a href="[^":]+)\.ipynb"', r'\1.html"', svg)
        return f"\n```{{raw}} html\n<div class=drawing>{svg}</div>\n```\n"
    text = re.sub(r"!\[([^\]]*)\]\(([^):]+\.svg)\)", drawing, text)
    return re.sub(r"\[([^\]]*)\]\(([^):]+\.md)\)", r"{download}`\1 <\2>`", text)


def code_cell(cell: dict, text: str, heading: str) -> dict | None:
    "A cell as the reader sees it: its directives followed and taken out; None if nothing is left."
    said = dict(re.findall(r"^#\|[ ]*([\w-]+):?[ ]*(.*)$", text, re.M))
    shown = re.sub(r"^#\|.*\n?", "", text, flags=re.M).strip("\n")
    if "hide" in said or not (shown or cell["outputs"]): return None
    tags = ["export"] if said.keys() & {"export", "exports"} else []
    if said.get("echo") == "false": tags.append("remove-input")
    about = said.get("fig-alt") or f"picture in “{heading}”"
    metadata = dict(tags=tags, mystnb=dict(image=dict(alt=about)))
    return dict(cell, source=shown, metadata=metadata)


def readable(app, docname: str, source: list[str], books):
    "The notebook as its page shows it."
    nb, cells, heading = json.loads(source[0]), [], ""
    for cell in nb["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell = code_cell(cell, text, heading)
        else:
            heading = ([heading] + re.findall(r"^#+ (.+)$", text, re.M))[-1]
            cell = dict(cell, source=with_files(text, app.env.doc2path(docname).parent))
        if cell: cells.append(cell)
    if docname == "index": cells.insert(1, contents(books))
    source[0] = json.dumps(dict(nb, cells=cells))


def mathml(latex: str, block: bool) -> str:
    "A formula for browsers, or MathError."
    bare = re.sub(r"\\.", "", latex)
    if bare.count("{") != bare.count("}"): raise MathError("Its braces do not match.")
    plain = re.sub(r"\\big(?![a-z])", "", latex).replace(r"\dots", r"\ldots")  # docutils lacks both
    bar = r'<mo( class="\w+")?>([‖∥|])</mo>'  # as high as its letters, as TeX sets it
    return re.sub(bar, r'<mo\1 stretchy="false">\2</mo>', tex2mathml(plain, as_block=block))


def formula(self, node):
    "LaTeX as MathML, which needs no script and no fonts."
    latex = node.astext().strip()
    try:
        self.body.append(mathml(latex, node.tagname == "math_block"))
    except MathError as e:
        sentence = f"the formula {latex} cannot be set: {e} Write it with plainer LaTeX."
        logging.getLogger(__name__).warning(sentence, location=node)
    raise SkipNode


def setup(app):
    try: books = notebooks(Path(app.srcdir).parent)
    except DocsError as e: sys.exit(f"error: {e}")
    app.setup_extension("names")
    app.connect("source-read", lambda *event: readable(*event, books))
    app.connect("html-page-context", no_menu, priority=400)  # Furo's is 500
    app.connect("html-page-context", partial(menu, books=books), priority=600)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
