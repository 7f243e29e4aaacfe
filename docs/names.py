"""Sphinx extension: names that the notebooks export.

The search finds them, the page of all names lists them, and text in code letters leads to them.
"""
import ast
import re
from functools import partial
from pathlib import Path

from docutils import nodes
from house import notebooks
from sphinx.util.nodes import make_refnode

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def defined(source: str) -> dict[str, str]:
    "Public names that a cell defines, and what they are to Python's domain."
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, FUNCTIONS):
            patched = any(ast.unparse(d).startswith("patch") for d in node.decorator_list)
            owner = f"{ast.unparse(node.args.args[0].annotation)}." if patched else ""
            found[owner + node.name] = "method" if patched else "function"
        elif isinstance(node, ast.ClassDef):
            found[node.name] = "class"
            methods = [m.name for m in node.body if isinstance(m, FUNCTIONS)]
            found |= {f"{node.name}.{m}": "method" for m in methods}
        elif isinstance(node, ast.Assign):
            targets = [n for t in node.targets for n in getattr(t, "elts", [t])]
            found |= {t.id: "data" for t in targets if isinstance(t, ast.Name)}
    return {n: kind for n, kind in found.items() if not re.search(r"(^|\.)_", n)}


def register(app, doctree, modules):
    "Each name that the page exports becomes an anchor at its cell, and an entry of the index."
    module = modules.get(app.env.docname)
    cells = [c for c in doctree.findall(nodes.container) if "tag_export" in c["classes"]]
    for cell in cells if module else ():
        code = next(cell.findall(nodes.literal_block)).astext()
        for name, kind in defined(code).items():
            full = f"gr00t_nb.{module}.{name}"
            if full in app.env.domains["py"].objects: continue  # a property's setter
            cell["ids"].append(full)
            app.env.domains["py"].note_object(full, kind, full, location=cell)
            entry = ("single", f"{name} ({module})", full, "", None)
            app.env.domains["index"].entries[app.env.docname].append(entry)


def link(app, doctree, docname):
    "A name in code letters leads to its definition, if just one thing has that name."
    known = {}
    for full, entry in app.env.domains["py"].objects.items():
        short = re.sub(r"^gr00t_nb\.([a-z]\w*\.)+(?=\w)", "", full)
        known.setdefault(short, []).append(entry)
    for literal in list(doctree.findall(nodes.literal)):
        found = known.get(re.sub(r"\(.*\)$", "", literal.astext()), [])
        found = [e for e in found if e.docname == docname] or found
        if len(found) != 1 or isinstance(literal.parent, (nodes.reference, nodes.title)): continue
        goal = found[0]
        link = make_refnode(app.builder, docname, goal.docname, goal.node_id, literal.deepcopy())
        literal.replace_self(link)


def setup(app):
    books = notebooks(Path(app.srcdir).parent)
    modules = {str(b.path.with_suffix("")): b.module for b in books}
    app.connect("doctree-read", partial(register, modules=modules))
    app.connect("doctree-resolved", link)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
