// The tools around the views: layout, window, zoom, the slice's slider, and the keys.
import { byId, el } from "./dom.js";
import { LAYOUTS, WINDOWS } from "./viewer.js";

export function prepareTools({ viewer, planeName, next, chooseWindow }) {
  const layouts = choice(byId("layouts"), Object.entries(LAYOUTS), (name) => setLayout(name));
  const windows = choice(byId("windows"), Object.entries(WINDOWS).map(([key, { name }]) => [key, name]), chooseWindow);
  const zooms = [["minus", "−", "Smaller"], ["fit", "Fit", "Fit to the view"], ["plus", "+", "Larger"]];
  byId("zooms").append(...zooms.map(([what, text, title]) =>
    el("button", { type: "button", text, title, "aria-label": title, onclick: () => zoom(what) })));

  function setLayout(name) {
    byId("views").dataset.layout = name; // also before a viewer is there
    layouts.mark(name);
    viewer()?.setLayout(name);
    document.querySelector(".strip").dataset.layout = name;
  }

  function zoom(what) {
    if (what === "fit") viewer()?.fit();
    else viewer()?.zoom(what === "plus" ? 1.35 : 1 / 1.35);
  }

  const slider = byId("slice");
  slider.addEventListener("input", () => viewer()?.goToSlice(Number(slider.value)));

  const names = Object.keys(LAYOUTS);
  const keys = {
    ArrowUp: (view) => (view.layout === "render" ? view.turn(0, 5) : view.step(1)),
    ArrowDown: (view) => (view.layout === "render" ? view.turn(0, -5) : view.step(-1)),
    PageUp: (view) => view.step(5),
    PageDown: (view) => view.step(-5),
    ArrowLeft: (view) => view.turn(-5, 0),
    ArrowRight: (view) => view.turn(5, 0),
    n: () => next(1),
    p: () => next(-1),
    "+": () => zoom("plus"),
    "=": () => zoom("plus"),
    "-": () => zoom("minus"),
    0: () => zoom("fit"),
    w: () => chooseWindow(windows.after()),
    ...Object.fromEntries(names.map((name, k) => [k + 1, () => setLayout(name)])),
  };
  byId("views").addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key !== "Tab") event.stopPropagation(); // niivue has keys of its own
      const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      const view = viewer();
      if (!act || !view) return;
      event.preventDefault();
      act(view);
    },
    { capture: true },
  );

  const phone = window.matchMedia("(max-width: 700px)");
  setLayout(phone.matches ? "axial" : "all");

  return {
    // What the views tell: a window {low, high}, or a place with its plane, the slice's number and how many there are.
    tell({ window = null, plane = null, count, number }) {
      if (window) windows.mark(Object.keys(WINDOWS).find((key) => WINDOWS[key].low === window.low && WINDOWS[key].high === window.high));
      if (plane === null) return;
      byId("slice-name").textContent = `${planeName(plane)} slice`;
      Object.assign(slider, { max: count, value: number });
      byId("slice-number").textContent = `${number} / ${count}`;
    },
    layout: () => byId("views").dataset.layout,
  };
}

// Buttons of which one is pressed.
function choice(group, entries, choose) {
  const buttons = new Map(entries.map(([key, text]) =>
    [key, el("button", { type: "button", text, "aria-pressed": "false", onclick: () => choose(key) })]));
  group.append(...buttons.values());
  let pressed = null;
  const mark = (wanted) => {
    pressed = wanted;
    for (const [key, button] of buttons) button.setAttribute("aria-pressed", key === wanted);
  };
  const order = [...buttons.keys()];
  return { mark, after: () => order[(order.indexOf(pressed) + 1) % order.length] };
}
