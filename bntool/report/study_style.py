"""The style sheet of the study's page: light and dark by the reader's setting, one column on a phone."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --page: #ffffff; --card: #f6f7f9; --ink: #1a1d21; --soft: #5b6470; --line: #d9dde3; --link: #0b5cad;
  --good: #0a7a3f; --bad: #b3261e; --idle: #5b6470; --open: #8a5a00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0559a; --c4: #9a6b00; --c5: #3e97c9; --c6: #7a3b00;
  --c7: #444444; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171a; --card: #1d2125; --ink: #e8eaed; --soft: #a3acb8; --line: #353b43; --link: #7db7f0;
  --good: #5fd08f; --bad: #ff8a80; --idle: #a3acb8; --open: #f0c060;
  --c0: #58b4ee; --c1: #ff9a57; --c2: #3ed6a6; --c3: #e69bd0; --c4: #f0c04a; --c5: #8fd0f5; --c6: #d9a06a;
  --c7: #cccccc; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 0 0 .4rem; line-height: 1.3; }
h3 { font-size: .95rem; margin: 1.4rem 0 .4rem; color: var(--soft); font-weight: 600; }
p { margin: .4rem 0; max-width: 75ch; }
.muted, .lead { color: var(--soft); }
code { font-size: .92em; overflow-wrap: anywhere; }
code.whole { white-space: nowrap; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
section { border-top: 1px solid var(--line); padding-top: 26px; margin-top: 34px; }
.verdicts {
  list-style: none; padding: 0; margin: 6px 0 18px; border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
.verdicts li { display: grid; grid-template-columns: 9.5rem 1fr; gap: 2px 16px; padding: 13px 16px;
  border-top: 1px solid var(--line); align-items: start; }
.verdicts li:first-child { border-top: 0; }
.verdicts .ask { font-weight: 600; }
.verdicts .told { grid-column: 2; color: var(--soft); font-size: .94rem; }
.badge { display: inline-block; font-weight: 650; font-size: .86rem; padding: 2px 10px; border-radius: 99px;
  border: 1.5px solid currentColor; white-space: nowrap; justify-self: start; }
.shown { color: var(--good); } .reversed { color: var(--bad); }
.shown.limit { color: var(--bad); } .reversed.limit { color: var(--good); }
.not-shown { color: var(--idle); } .inconclusive { color: var(--open); }
.box { background: var(--card); border-radius: 10px; padding: 16px 18px; margin: 18px 0; }
.box ul { margin: .4rem 0; padding-left: 1.2rem; }
.charts { display: grid; gap: 20px; margin: 14px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; max-width: 560px; }
figcaption { font-weight: 600; font-size: .92rem; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; }
.grid, .tick { stroke: var(--line); stroke-width: 1; } .axis, .zero { stroke: var(--soft); stroke-width: 1; }
.zero { stroke-dasharray: 4 3; }
text { fill: var(--soft); font-size: 13px; } text.name { fill: var(--ink); }
.line { fill: none; stroke: var(--c); stroke-width: 2; } .band { fill: var(--c); opacity: .16; }
circle { fill: var(--c); } .span { stroke: var(--c); stroke-width: 2.5; }
circle.open { fill: var(--page); stroke: var(--c); stroke-width: 2; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 4px 0 0; padding: 0;
  font-size: .86rem; color: var(--soft); }
.legend li::before { content: ""; display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 6px; background: var(--c, var(--soft)); }
.legend .hollow::before { background: none; border: 2px solid var(--soft); border-radius: 50%; }
.legend .filled::before { border-radius: 50%; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); }
.s4 { --c: var(--c4); } .s5 { --c: var(--c5); } .s6 { --c: var(--c6); } .s7 { --c: var(--c7); }
.wide { overflow-x: auto; margin: 6px 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td.num { white-space: nowrap; }
tr.primary td:first-child { font-weight: 650; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--link); }
@media (max-width: 620px) {
  main { padding: 18px 14px 40px; } body { font-size: 15.5px; } h1 { font-size: 1.4rem; }
  .verdicts li { grid-template-columns: 1fr; } .verdicts .told { grid-column: 1; }
  text { font-size: 15px; } }
@media print { section { break-inside: avoid; } }
"""
