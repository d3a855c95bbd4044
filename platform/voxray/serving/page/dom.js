// Elements made in one line, and the few numbers that are written in more than one place.

export const byId = (id) => document.getElementById(id);

// An element. `on...` are listeners, `text` is its text, `style` is CSS properties; false and null leave an attribute out.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (name === "style") for (const [key, entry] of Object.entries(value)) node.style.setProperty(key, entry);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Screen readers say it; nobody else sees it.
export function announce(text) {
  const place = byId("announcer");
  if (place && place.textContent !== text) place.textContent = text;
}

// Brings a row into sight within its own list. Element.scrollIntoView would scroll the whole page, too: on a phone, where
// the list lies below the picture, that takes the picture away.
export function showRow(row) {
  const pane = row?.closest("#answer");
  if (!pane || pane.scrollHeight <= pane.clientHeight || !/auto|scroll/.test(getComputedStyle(pane).overflowY)) return;
  const [inner, outer] = [row.getBoundingClientRect(), pane.getBoundingClientRect()];
  if (inner.top < outer.top) pane.scrollTop -= outer.top - inner.top;
  else if (inner.bottom > outer.bottom) pane.scrollTop += inner.bottom - outer.bottom;
}

// The server's sentence and its remedy.
export function problemCard(error, ...actions) {
  return el(
    "div",
    { class: "problem", role: "alert" },
    el("p", { class: "problem-detail", text: error.detail ?? String(error) }),
    error.remedy ? el("p", { class: "problem-remedy", text: error.remedy }) : null,
    el("p", { class: "problem-code", text: [error.code, error.requestId && `request ${error.requestId}`].filter(Boolean).join(" · ") }),
    actions.length ? el("p", { class: "buttons" }, ...actions) : null,
  );
}

export function setBar(bar, share, text) {
  const percent = Math.round(100 * share);
  bar.style.setProperty("--share", `${percent}%`);
  bar.setAttribute("aria-valuenow", percent);
  if (text) bar.setAttribute("aria-valuetext", text);
}

export const round = (value, digits) => value.toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1");

export function size(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

export function volume(mm3) {
  const ml = mm3 / 1000;
  return `${ml.toFixed(ml < 1 ? 2 : ml < 100 ? 1 : 0)} ml`;
}

export function when(text) {
  const date = new Date(text);
  const today = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return today ? `today, ${time}` : `${date.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

// lung_nodules -> Lung nodules
export function spoken(name) {
  const words = name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
