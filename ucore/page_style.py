"""How the page of results looks: its frame and its style sheet. No scripts, no addresses of other hosts."""

# What the map's frame needs is allowed here, since a frame may do no more than the page around it.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>ucore: results</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">To the results</a>
<header>
<h1>ucore: what was measured</h1>
<p>Type a sentence, find the place seen from above. Every number on this page comes from a notebook of the series,
which says how; it is made by <code>ucore reproduce</code> and not edited by hand.</p>
{summary}
<nav aria-label="On this page"><ul>{menu}</ul></nav>
</header>
<main id="main" tabindex="-1">{body}</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light; --ink: #1f2428; --faint: #545d64; --line: #c8ced3; --blue: #00598c; --ground: #f4f6f7; }
* { box-sizing: border-box; }
html { scroll-behavior: auto; }
body { margin: 0 auto; padding: 0 1.25rem 4rem; max-width: 76rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
header { border-bottom: 1px solid var(--line); padding: 1.5rem 0 .5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .75rem; }
p { max-width: 46rem; margin: .5rem 0; }
a { color: var(--blue); }
:focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: .5rem; background: #fff; padding: .5rem; }
.note { border-left: 6px solid #e69f00; background: #fdf4df; padding: .5rem .75rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1rem 0 .25rem; padding: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0 1.75rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0 0 .5rem; font-size: 1rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 3rem); }  /* not the table's */
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #e3e7ea; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
tbody th { font-weight: normal; }
tbody tr:hover { background: var(--ground); }
.number { text-align: right; white-space: nowrap; }
figure { margin: 1.25rem 0 2rem; }
figure img { max-width: 100%; height: auto; display: block; border: 1px solid #e3e7ea; }
figcaption { color: var(--faint); font-size: .9rem; margin-top: .35rem; }
iframe { width: 100%; height: 36rem; border: 1px solid var(--line); }
details { border-bottom: 1px solid #e3e7ea; padding: .4rem 0; }
summary { cursor: pointer; }
code { font-size: .85em; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { nav, .skip, iframe { display: none; } details > * { display: block; } }
"""
