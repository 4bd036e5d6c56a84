"""How the report's page looks: on phones and on desks, by day and by night."""

from pagedkv.traces.comparison.colours import DARK, LIGHT, css_variables

FONTS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'
"""What the reader's system uses itself."""

STYLE = f"""
:root {{ color-scheme: light dark; {css_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 {FONTS}; }}
main {{ max-width: 1760px; margin: 0 auto; padding: 16px; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 2.5rem 0 0.5rem; }}
h3 {{ font-size: 1rem; margin: 1.75rem 0 0.25rem; }}
p {{ max-width: 75ch; margin: 0.5rem 0; }}
.key {{ list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; }}
.key li {{ font-weight: 600; overflow-wrap: anywhere; }}
.charts {{ display: grid; gap: 24px; grid-template-columns: minmax(0, 1fr); }}
@media (min-width: 720px) {{ .charts {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }} }}
@media (min-width: 1360px) {{
  .charts {{ grid-template-columns: repeat(var(--middle), minmax(0, 1fr)); }}
}}
@media (min-width: 1720px) {{
  .charts {{ grid-template-columns: repeat(var(--wide), minmax(0, 1fr)); }}
}}
.tables {{ display: flex; flex-wrap: wrap; gap: 0 64px; }}
.tables section {{ max-width: 100%; }}
.note {{ color: var(--muted); font-size: 0.85rem; margin: 0; overflow-wrap: anywhere; }}
figure {{ margin: 0; }}
figcaption {{ font-weight: 600; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-family: {FONTS} !important; }}
.scroll {{ overflow-x: auto; }}
table {{ border-spacing: 0; font-variant-numeric: tabular-nums; }}
table {{ font-size: 14px; line-height: 22px; }}
th, td {{ padding: 4px 12px; text-align: right; white-space: nowrap; }}
tbody td, tbody th {{ border-bottom: 1px solid var(--grid); }}
th {{ font-weight: 400; }}
thead th {{ color: var(--muted); vertical-align: bottom; white-space: normal; }}
th:first-child {{ position: sticky; left: 0; background: var(--paper); padding-left: 0; }}
th:first-child {{ text-align: left; max-width: 40vw; white-space: normal; }}
th:first-child {{ overflow-wrap: anywhere; min-width: 7rem; }}
tr > td:nth-child(2)[colspan] {{ text-align: left; color: var(--muted); }}
.sizes th {{ max-width: none; padding-top: 16px; }}
.sizes span {{ position: sticky; left: 0; display: inline-block; font-weight: 600; }}
.sizes span {{ max-width: calc(100vw - 32px); }}
@media (max-width: 600px) {{
  .tables section, table, tbody, tr, th, td {{ display: block; width: 100%; }}
  thead {{ display: none; }}
  tbody th, tbody td {{ padding: 2px 0; }}
  tbody td {{ display: flex; justify-content: space-between; gap: 12px; border-bottom: 0; }}
  tbody td::before {{ content: attr(data-name); color: var(--muted); }}
  tbody tr:not(.sizes) th {{ max-width: none; margin-top: 10px; font-weight: 600; }}
  .sizes span {{ margin-top: 8px; }}
}}
.failed, .skipped {{ border-left: 4px solid var(--muted); padding-left: 12px; }}
.failed {{ border-color: var(--series-1); }}
.failed, .skipped, dd {{ overflow-wrap: anywhere; }}
dt {{ color: var(--muted); font-size: 0.9rem; }}
dd {{ margin: 0 0 8px; }}
"""
"""The style sheet."""
