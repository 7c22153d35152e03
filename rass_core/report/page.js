"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(name).trim();
  const font = {family: colour("--font"), size: narrow.matches ? 11 : 12.5, color: colour("--ink-2")};
  const update = {font: font, modebar: {bgcolor: "rgba(0,0,0,0)", color: colour("--line-2"), activecolor: colour("--accent")}, hoverlabel: {align: "left", bgcolor: colour("--card"), bordercolor: colour("--line-2"),
    font: {family: font.family, size: narrow.matches ? 9.5 : 12.5, color: colour("--ink")}}};
  for (const axis of Object.keys(layout).filter(key => /^[xy]axis\d*$/.test(key))) {
    update[axis] = Object.assign({}, layout[axis],
      {gridcolor: colour("--line"), linecolor: colour("--line-2"), tickcolor: colour("--line-2")});
  }
  return Object.assign({}, layout, update);
}

function draw(element) {
  const figure = figures[element.dataset.figure];
  const layout = themed(figure.layout);
  const coarse = matchMedia("(pointer: coarse)").matches;  // where a finger drags, it scrolls the page
  if (coarse) layout.dragmode = false;
  const entries = figure.data.filter(trace => trace.showlegend !== false).length;
  if (narrow.matches) layout.height += 16 * Math.max(0, entries - 3);  // the legend takes a line an entry
  Plotly.react(element, figure.data, layout, {responsive: true, displaylogo: false,
    displayModeBar: !coarse && !narrow.matches && element.closest(".wide") ? "hover" : false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]]});
  element.dataset.drawn = "yes";
}

function drawVisible(root) {
  for (const element of root.querySelectorAll(".plot")) {
    if (element.offsetParent === null) continue;
    if (element.dataset.drawn) Plotly.Plots.resize(element); else draw(element);
  }
}

function show(group, index) {
  group.querySelectorAll(":scope > .tabs [role=tab]").forEach((tab, i) => {
    tab.setAttribute("aria-selected", i === index);
    tab.tabIndex = i === index ? 0 : -1;
  });
  const choice = group.querySelector(":scope > .tabs select");
  if (choice) choice.selectedIndex = index;
  group.querySelectorAll(":scope > .panel").forEach((panel, i) => { panel.hidden = i !== index; });
  drawVisible(group);
}

for (const group of document.querySelectorAll(".switch")) {
  const tabs = [...group.querySelectorAll(":scope > .tabs [role=tab]")];
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => show(group, i));
    tab.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      const next = (i + step + tabs.length) % tabs.length;
      show(group, next);
      tabs[next].focus();
    });
  });
  const choice = group.querySelector(":scope > .tabs select");
  if (choice) choice.addEventListener("change", () => show(group, choice.selectedIndex));
  show(group, 0);
}
drawVisible(document);
for (const query of [dark, narrow]) {
  query.addEventListener("change", () => {
    document.querySelectorAll(".plot[data-drawn]").forEach(element => { delete element.dataset.drawn; });
    drawVisible(document);
  });
}
