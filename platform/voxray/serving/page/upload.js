// Files from a drop, a chosen folder or a file dialog; and how an upload is shown.
import * as api from "./api.js";
import { announce, byId, el, problemCard, setBar, size } from "./dom.js";

// What systems and burnt discs leave beside the images; the service would refuse it as no image.
const BESIDE = /^(\.|thumbs\.db$|desktop\.ini$|dicomdir$|__macosx)/i;

const isWanted = (path) => !path.split("/").some((part) => BESIDE.test(part));

// Calls onFiles with what was dropped anywhere on the page or chosen by a button.
export function watchFiles(onFiles) {
  const drop = byId("drop");
  let depth = 0;
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  window.addEventListener("dragenter", (event) => holdsFiles(event) && mark(1));
  window.addEventListener("dragleave", (event) => holdsFiles(event) && mark(-1));
  window.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  window.addEventListener(
    "drop",
    async (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      event.stopPropagation();
      mark(-depth);
      onFiles(await droppedFiles(event.dataTransfer));
    },
    { capture: true },
  );
  drop.addEventListener("click", (event) => event.target.closest("button") || byId("files").click());
  for (const [button, input] of [["choose-files", "files"], ["choose-folder", "folder"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", (event) => {
      const chosen = [...event.target.files].filter((file) => isWanted(file.webkitRelativePath || file.name));
      event.target.value = "";
      if (chosen.length) onFiles(chosen);
    });
  }
}

async function droppedFiles(transfer) {
  // The entries must be taken at once: the browser empties the transfer when the handler returns.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const plain = [...transfer.files];
  if (!entries.some((entry) => entry.isDirectory)) return plain.filter((file) => isWanted(file.name));
  return (await Promise.all(entries.map(filesOf))).flat();
}

async function filesOf(entry) {
  if (!isWanted(entry.name)) return [];
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return found;
    found.push(...(await Promise.all(batch.map(filesOf))).flat());
  }
}

// Sends the files and shows how far it is. Gives the study, or null where it was stopped or refused. Where the service asks
// which series is meant, `again(series)` is called with the one that is chosen.
export async function upload(files, { series = null, again }) {
  const stop = new AbortController();
  const total = files.reduce((sum, file) => sum + file.size, 0);
  const what = `${files.length === 1 ? "one file" : `${files.length} files`}, ${size(total)}`;
  const show = (text, share) => {
    byId("upload-text").textContent = text;
    setBar(byId("upload-bar"), share, text);
  };
  byId("give-problem").replaceChildren();
  byId("upload").hidden = false;
  byId("upload-stop").onclick = () => stop.abort();
  byId("give").setAttribute("aria-busy", "true");
  show(`Sending ${what}`, 0);
  announce(`Sending ${what}`);
  try {
    return await api.newStudy(files, {
      signal: stop.signal,
      series,
      onProgress: (sent, all) => show(sent < all ? `Sending ${what}` : "Checking the scan", sent / all),
    });
  } catch (error) {
    if (error.name === "AbortError") announce("The upload was stopped.");
    else {
      const choices = error.series.map(({ handle, num_files: count, number }) =>
        el("button", { type: "button", onclick: () => again(handle), text: `Series ${number}, ${count === 1 ? "one image" : `${count} images`}` }));
      const asked = { ...error, detail: `There are ${choices.length} CT series here.`, remedy: "Choose the one to read." };
      byId("give-problem").replaceChildren(problemCard(choices.length > 1 ? asked : error, ...choices));
    }
    return null;
  } finally {
    byId("upload").hidden = true;
    byId("give").removeAttribute("aria-busy");
  }
}
