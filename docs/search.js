// Search without a network: the index is a script beside the pages, loaded when the box is first used. And the section that is being read, marked in the contents.
const box = document.getElementById("search"), found = document.getElementById("found");
const escaped = s => s.replace(/[&<>"]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})[c]);
const marked = (s, words) => words.reduce((h, w) => h.replace(new RegExp(w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi"), "\u0001$&\u0002"), s);
const shown = (s, words) => escaped(marked(s, words)).replace(/\u0001+/g, "<mark>").replace(/\u0002+/g, "</mark>");

function score([url, what, where, text], words) {  // every word must occur; a name counts more than a heading, a heading more than the text
  let sum = 0;
  for (const w of words) {
    const a = what.toLowerCase().indexOf(w), b = where.toLowerCase().includes(w), c = text.toLowerCase().includes(w);
    if (a < 0 && !b && !c) return 0;
    sum += (a === 0 ? 30 : a > 0 ? 15 : 0) + (b ? 5 : 0) + (c ? 3 : 0) + (what.toLowerCase() === w ? 40 : 0);
  }
  return sum - what.length / 50;
}

function snippet(text, words) {
  const at = Math.max(0, Math.min(...words.map(w => text.toLowerCase().indexOf(w)).filter(i => i >= 0), text.length) - 40);
  return (at ? "… " : "") + text.slice(at, at + 110) + (at + 110 < text.length ? " …" : "");
}

function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  found.hidden = !words.length;
  if (!words.length) return;
  const hits = SEARCH_INDEX.map(e => [score(e, words), e]).filter(h => h[0] > 0).sort((a, b) => b[0] - a[0]).slice(0, 12);
  found.innerHTML = hits.map(([, [url, what, where, text]]) => {
    const cut = words.some(w => text.toLowerCase().includes(w)) || !where ? snippet(text, words) : "";
    return `<a href="${escaped(ROOT + url)}"><b>${shown(what, words)}</b><small>${shown(where, words)}</small><small>${shown(cut, words)}</small></a>`;
  }).join("") || "<p>Nothing has all of these words.</p>";
}

box.addEventListener("focus", () => {
  if (document.getElementById("index")) return;
  document.head.append(Object.assign(document.createElement("script"), {id: "index", src: ROOT + "search-index.js", onload: search}));
});
box.addEventListener("input", () => { if (typeof SEARCH_INDEX !== "undefined") search(); });
box.addEventListener("keydown", e => {
  const links = [...found.querySelectorAll("a")], at = links.findIndex(a => a.classList.contains("chosen"));
  if (e.key === "Escape") { box.value = ""; found.hidden = true; box.blur(); }
  if (e.key === "Enter" && links.length) location.href = links[Math.max(at, 0)].href;
  if ((e.key === "ArrowDown" || e.key === "ArrowUp") && links.length) {
    e.preventDefault();
    links[at]?.classList.remove("chosen");
    const next = links[(at + (e.key === "ArrowDown" ? 1 : -1) + links.length) % links.length];
    next.classList.add("chosen");
    next.scrollIntoView({block: "nearest"});
  }
});
document.addEventListener("keydown", e => {
  if (e.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) { e.preventDefault(); box.focus(); }
});

const toc = new Map([...document.querySelectorAll(".toc a")].map(a => [decodeURIComponent(a.hash.slice(1)), a]));
const heads = [...document.querySelectorAll("article h2, article h3")].filter(h => toc.has(h.id));
function follow() {
  const here = heads.filter(h => h.getBoundingClientRect().top < 120).pop();
  for (const [id, a] of toc) a.classList.toggle("seen", id === here?.id);
}
document.addEventListener("scroll", () => requestAnimationFrame(follow), {passive: true});
follow();
document.querySelector("nav .current")?.scrollIntoView({block: "nearest"});
for (const a of document.querySelectorAll(".toc a")) a.addEventListener("click", () => { document.getElementById("menu").checked = false; });
