"""The look of `report.html`: one Jinja2 template, no script, nothing loaded from anywhere."""

# ruff: noqa: E501  (markup and style sheet: a break inside a line would show, or hide what belongs together)

from __future__ import annotations

from typing import Any

from jinja2 import Environment, StrictUndefined

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c2024; --soft: #60666c; --paper: #fbfbf9; --card: #ffffff; --rule: #e2e2dc; --accent: #1f5fbf; --added: #0a7a4b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8e6e3; --soft: #a0a4a8; --paper: #15171a; --card: #1e2125; --rule: #33373c; --accent: #7db0ff; --added: #6fd3a3;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 72rem; padding: 1.5rem clamp(.8rem, 3vw, 2.5rem) 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; }
h3 { font-size: 1.02rem; margin: 0; font-weight: 600; }
p { margin: .5rem 0; max-width: 62rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: 0 1.1rem; margin: .3rem 0 1rem; }
.soft { color: var(--soft); font-size: .88rem; }
.summary { background: var(--card); border: 1px solid var(--rule); border-radius: .8rem; padding: .6rem 1.3rem; }
.summary li { margin: .45rem 0; }
.summary ul { padding-left: 1.1rem; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: .6rem; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .42rem .5rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--rule); }
thead th { border-top: 0; font-size: .82rem; color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th { font-weight: 400; }
tr.group th { text-align: left; font-weight: 650; padding-top: .9rem; }
td small { color: var(--soft); display: block; }
td.sure { font-weight: 650; }
td.sure small { font-weight: 400; }
.case { background: var(--card); border: 1px solid var(--rule); border-radius: .8rem; padding: .9rem 1rem 1rem; margin: 1rem 0; }
.case header { display: flex; flex-wrap: wrap; gap: .2rem .8rem; align-items: baseline; margin-bottom: .7rem; }
.tag { font-size: .78rem; color: var(--soft); border: 1px solid var(--rule); border-radius: 1rem; padding: 0 .6rem; }
.methods { display: grid; gap: 1rem; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.method { min-width: 0; }
.method h4 { margin: 0 0 .3rem; font-size: .9rem; line-height: 1.35; }
.method h4 span { color: var(--soft); font-weight: 400; display: block; font-size: .84rem; }
.method p { font-size: .86rem; line-height: 1.4; margin: .4rem 0 0; overflow-wrap: anywhere; }
.method em { font-style: normal; color: var(--added); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.2rem, 1fr)); gap: .4rem; }
figure { margin: 0; }
figure img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: .45rem; display: block; background: var(--rule); }
figcaption { font-size: .74rem; color: var(--soft); font-variant-numeric: tabular-nums; }
figcaption span { display: inline-block; white-space: nowrap; margin-right: .35rem; }
.none { color: var(--soft); font-size: .86rem; border: 1px dashed var(--rule); border-radius: .45rem; padding: 1.2rem .8rem; }
#training h3 { margin: 1rem 0 .5rem; }
.curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.curves svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--rule); border-radius: .6rem; }
.swipe { display: none; }
@media (max-width: 52rem) { .methods { grid-template-columns: 1fr 1fr; } }
@media (max-width: 40rem) {
  .methods { gap: 1.1rem .7rem; }
  .pictures { grid-template-columns: repeat(auto-fit, minmax(4rem, 1fr)); gap: .25rem; }
  .case { padding: .8rem .7rem; }
  .summary { padding: .3rem .9rem; }
  table { font-size: .82rem; }
  th, td { padding: .35rem .45rem; }
  th:first-child, td:first-child { white-space: normal; min-width: 5.4rem; max-width: 6.6rem; hyphens: auto; }
  tr.group th { white-space: nowrap; max-width: none; }
  .swipe { display: inline; }
}
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
<nav><a href="#numbers">Numbers</a><a href="#pictures">Pictures</a>{% if curves %}<a href="#training">Training</a>{% endif %}<a href="#how">How it was measured</a></nav>
</header>
<main>
<section class="summary" aria-label="Summary">
<ul>
{% for sentence in summary %}<li>{{ sentence }}</li>
{% endfor %}</ul>
</section>

<section id="numbers">
<h2>Numbers</h2>
{% macro table(heads, groups) %}
<div class="scroll"><table>
<thead><tr>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for group in groups %}
<tr class="group"><th colspan="{{ heads | length }}" scope="rowgroup">{{ group.name }}</th></tr>
{% for row in group.rows %}
<tr><th scope="row">{{ row.name }}</th>{% for cell in row.cells %}<td{% if cell.sure %} class="sure"{% endif %}>{{ cell.text }}{% if cell.small %}<small>{{ cell.small }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}{% endfor %}
</tbody></table></div>
{% endmacro %}
<p class="soft">Means over prompts. Below a mean: the change against the user input with its paired 95 % interval; bold where it
excludes 0 (Student's t and bootstrap both).<span class="swipe"> Swipe the table sideways.</span></p>
{{ table(levels.heads, levels.groups) }}
{% if differences.groups %}
<p class="soft">Paired differences between the methods, with 95 % intervals.</p>
{{ table(differences.heads, differences.groups) }}
{% endif %}
</section>

<section id="pictures">
<h2>Pictures at equal seeds</h2>
<p class="soft">{{ pictures_note }}</p>
{% for case in cases %}
<article class="case">
<header><h3>{{ case.prompt }}</h3><span class="tag">{{ case.set }}</span></header>
<div class="methods" style="--columns: {{ columns }}">
{% for method in case.methods %}
<div class="method">
<h4>{{ method.label }}{% if method.score %}<span>{{ method.score }}</span>{% endif %}</h4>
{% if method.absent %}<div class="none">{{ method.absent }}</div>{% else %}
<div class="pictures">
{% for picture in method.pictures %}
<figure><img src="{{ picture.src }}" alt="{{ picture.alt }}" loading="lazy"><figcaption>{% for part in picture.caption %}<span>{{ part }}</span> {% endfor %}</figcaption></figure>
{% endfor %}
</div>
<p>{% for word in method.words %}{{ " " if not loop.first }}{% if word.added %}<em>{{ word.text }}</em>{% else %}{{ word.text }}{% endif %}{% endfor %}</p>
{% endif %}
</div>
{% endfor %}
</div>
</article>
{% endfor %}
</section>

{% if curves %}
<section id="training">
<h2>Training</h2>
{% for run in curves %}
<h3>{{ run.name }}</h3>
<div class="curves">{% for svg in run.plots %}{{ svg | safe }}{% endfor %}</div>
{% endfor %}
</section>
{% endif %}

<section id="how">
<h2>How it was measured</h2>
{% for paragraph in how %}<p>{{ paragraph }}</p>
{% endfor %}
<p class="soft">{{ origin }}</p>
</section>
</main>
</body>
</html>
"""


def render(content: dict[str, Any]) -> str:
    """The page as text; every value of `content` is escaped except the SVG plots, which come from `figures`."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE).render(style=STYLE, **content)
