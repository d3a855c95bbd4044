// The answer of a detection: a list of findings, a slider of the least score; and of a segmentation: a list of classes.
import { el, round, showRow, spoken, volume } from "./dom.js";

// Told apart by eye, also by those who confuse red and green.
const BOX_COLOURS = ["#ffb454", "#5cc8ff", "#ff7eb6", "#8ce99a", "#c3a6ff", "#ffe066"];
const USUAL_SCORE = 0.5;

export const boxColour = (classes, name) => BOX_COLOURS[Math.max(0, classes.indexOf(name)) % BOX_COLOURS.length];

// Hues a golden angle apart: neighbours in the list never look alike.
export function maskColours(labels) {
  return new Map(labels.map(({ value }, k) => [value, hsl((28 + k * 137.508) % 360, 0.72 - 0.14 * (k % 3), 0.6 + 0.07 * (k % 2))]));
}

function hsl(hue, saturation, lightness) {
  const reach = saturation * Math.min(lightness, 1 - lightness);
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - reach * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;

// The list of a detection. Calls show(findings) when another score is asked for, and choose(index) for one of those shown.
export function findingsList(file, classes, { show, choose }) {
  const all = file.findings;
  const list = el("ul", { class: "findings", role: "listbox", tabindex: "0", "aria-label": "Findings, the surest first" });
  const count = el("p", { class: "count", "aria-live": "polite" });
  const many = new Set(all.map((finding) => finding.class)).size > 1;
  let shown = [];
  let chosen = -1;

  const mark = (index) => {
    chosen = index;
    [...list.children].forEach((row, k) => row.setAttribute("aria-selected", k === index));
    const row = list.children[index];
    list.setAttribute("aria-activedescendant", row?.id ?? "");
    showRow(row);
  };
  const pick = (index) => {
    if (!shown.length) return;
    mark(Math.min(shown.length - 1, Math.max(0, index)));
    choose(chosen);
  };
  const row = (finding, index) => {
    const [x, y, z] = finding.center_mm.map((value) => round(value, 1));
    return el(
      "li",
      { id: `finding-${finding.id}`, role: "option", "aria-selected": "false", onclick: () => pick(index),
        style: { "--colour": boxColour(classes, finding.class) } },
      el("span", { class: "badge", text: finding.id }),
      el("span", { class: "what" },
        el("strong", { text: `${round(finding.diameter_mm, 1)} mm` }), many ? ` ${spoken(finding.class)}` : "",
        el("small", { text: `x ${x}  y ${y}  z ${z} mm` })),
      el("span", { class: "score", "aria-label": `score ${round(finding.score, 2)}` },
        el("span", { text: round(finding.score, 2) }), el("i", { style: { "--share": `${100 * finding.score}%` } })),
    );
  };
  const showFrom = (least) => {
    const before = shown[chosen]?.id;
    shown = all.filter((finding) => finding.score >= least);
    list.replaceChildren(...shown.map(row));
    const hidden = all.length - shown.length;
    count.textContent = `${shown.length} of ${all.length} shown${hidden ? `, ${hidden} less sure` : ""}`;
    list.hidden = !shown.length;
    rest.hidden = shown.length > 0;
    show(shown);
    const again = shown.findIndex((finding) => finding.id === before);
    mark(again);
    if (again >= 0) choose(again, { stay: true });
  };
  list.addEventListener("keydown", (event) => {
    const to = { ArrowDown: chosen + 1, ArrowUp: chosen - 1, Home: 0, End: shown.length - 1, Enter: chosen, " ": chosen }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pick(to);
  });

  const slider = el("input", { type: "range", id: "least", min: "0", max: "1", step: "0.01", value: String(USUAL_SCORE) });
  const told = el("output", { for: "least", text: round(USUAL_SCORE, 2) });
  slider.addEventListener("input", () => {
    told.textContent = round(Number(slider.value), 2);
    showFrom(Number(slider.value));
  });
  const setLeast = (least) => {
    slider.value = String(least);
    slider.dispatchEvent(new Event("input"));
  };
  const rest = el("p", { class: "none" }, "Nothing has this score.",
    el("button", { type: "button", onclick: () => { setLeast(0); pick(0); list.focus(); }, text: "Show the less sure" }));
  const parts = all.length
    ? [el("div", { class: "slider" }, el("label", { for: "least", text: "Score at least" }), slider, told), count, rest, list]
    : [el("p", { class: "none", text: "Nothing was found." })];
  return {
    title: (n) => (n === 1 ? "1 finding" : `${n} findings`),
    element: el("div", { class: "result" }, ...parts),
    start: () => {
      showFrom(USUAL_SCORE);
      if (shown.length) pick(0);
    },
    next: (by) => pick(chosen < 0 ? 0 : (chosen + by + shown.length) % Math.max(1, shown.length)),
    mark,
  };
}

// The list of a segmentation. Calls change(hidden, opacity), and go(value) for the class that the views shall show.
export function classesList(file, { change, go }) {
  const found = file.labels.filter((entry) => entry.num_voxels > 0).sort((a, b) => b.volume_mm3 - a.volume_mm3);
  const absent = file.labels.filter((entry) => entry.num_voxels === 0);
  const colours = maskColours([...found].sort((a, b) => a.value - b.value));
  const labels = found.map((entry) => ({ value: entry.value, rgb: colours.get(entry.value) }));
  const hidden = new Set();
  let opacity = 0.5;

  const row = (entry) => {
    const name = spoken(entry.class);
    const box = el("input", { type: "checkbox", checked: true, "aria-label": `Show ${name}` });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(entry.value);
      else hidden.add(entry.value);
      change(hidden, opacity);
    });
    return el("li", { style: { "--colour": css(colours.get(entry.value)) }, "data-value": entry.value },
      box,
      el("button", { type: "button", class: "class-row", onclick: () => pick(entry.value) },
        el("span", { class: "what", text: name }), el("span", { class: "amount", text: volume(entry.volume_mm3) })));
  };
  const list = el("ul", { class: "classes", "aria-label": "Classes found, the largest first" }, ...found.map(row));
  const mark = (value) => {
    for (const item of list.children) {
      const is = Number(item.dataset.value) === value;
      item.querySelector("button").toggleAttribute("aria-current", is);
      if (is) showRow(item);
    }
  };
  const pick = (value) => {
    mark(value);
    go(value);
  };
  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const kind = event.target.tagName;
    const item = event.target.closest("li");
    (by > 0 ? item.nextElementSibling : item.previousElementSibling)?.querySelector(kind)?.focus();
  });
  const all = (visible) => {
    hidden.clear();
    if (!visible) found.forEach((entry) => hidden.add(entry.value));
    for (const box of list.querySelectorAll("input")) box.checked = visible;
    change(hidden, opacity);
  };
  const slider = el("input", { type: "range", id: "opacity", min: "0", max: "1", step: "0.05", value: String(opacity) });
  slider.addEventListener("input", () => change(hidden, (opacity = Number(slider.value))));

  const parts = found.length
    ? [
        el("div", { class: "slider" }, el("label", { for: "opacity", text: "Opacity" }), slider),
        el("p", { class: "row" },
          el("span", { class: "count", text: `${found.length} of ${file.labels.length} classes` }),
          el("span", { class: "buttons" },
            el("button", { type: "button", class: "quiet", onclick: () => all(true), text: "Show all" }),
            el("button", { type: "button", class: "quiet", onclick: () => all(false), text: "Hide all" }))),
        list,
      ]
    : [el("p", { class: "none", text: "None of the model's classes was found." })];
  if (found.length && absent.length) {
    const names = absent.map((entry) => spoken(entry.class)).join(", ");
    parts.push(el("details", { class: "absent" }, el("summary", { text: `Not found (${absent.length})` }), el("p", { text: names })));
  }
  let at = -1;
  return {
    labels,
    name: (value) => spoken(file.labels.find((entry) => entry.value === value)?.class ?? ""),
    element: el("div", { class: "result" }, ...parts),
    start: () => found.length && pick(found[0].value),
    next: (by) => {
      if (!found.length) return;
      at = (at + by + found.length) % found.length;
      pick(found[at].value);
    },
    mark,
  };
}
