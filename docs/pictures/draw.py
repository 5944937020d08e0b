# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of the documents: each DOT file with graphviz, demo.txt as a terminal."""

import re
import subprocess
from html import escape
from pathlib import Path

HERE = Path(__file__).parent

DIAGRAM_STYLE = """
svg { background: #ffffff }
text { fill: #1f2328 }
.node path { fill: #ddf4ff; stroke: #54aeff }
.node.other path { fill: #f6f8fa; stroke: #d0d7de }
.edge path { stroke: #59636e }
.edge polygon { fill: #59636e; stroke: #59636e }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117 }
  text { fill: #e6edf3 }
  .node path { fill: #10253e; stroke: #1f6feb }
  .node.other path { fill: #161b22; stroke: #3d444d }
  .edge path { stroke: #9198a1 }
  .edge polygon { fill: #9198a1; stroke: #9198a1 }
}
"""

LINE = 19
TOP = 54
COLUMN = {"host": 24, "guest": 384}
WIDTH = 880
HEAD = {"host": "host", "guest": "guest: an unmodified inotifywait"}
TERMINAL_STYLE = """
.window { fill: #f6f8fa; stroke: #d0d7de }
.rule { stroke: #d0d7de }
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328 }
.head { font-weight: 600; fill: #59636e }
.command { font-weight: 600 }
.prompt { fill: #59636e }
.event { fill: #0550ae }
@media (prefers-color-scheme: dark) {
  .window { fill: #161b22; stroke: #3d444d }
  .rule { stroke: #3d444d }
  text { fill: #e6edf3 }
  .head, .prompt { fill: #9198a1 }
  .event { fill: #79c0ff }
}
"""


def diagram(source: Path) -> str:
    """Return the SVG of a DOT file; graphviz must be installed."""
    drawn = subprocess.run(
        ["dot", "-Tsvg", source], check=True, capture_output=True, text=True
    ).stdout
    # From the first element on: without the version of graphviz. The style follows the reader's
    # colour scheme, so colours of graphviz are left out.
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<!--.*?-->\n", "", drawn)
    drawn = re.sub(r'<polygon fill="white"[^>]*/>\n', "", drawn)
    drawn = re.sub(r' (?:fill|stroke)="(?:black|lightgrey)"', "", drawn)
    start, end = drawn.split(">", 1)
    return f"{start}><style>{DIAGRAM_STYLE}</style>{end}"


def terminal(story: str) -> str:
    """Return the SVG of the demo's output: host left, guest right, time downwards."""
    lines = [line.split(None, 1) for line in story.splitlines()]
    height = TOP + LINE * len(lines) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' aria-label="Commands on the host, and the events that inotifywait prints in the guest">',
        f"<style>{TERMINAL_STYLE}</style>",
        f'<rect class="window" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<path class="rule" d="M0 34.5H{WIDTH}M{COLUMN["guest"] - 18}.5 0V{height}"/>',
    ]
    parts += [
        f'<text class="head" x="{x}" y="23">{HEAD[side]}</text>' for side, x in COLUMN.items()
    ]
    for number, (side, text) in enumerate(lines):
        x, y = COLUMN[side], TOP + 6 + LINE * number
        if text.startswith("$ "):
            span = f'<tspan class="prompt">$ </tspan><tspan class="command">{escape(text[2:])}'
        else:
            span = f'<tspan class="{"event" if text.startswith("/") else "prompt"}">{escape(text)}'
        parts.append(f'<text x="{x}" y="{y}" xml:space="preserve">{span}</tspan></text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Write an SVG beside each source."""
    for source in sorted(HERE.glob("*.dot")):
        source.with_suffix(".svg").write_text(diagram(source))
    (HERE / "demo.svg").write_text(terminal((HERE / "demo.txt").read_text()))


if __name__ == "__main__":
    main()
