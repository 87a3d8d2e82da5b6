"""How the page looks: its theme and its style sheet, in light and in dark."""

from __future__ import annotations

import gradio as gr

CSS = """
:root {--good:#15803d; --bad:#b91c1c; --chosen:#92400e; --focus:#1d4ed8}
.dark {--good:#4ade80; --bad:#fca5a5; --chosen:#fbbf24; --focus:#93c5fd}
.gradio-container :is(a, button, input, textarea, select, summary, [tabindex]):focus-visible {
  outline:2px solid var(--focus) !important; outline-offset:1px}
.gradio-container button[role=tab].selected {color:var(--chosen)}
/* Gradio's own dropdown writes under its arrow. */
.gradio-container input[role=combobox] {text-overflow:ellipsis; padding-right:2rem}
/* Gradio's own checkbox forgets its min_width. */
.tick {min-width:9rem !important}
/* What is text begins where its neighbours begin. */
.gradio-container .html-container {padding:0}
/* Gradio hides what overflows, and with it what sticks. */
.gradio-container {overflow:clip}
/* The prompt stays in view; what a keyboard reaches comes to lie above it. */
@media (min-width:900px) and (min-height:600px) {
  * {scroll-margin-bottom:10rem}
  #ask {position:sticky; bottom:0; z-index:10; padding:.5rem 0; background:var(--body-background-fill)}
}
#masthead {overflow:visible !important}
#masthead .md {display:flex; flex-wrap:wrap; align-items:baseline; gap:0 1rem} #masthead :is(h1, p) {margin:0}
.status {display:flex; flex-wrap:wrap; gap:.25rem 1.25rem; font-size:.85rem; opacity:.85}
.bar {height:8px; border-radius:4px; background:var(--border-color-primary); overflow:hidden; margin:.3rem 0}
.bar div {height:100%; background:var(--color-accent); transition:width .3s}
.status .bar {width:160px; display:inline-block; margin:0 0 0 .5rem}
.bad {color:var(--bad)}
.run p, .run ul {margin:.2rem 0} .run ul {padding-left:1.1rem; font-size:.85rem} .run summary {cursor:pointer}
.run dl, .foot dl {display:flex; flex-wrap:wrap; gap:.3rem 1.2rem; margin:.4rem 0}
.foot dl {display:grid; grid-template-columns:repeat(auto-fit, minmax(11rem, 1fr)); gap:.05rem 1.6rem; font-size:.85rem}
.foot dl div {display:flex; justify-content:space-between; align-items:baseline}
.run dt, .foot dt {opacity:.75; font-size:.8rem} .run dd, .foot dd {margin:0; font-weight:600}
/* Gradio has parts called head and empty as well. */
#answers .head {min-height:4.6rem} .foot {min-height:9rem} .foot small, #answers .head small {opacity:.75}
#answers .head small, .foot small {display:block} p.empty {padding:.3rem 0}
/* Gradio's own button would empty the picture and not the conversation. */
[id^=chat-] button[aria-label=Clear] {display:none}
.about {display:grid; grid-template-columns:max-content 1fr; gap:.1rem 1rem; font-size:.85rem; margin:0 0 .6rem}
.about dt {opacity:.75} .about dd {margin:0; overflow-wrap:anywhere}
.placement {margin:.2rem 0} .placement p {margin:.2rem 0; font-size:.85rem}
.stack {display:flex; height:14px; border-radius:4px; overflow:hidden; background:var(--border-color-primary)}
.stack i {height:100%}
.key {margin-top:.3rem; display:flex; flex-wrap:wrap; gap:.1rem 1rem; font-size:.8rem; opacity:.85}
.key i {display:inline-block; width:.7rem; height:.7rem; border-radius:2px; margin-right:.3rem}
.latency {display:grid; grid-template-columns:repeat(auto-fit,minmax(260px,1fr)); gap:1rem; font-size:.85rem}
.latency > div > div {display:grid; grid-template-columns:minmax(5rem,max-content) 1fr 5rem; gap:.6rem}
.sides {display:grid; grid-template-columns:repeat(auto-fit,minmax(260px,1fr)); gap:1rem}
.sides pre, #exported pre, #command pre, .rendered {white-space:pre-wrap; overflow-wrap:anywhere; margin:0}
.sides pre, #exported pre, #command pre, .rendered {font-size:.85rem}
mark.gone {background:#fecaca; color:#7f1d1d} mark.new {background:#bbf7d0; color:#14532d}
.plot {max-width:100%; height:auto; display:block}
#evaluation .prose {display:flex; flex-wrap:wrap; gap:.6rem 1.6rem; align-items:flex-start} #evaluation p {width:100%}
.good {color:var(--good)} .masked {opacity:.75} .plan p {margin:.3rem 0; font-size:.9rem}
.plan .latency > div > div {grid-template-columns:9rem 1fr 5rem} .plan summary {cursor:pointer; font-size:.85rem}
.wide {overflow-x:auto; max-width:100%} .results {border-collapse:collapse; font-size:.85rem}
.results th, .results td {border:1px solid var(--border-color-primary); padding:.25rem .5rem; text-align:left}
.results td {vertical-align:top; overflow-wrap:anywhere; min-width:4rem} .results small {display:block; opacity:.7}
.results.answers td {min-width:11rem} .results.answers td:first-child {min-width:0}
@media (max-width:640px) {
  #answers {flex-wrap:nowrap; overflow-x:auto; scroll-snap-type:x mandatory}
  #answers > div {min-width:86% !important; scroll-snap-align:start} .foot {min-height:0}
}
#stop, #resume {align-self:end}
[id^=TrainConfig-use_] {min-width:9rem !important}
#guide {border:1px solid var(--border-color-primary); border-radius:8px; padding:.5rem .8rem; align-items:center}
#guide-line, #placement {flex:1 1 16rem} #guide button {flex:none} #guide p {margin:.3rem 0 0}
.guide {display:flex; flex-wrap:wrap; gap:.2rem .5rem; list-style:none; margin:0; padding:0}
#guide .guide li {margin:0; padding:.1rem .6rem; font-size:.85rem}
.guide li {border:1px solid var(--border-color-primary); border-radius:1rem}
.guide .done {color:var(--good)} .guide .done::before {content:"✓ "}
.guide [aria-current] {font-weight:700; border-color:var(--chosen); color:var(--chosen)}
.dark .download-link {color:var(--focus) !important}
.unseen {position:absolute; width:1px; height:1px; overflow:hidden; clip-path:inset(50%)}
.account {display:flex; flex-wrap:wrap; gap:.4rem 1.2rem; align-items:center; font-size:.9rem}
.account form {display:flex; gap:.5rem; margin:0} .disabled-why {font-size:.9rem; opacity:.85; margin:.2rem 0}
.account input, .account button {border:1px solid var(--border-color-primary); border-radius:4px}
.account input, .account button {font:inherit; padding:.2rem .6rem}
.account input, .account button {background:var(--background-fill-primary); color:var(--body-text-color)}
.live {display:grid; grid-template-columns:repeat(auto-fit,minmax(260px,1fr)); gap:1rem; font-size:.9rem}
.live dl {display:grid; grid-template-columns:max-content 1fr; gap:.2rem 1rem; margin:.3rem 0}
.live dt {opacity:.75} .live dd {margin:0; overflow-wrap:anywhere} .live h4 {margin:0}
"""


LABELS = """() => {
  let clicked = null;
  document.addEventListener("click", event => { clicked = event.target; }, true);
  const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
  if (write) navigator.clipboard.writeText = text => write(
    clicked?.closest?.("#answers") ? text.replace(/&(lt|amp);/g, (_, name) => name === "lt" ? "<" : "&") : text);
  const name = () =>
    document.querySelector("#runs .search-input")?.setAttribute("aria-label", "Filter the runs");
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}"""
"""Names for screen readers that Gradio gives no way to set, given as what bears them is drawn; and what is copied out
of a conversation, as it was said (see `talk.as_html`)."""


def theme() -> gr.themes.Base:
    """Gradio's own, with text that is dark enough on its ground, and a bold face that has all letters."""
    return gr.themes.Default(
        primary_hue="amber",
        # the packaged semi-bold face holds Cyrillic letters only
        font=(gr.themes.utils.fonts.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=(gr.themes.utils.fonts.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
    ).set(
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        button_primary_text_color="*neutral_900",
        button_primary_text_color_dark="*neutral_950",
    )
