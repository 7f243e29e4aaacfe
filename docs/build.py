"""The notebooks as a site that needs no network: what `make docs` runs.

`python docs/build.py [--out _docs]` makes one page of every notebook, with its code, outputs and pictures; the pages link to each other and can be
opened from disk. Hidden cells are left out, formulas become MathML, and a link that leads nowhere stops the build with a sentence.
"""
import argparse
import ast
import base64
import json
import os
import re
import shutil
import struct
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from house import FLOORS, DocsError, Notebook, house, notebooks
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from latex2mathml.converter import convert as mathml
from markupsafe import Markup
from nbconvert.filters import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

HERE = Path(__file__).resolve().parent
MARK = '<meta name="generator" content="docs/build.py">'  # by which a site is known that may be replaced
SHOWN = (
    "image/svg+xml",
    "text/html",
    "text/markdown",
    "text/latex",
    "image/png",
    "image/jpeg",
    "text/plain",
)  # the first of these that an output has
ORDER = (
    "tutorials",
    *(f for f in FLOORS if f != "tutorials"),
)  # of the navigation: behind the first page the tutorials, then the floors from the ground


# ---------------------------------------------------------------- what is read
@dataclass
class Name:
    "Something that a notebook exports."
    name: str  # f, Class, Class.method
    page: str  # data/00_video.html
    module: str  # data.video
    about: str  # first line of the docstring
    kind: str  # function, class, method or value; or 'again': imported, and offered under this module too

    @property
    def url(self) -> str: return f"{self.page}#{self.module}.{self.name}"


@dataclass
class Page:
    source: PurePosixPath  # below the checkout
    url: str  # below the site
    title: str
    summary: str = ""  # Markdown
    notebook: Notebook | None = None
    label: str = ""  # in the navigation
    body: str = ""
    names: list[Name] = field(default_factory=list)
    headings: list[tuple[int, str, str]] = field(default_factory=list)  # level, anchor, text
    sections: list[tuple[str, str, str]] = field(default_factory=list)  # anchor, heading, words
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)

    @property
    def plain_summary(self) -> str: return re.sub(r"[`*$]", "", self.summary)


def slug(text: str) -> str:
    "An anchor as GitHub makes it; JupyterLab's, which keep capitals and signs, come out the same."
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", text.strip().lower()))


def directives(source: str) -> dict[str, str]:
    "`#| export`, `#| echo: false` at the top of a cell, by name."
    return {m[1]: m[2].strip() for m in re.finditer(r"^#\|\s*(\w+):?(.*)$", source, re.M)}


def exported(source: str) -> list[tuple[str, str, str]]:
    "Names that a cell brings into the package: name, first line of its docstring, kind. Methods by `Class.method`, also those of `@patch`."
    def about(node): return (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, functions):
            patches = [
                d
                for d in node.decorator_list
                if (d.func if isinstance(d, ast.Call) else d).__dict__.get("id") == "patch"
            ]
            owners = (
                re.findall(r"\w+", ast.unparse(node.args.args[0].annotation))
                if patches and node.args.args and node.args.args[0].annotation
                else []
            )
            found += [(f"{o}.{node.name}", about(node), "method") for o in owners] or [
                (node.name, about(node), "function")
            ]
        elif isinstance(node, ast.ClassDef):
            found += [(node.name, about(node), "class")] + [
                (f"{node.name}.{n.name}", about(n), "method")
                for n in node.body
                if isinstance(n, functions)
            ]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if getattr(targets[0], "id", "") == "_all_":
                found += [
                    (e.value, "", "again")
                    for e in getattr(node.value, "elts", [])
                    if isinstance(e, ast.Constant)
                ]
            found += [
                (t.id, "", "value")
                for t in (e for t in targets for e in getattr(t, "elts", [t]))
                if isinstance(t, ast.Name)
            ]
    return [f for f in found if not any(p.startswith("_") for p in f[0].split("."))]


def breakable(html: str) -> str:
    "Long paths and names in a table may go on in the next line behind / . and _."
    def words(m):
        return re.sub(r"\S{20,}", lambda w: re.sub(r"(?<=\w)([/._])(?=\w)", r"\1<wbr>", w[0]), m[0])
    return re.sub(r"(?<=>)[^<]+", words, html)


def imported(source: str) -> dict[str, str]:
    "Names that a cell takes from the package: as it calls them -> as their module does."
    try: tree = ast.parse(source)
    except SyntaxError: return {}
    return {
        a.asname or a.name: a.name
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("gr00t_nb")
        for a in n.names
    }


def formula(latex: str, display: str) -> str:
    "LaTeX as MathML that browsers set as TeX does: they ignore `mathvariant` but for upright letters, and stretch bars and misplace signs that TeX does not."
    def letter(m):
        style = {
            "script": ("SCRIPT", "SCRIPT"),
            "double-struck": ("DOUBLE-STRUCK", "DOUBLE-STRUCK"),
            "fraktur": ("FRAKTUR", "BLACK-LETTER"),
        }.get(m[1])
        if not style or not m[2].isalpha(): return m[0]
        size = f"{'CAPITAL' if m[2].isupper() else 'SMALL'} {m[2].upper()}"
        for name in (
            f"MATHEMATICAL {style[0]} {size}",
            f"{style[1]} {size}",
        ):  # some letters had a place in Unicode before the others
            try: return f"<mi>{unicodedata.lookup(name)}</mi>"
            except KeyError: pass
        return m[0]
    html = mathml(latex, display=display)
    bare = re.sub(r"\\.", "", latex)
    if bare.count("{") != bare.count("}"): raise ValueError("its braces do not match")
    if unknown := re.search(r">(\\\w+)<", html): raise ValueError(f"{unknown[1]} is not known")
    html = re.sub(r'<mi mathvariant="([\w-]+)">(\w)</mi>', letter, html)
    html = re.sub(r"<mo>(&#x02016;|&#x0007C;|\|)</mo>", r'<mo stretchy="false">\1</mo>', html)
    return re.sub(
        r"(<mo[^>]*>(?:&#x000?28;|&#x000?5B;|&#x000?2C;|&#x000?3D;|[(\[,=])</mo>)<mo>(&#x02212;|&#x0002B;)</mo>",
        r'\1<mo form="prefix">\2</mo>',
        html,
    )


# ---------------------------------------------------------------- what is written
class Writer(IPythonRenderer):
    "Markdown of one page to HTML: anchors, checked links, formulas, code in colour."

    def __init__(self, site: "Site", page: Page):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.site, self.page = site, page

    def heading(self, text, level, **attrs):
        plain = unescape(re.sub(r"<[^>]+>", "", text))
        anchor = base = slug(plain) or "section"
        n = 1
        while anchor in self.page.ids:
            n += 1
            anchor = f"{base}-{n}"
        self.page.ids.add(anchor)
        self.page.headings.append((level, anchor, plain))
        return (
            f'<h{level} id="{anchor}">{text}<a class="here" href="#{anchor}" aria-label="link to'
            f' this section">#</a></h{level}>\n'
        )

    def link(self, text, url, title=None):
        text = re.sub(r"</?a\b[^>]*>", "", text)  # a name inside a link needs no link of its own
        away = re.match(r"[a-z]+:", url)
        return (
            f'<a href="{escape(self.site.link(self.page, url))}"{" class=away rel=noopener" if away else ""}{f" title={chr(34)}{escape(title)}{chr(34)}" if title else ""}>{text}</a>'
        )

    def image(self, text, url, title=None):
        return self.site.picture(self.page, unescape(text), url)

    def block_code(self, code, info=None):
        return self.site.code(code.rstrip("\n"), (info or "").split(" ")[0] or None)

    def codespan(self, text):
        target = self.site.find(self.page, unescape(text))
        code = f"<code>{text}</code>"  # mistune has escaped it
        return f'<a class="name" href="{target}">{code}</a>' if target else code

    def table(self, text): return f'<div class="scroll"><table>{text}</table></div>\n'

    def _formula(self, latex, display):
        try:
            return formula(unescape(latex).strip(), display)
        except Exception as e:
            raise DocsError(
                f"{self.page.source}: the formula ${latex.strip()}$ cannot be set"
                f" ({str(e) or type(e).__name__}): write it with plainer LaTeX."
            ) from e

    def inline_math(self, body): return self._formula(body, "inline")
    def block_math(self, body):
        return f'<span class="formula">{self._formula(body, "block")}</span>'
    def latex_environment(self, name, body):
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


class Reader(HTMLParser):
    "Of a finished piece of HTML: anchors, links, and the words of each section, without code and formulas."
    QUIET = {"pre", "svg", "math", "style", "table"}

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.ids, self.links, self.loads, self.sections, self.quiet = (
            [],
            [],
            [],
            [("", [])],
            Counter(),
        )
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"):
            self.ids.append(attrs["id"])
            if tag in ("h2", "h3"): self.sections.append((attrs["id"], []))
        if tag == "a" and attrs.get("href"): self.links.append(attrs["href"])
        elif attrs.get("href"): self.loads.append(attrs["href"])
        if attrs.get("src"): self.loads.append(attrs["src"])
        if tag in self.QUIET: self.quiet[tag] += 1

    def handle_endtag(self, tag):
        if tag in self.QUIET: self.quiet[tag] -= 1

    def handle_data(self, data):
        if not any(self.quiet.values()): self.sections[-1][1].append(data)


class Site:
    "All pages of a checkout."

    def __init__(self,
        root: Path,  # the checkout
        out: Path,  # where the site goes
    ):
        self.root, self.out, self.faults, self.files = root, out, [], {}
        self.formatter = HtmlFormatter(nowrap=True)
        self.notebooks = notebooks(root)
        self.pages = {
            f"nbs/{n.path}": Page(
                PurePosixPath("nbs") / n.path,
                str(n.path.with_suffix(".html")),
                n.title,
                n.summary,
                n,
                n.label,
            )
            for n in self.notebooks
        }
        self.modules = {
            f"gr00t_nb.{n.module}": str(n.path.with_suffix(".html"))
            for n in self.notebooks
            if n.module
        }
        self.cells = {
            key: json.loads((root / key).read_text(encoding="utf-8"))["cells"] for key in self.pages
        }
        for key, page in self.pages.items():
            for cell in self.cells[key]:
                cell["source"] = "".join(cell["source"])
                if (
                    cell["cell_type"] == "code"
                    and {"export", "exports"} & (d := directives(cell["source"])).keys()
                    and "hide" not in d
                ):
                    page.names += [
                        Name(n, page.url, page.notebook.module, about, kind)
                        for n, about, kind in exported(cell["source"])
                        if n not in {o.name for o in page.names}
                    ]
        defined = [n for p in self.pages.values() for n in p.names if n.kind != "again"]
        every = Counter(n.name for n in defined)
        self.names = {n.name: n for n in defined if every[n.name] == 1}
        for n in (
            n
            for p in self.pages.values()
            for n in p.names
            if n.kind == "again" and n.name in self.names
        ):
            n.about = self.names[n.name].about

    # links
    def relative(self, page: Page, target: str) -> str:
        return quote(os.path.relpath(target, PurePosixPath(page.url).parent), safe="/#.")

    def find(self, page: Page, text: str) -> str | None:
        "Where the page of a name in code letters is, if just one thing of the kit has that name."
        text = re.sub(r"\(.*\)$", "", text)
        if text in self.modules: return self.relative(page, self.modules[text])
        name = next(
            (n for n in page.names if n.name == text and n.kind != "again"), None
        ) or self.names.get(text)
        return self.relative(page, name.url) if name else None

    def link(self, page: Page, url: str) -> str:
        "A link as it stands in a notebook, as it must stand in its page. A fault is remembered, and stops the build at the end."
        if re.match(r"(https?|mailto):", url) or url.startswith("#"): return url
        path, _, anchor = unescape(url).partition("#")
        target = Path(os.path.normpath(self.root / page.source.parent / unquote(path)))
        key = target.relative_to(self.root).as_posix() if target.is_relative_to(self.root) else None
        if key in self.pages:
            goal = self.pages[key].url
        elif key and target.is_file() and target.suffix == ".md":
            goal = self.text_page(key).url
        elif key and target.is_file():
            goal = self.files.setdefault(key, f"files/{key}")
        else:
            what = (
                "is a folder: link to a file in it"
                if key and target.is_dir()
                else "leads nowhere: there is no such file in the checkout"
            )
            self.faults.append(f"{page.source}: the link ({url}) {what}.")
            return url
        return self.relative(page, goal) + (f"#{anchor}" if anchor else "")

    def text_page(self, key: str) -> Page:
        "The page of a Markdown file that some page links to."
        text = (self.root / key).read_text(encoding="utf-8")
        title = re.search(r"^# (.+)", text, re.M)
        page = self.pages[key] = Page(
            PurePosixPath(key),
            f"files/{key[:-3]}.html",
            title[1] if title else PurePosixPath(key).stem,
        )
        page.label = page.title
        page.body = self.markdown(page, re.sub(r"^# .+\n", "", text, count=1, flags=re.M))
        return page

    # pieces of a page
    def markdown(self, page: Page, text: str) -> str:
        return MarkdownWithMath(renderer=Writer(self, page)).render(text)

    def code(self, code: str, language: str | None) -> str:
        try:
            html = (
                highlight(code, get_lexer_by_name(language), self.formatter)
                if language
                else escape(code)
            )
        except ClassNotFound:
            html = escape(code)
        return f'<pre class="code"><code>{html.rstrip()}</code></pre>\n'

    def linked_code(self, page: Page, code: str, names: dict[str, str]) -> str:
        "Python in colour, where names of the kit lead to what they are."
        html = highlight(code, get_lexer_by_name("python"), self.formatter)
        def name(m):
            target = self.find(page, names[m[1]]) if m[1] in names else None
            return f'<span class="n"><a href="{target}">{m[1]}</a></span>' if target else m[0]
        html = re.sub(
            r'(?<!<span class="o">\.</span>)<span class="n">(\w+)</span>(?!<span'
            r' class="o">=</span>)',
            name,
            html,
        )
        def module(m):
            return (
                '<span class="nn"><a'
                f' href="{self.relative(page, self.modules[m[1]])}">{m[1]}</a></span>'
                if m[1] in self.modules
                else m[0]
            )
        return re.sub(r'<span class="nn">([\w.]+)</span>', module, html).rstrip()

    def svg(self, page: Page, text: str) -> str:
        "An SVG as part of the page, so that its links can be followed."
        text = re.sub(r"^\s*(<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|\s)*", "", text, flags=re.S)
        return f'<span class="drawing">{re.sub(r"""(<a [^>]*?href=")([^"]+)""", lambda m: m[1] + escape(self.link(page, unescape(m[2]))), text)}</span>'

    def picture(self, page: Page, about: str, url: str) -> str:
        if re.match(r"(https?:)?//", url):
            self.faults.append(
                f"{page.source}: the picture ({url}) would be loaded from the network: put it into"
                " the checkout."
            )
            return ""
        link = self.link(page, url)
        file = self.root / page.source.parent / unquote(url)
        if file.suffix == ".svg" and file.is_file():
            return self.svg(page, file.read_text(encoding="utf-8"))
        return f'<img src="{escape(link)}" alt="{escape(about)}" loading="lazy">'

    def stored_picture(self, page: Page, data: str | list, kind: str) -> str:
        "A picture of an output, as a file beside its page."
        raw = base64.b64decode("".join(data))
        n = sum(f.startswith(page.url[:-5] + "-") for f in self.made) + 1
        name = f"{page.url[:-5]}-{n}.{kind}"
        self.made[name] = raw
        size = ""
        if kind == "png":
            width, height = struct.unpack(">II", raw[16:24])
            size = f' width="{width}" height="{height}"'
        above = page.headings[-1][2] if page.headings else page.title
        return (
            f'<img src="{quote(PurePosixPath(name).name)}"{size} alt="picture in “{escape(above)}”"'
            ' loading="lazy">'
        )

    def output(self, page: Page, o: dict, number: int) -> str:
        where = f"{page.source}, cell {number}"
        if o["output_type"] == "error":
            raise DocsError(
                f"{where} was stored with an error ({o['ename']}: {o['evalue']}): run the notebook"
                " again before it is published."
            )
        if o["output_type"] == "stream":
            text = "\n".join(
                line.rstrip("\r").rpartition("\r")[2] for line in "".join(o["text"]).split("\n")
            )  # of a progress bar what stood at the end
            return (
                f'<pre class="out {o["name"]}">{ansi2html(text.rstrip())}</pre>'
                if text.strip()
                else ""
            )
        data = o["data"]
        mime = next((m for m in SHOWN if m in data), None)
        if mime is None:
            raise DocsError(
                f"{where} shows only {', '.join(data)}, which no page can: let it return a static"
                " picture or text as well."
            )
        value = data[mime] if isinstance(data[mime], str) else "".join(data[mime])
        match mime:
            case "image/svg+xml": html = self.svg(page, value)
            case "text/html": html = f'<div class="scroll">{value if re.search("<(style|script|svg)", value) else breakable(value)}</div>'
            case "text/markdown": html = self.markdown(page, value)
            case "text/latex": html = self.markdown(page, value)
            case "image/png" | "image/jpeg": html = self.stored_picture(page, value, mime[6:])
            case _: html = f'<pre class="out">{ansi2html(value)}</pre>' if not value.startswith("<Figure") else ""
        return (
            f'<div class="shown {mime.split("/")[0]}">{html}</div>\n'
            if html and mime != "text/plain"
            else html
        )

    def notebook_page(self, page: Page, cells: list[dict]):
        names = {n.name: n.name for n in page.names if "." not in n.name}
        for c in cells:
            if c["cell_type"] == "code": names |= imported(c["source"])
        body, first = [], True
        for number, cell in enumerate(cells):
            source, kind = cell["source"], cell["cell_type"]
            d = directives(source)
            if "hide" in d or d.get("include") == "false": continue
            if kind == "markdown":
                if first:
                    source, first = (
                        re.sub(
                            r"^> .+\n?",
                            "",
                            re.sub(r"\A\s*# .+\n?", "", source),
                            count=1,
                            flags=re.M,
                        ),
                        False,
                    )  # they stand in the page's head
                body.append(f'<div class="prose">{self.markdown(page, source)}</div>\n')
            elif kind == "code":
                shown = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
                is_export = {"export", "exports", "exporti"} & d.keys()
                here = (
                    [f"{page.notebook.module}.{n}" for n, _, _ in exported(source)]
                    if {"export", "exports"} & d.keys()
                    else []
                )
                here = [
                    n for n in dict.fromkeys(here) if n not in page.ids
                ]  # the setter of a property stands where its getter does
                page.ids.update(here)
                anchors = "".join(f'<span class="target" id="{n}"></span>' for n in here)
                html = ""
                if shown and d.get("echo") != "false":
                    html = (
                        '<pre'
                        f' class="code{" exported" if is_export else ""}"><code>{self.linked_code(page, shown, names)}</code></pre>\n'
                    )
                outputs = (
                    "".join(self.output(page, o, number) for o in cell["outputs"])
                    if d.get("output") != "false"
                    else ""
                )
                if html or outputs:
                    body.append(
                        '<div'
                        f' class="cell">{anchors}{html}{f"<div class=outputs>{outputs}</div>" if outputs else ""}</div>\n'
                    )
        page.body = "".join(body)

    def names_page(self) -> Page:
        "Every exported name, by module, with the first line of what it says of itself."
        page = Page(
            PurePosixPath("names"),
            "names.html",
            "Names",
            "What the package exports: each name leads to the cell that defines it",
            label="Names",
        )
        parts = []
        for p in self.pages.values():
            if not p.names: continue
            anchor = p.notebook.module.replace(".", "-")
            page.headings.append((2, anchor, p.notebook.module))
            rows = "".join(
                f'<dt class="{n.kind}"><a'
                f' href="{self.relative(page, n.url)}"><code>{escape(n.name)}</code></a></dt><dd>{self.inline(page, n.about)}</dd>'
                for n in p.names
            )
            parts.append(
                f'<h2 id="{anchor}"><a'
                f' href="{self.relative(page, p.url)}"><code>gr00t_nb.{p.notebook.module}</code></a></h2><p'
                f' class="lead">{self.inline(page, p.summary)}</p><dl class="names">{rows}</dl>'
            )
        page.body = "".join(parts)
        return page

    def inline(self, page: Page, text: str) -> str:
        return re.sub(r"\A<p>|</p>\s*\Z", "", self.markdown(page, text).strip()) if text else ""

    # the whole
    def build(self) -> dict[str, bytes]:
        "All files of the site, by their place in it."
        self.made: dict[str, bytes] = {}
        for key, cells in self.cells.items(): self.notebook_page(self.pages[key], cells)
        self.pages["names"] = self.names_page()
        for page in self.pages.values(): page.summary_html = Markup(self.inline(page, page.summary))
        for page in self.pages.values():
            read = Reader(page.body)
            page.ids |= set(read.ids)
            titles = {anchor: text for _, anchor, text in page.headings}
            page.sections = [
                (
                    a,
                    titles.get(a, ""),
                    re.sub(r"\s+", " ", "".join(words))
                    .strip()
                    .removeprefix(f"{titles.get(a, '')}#")
                    .strip(),
                )
                for a, words in read.sections
            ]
        environment = Environment(
            loader=FileSystemLoader(HERE),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("page.html")
        first = self.pages["nbs/index.ipynb"]
        floors = {
            f: [
                p
                for p in self.pages.values()
                if p.notebook and p.notebook.floor == f and p is not first
            ]
            for f in ORDER
        }
        reading = [first, *(p for f in ORDER for p in floors[f])]
        groups = [(*FLOORS[f], floors[f]) for f in ORDER if floors[f]]
        groups.append((
            "more",
            "",
            [
                self.pages["names"],
                *(p for p in self.pages.values() if not p.notebook and p.url != "names.html"),
            ],
        ))
        for page in self.pages.values():
            at = reading.index(page) if page in reading else None
            before, after = (
                reading[at - 1] if at else None,
                reading[at + 1] if at is not None and at + 1 < len(reading) else None,
            )
            html = template.render(
                page=page,
                body=Markup(page.body),
                groups=groups,
                before=before,
                after=after,
                first=first,
                mark=Markup(MARK),
                rel=lambda target, page=page: self.relative(page, target),
                toc=[h for h in page.headings if h[0] in (2, 3)],
            )
            self.made[page.url] = self.mended(page, html).encode()
        self.check()
        for name in ("style.css", "search.js"): self.made[name] = (HERE / name).read_bytes()
        self.made["search-index.js"] = (
            "const SEARCH_INDEX = "
            + json.dumps(self.index(), ensure_ascii=False, separators=(",", ":"))
            + ";\n"
        ).encode()
        for key, url in self.files.items(): self.made[url] = (self.root / key).read_bytes()
        return self.made

    def mended(self, page: Page, html: str) -> str:
        "Anchors in JupyterLab's spelling, such as #See-it-work, in the page's own."
        def anchor(m):
            path, _, a = unescape(m[1]).partition("#")
            goal = next(
                (
                    p
                    for p in self.pages.values()
                    if p.url == (
                        os.path.normpath(PurePosixPath(page.url).parent / unquote(path))
                        if path
                        else page.url
                    )
                ),
                None,
            )
            return (
                f'href="{path}#{slug(unquote(a))}"'
                if goal and a not in goal.ids and slug(unquote(a)) in goal.ids
                else m[0]
            )
        return re.sub(r'href="([^":]*#[^"]+)"', anchor, html)

    def check(self):
        "Every link inside the site leads to a page, and every anchor exists."
        if self.faults: raise DocsError("\n".join(dict.fromkeys(self.faults)))
        read = {
            url: Reader(html.decode()) for url, html in self.made.items() if url.endswith(".html")
        }
        source = {p.url: p.source for p in self.pages.values()}
        for url, r in read.items():
            for link in r.links:
                if re.match(r"[a-z]+:", link): continue
                path, _, anchor = link.partition("#")
                goal = os.path.normpath(PurePosixPath(url).parent / unquote(path)) if path else url
                if goal in self.files.values(): continue
                if goal not in read:
                    self.faults.append(f"{source[url]}: the link ({link}) leads nowhere.")
                elif anchor and unquote(anchor) not in read[goal].ids:
                    self.faults.append(
                        f"{source[url]}: the link ({link}) names a section that {source[goal]} does"
                        " not have."
                    )
            double = [i for i, n in Counter(r.ids).items() if n > 1]
            if double:
                self.faults.append(
                    f"{source[url]}: {', '.join(double)} would be the anchor of two places: give"
                    " one of them another name."
                )
        if self.faults: raise DocsError("\n".join(dict.fromkeys(self.faults)))

    def index(self) -> list[list[str]]:
        "What the search looks through: names first, then sections: [url, what is found, where, words]."
        names = [
            [n.url, n.name, f"gr00t_nb.{n.module}", n.about.replace("`", "")]
            for p in self.pages.values()
            for n in p.names
            if n.kind != "again"
        ]
        texts = [
            [
                p.url + (f"#{a}" if a else ""),
                heading or p.title,
                p.title if heading else p.plain_summary,
                words,
            ]
            for p in self.pages.values()
            if p.url != "names.html"
            for a, heading, words in p.sections
        ]
        return names + texts


def build(
    root: Path,  # the checkout
    out: Path,  # the folder of the site; replaced if it is one already
) -> int:  # how many pages
    "Makes the site. Nothing is written where something is wrong."
    if (
        out.exists()
        and any(out.iterdir())
        and not (
            (out / "index.html").is_file()
            and MARK in (out / "index.html").read_text(encoding="utf-8")
        )
    ):
        raise DocsError(
            f"{out} holds something that is no site of this kit: choose a folder that is empty or"
            " does not exist."
        )
    made = Site(root, out).build()
    if out.exists(): shutil.rmtree(out)
    for name, data in made.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    return sum(n.endswith(".html") for n in made)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=HERE.parent, help="the checkout")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder of the site (default: _docs in the checkout)"
    )
    options = parser.parse_args()
    out = options.out or options.root / "_docs"
    try: pages = build(options.root.resolve(), out.resolve())
    except DocsError as e: sys.exit(f"error: {e}")
    print(f"{pages} pages: open {out / 'index.html'} in a browser")
