// The page: gives scans to the service, follows their jobs and shows the answers.
import * as api from "./api.js";
import { announce, byId, el, problemCard, round, size, spoken } from "./dom.js";
import { downloads } from "./downloads.js";
import { boxColour, classesList, findingsList } from "./findings.js";
import { isOver, progressCard, showJobs, stateText } from "./jobs.js";
import { prepareTools } from "./tools.js";
import { upload, watchFiles } from "./upload.js";
import { openViewer, PLANES, WINDOWS } from "./viewer.js";

const POLL_MS = 800;
const POLL_HIDDEN_MS = 5000;

const page = {
  models: [],
  jobs: [],
  job: null, // the one that is shown
  study: null, // the one whose scan is in the views
  viewer: null,
  opening: null, // a promise of the viewer
  list: null, // of the answer that is shown
  progress: null,
  turn: 0, // counts what was opened, so that a slow load does not overwrite a later one
  window: WINDOWS[remembered("window")] ?? null,
  poll: null,
};

function remembered(name) {
  try {
    return localStorage.getItem(`voxray.${name}`);
  } catch {
    return null;
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(`voxray.${name}`, value);
  } catch {
    // a browser that keeps nothing
  }
}

const modelOf = (name) => page.models.find((model) => model.name === name);
const shape = (study) => `${study.shape.join(" × ")} voxels of ${study.spacing_mm.map((mm) => round(mm, 2)).join(" × ")} mm`;

// ---- Models

async function loadModels() {
  page.models = await api.models();
  const select = byId("model");
  const wanted = select.value || remembered("model");
  select.replaceChildren(...page.models.map((model) =>
    el("option", { value: model.name, text: spoken(model.name) + (model.ready ? "" : " (getting ready)"), selected: model.name === wanted })));
  aboutModel();
}

function aboutModel() {
  const model = modelOf(byId("model").value);
  const classes = model && (model.classes.length > 3 ? `${model.classes.length} classes` : model.classes.map(spoken).join(", "));
  byId("model-about").textContent = model ? [model.description.replace(/[^.]$/, "$&."), model.task === "detection" ? `Boxes: ${classes}.` : `Masks: ${classes}.`].filter(Boolean).join(" ") : "";
}

// ---- Giving a scan

async function give(files, series = null) {
  if (!files.length || byId("give").hasAttribute("aria-busy")) return;
  showStart();
  const study = await upload(files, { series, again: (chosen) => give(files, chosen) });
  if (study) await ask(study.study_id, byId("model").value);
}

async function ask(studyId, model) {
  try {
    const job = await api.newJob(studyId, model);
    page.jobs = [job, ...page.jobs];
    await open(job.job_id);
  } catch (error) {
    byId("give-problem").replaceChildren(problemCard(error));
    if (page.job) byId("answer").prepend(problemCard(error));
  }
}

// ---- Following jobs

async function follow() {
  clearTimeout(page.poll);
  try {
    page.jobs = await api.jobs();
    drawJobs();
    if (page.job && !isOver(page.job)) await progressed(await newsOf(page.job.job_id));
    if (!page.models.length || page.models.some((model) => !model.ready)) await loadModels();
  } catch (error) {
    byId("headline").textContent = error.detail ?? "";
    page.poll = setTimeout(follow, POLL_HIDDEN_MS);
    return;
  }
  byId("headline").textContent = "";
  const shown = page.job ? [page.job] : []; // it may be older than those of the list
  const waits = [...page.jobs, ...shown].some((job) => !isOver(job)) || !page.models.length || page.models.some((model) => !model.ready);
  if (waits) page.poll = setTimeout(follow, document.hidden ? POLL_HIDDEN_MS : POLL_MS);
}

// A job that is not in the list may be older than those of the list, or deleted: by itself it is asked for.
async function newsOf(jobId) {
  const listed = page.jobs.find((one) => one.job_id === jobId);
  if (listed) return listed;
  try {
    return await api.job(jobId);
  } catch (error) {
    if (error.status !== 404) throw error;
    return { gone: error, job_id: jobId };
  }
}

async function progressed(job) {
  if (job.job_id !== page.job?.job_id) return; // another was opened meanwhile
  if (job.gone) {
    showStart();
    byId("give-problem").replaceChildren(problemCard(job.gone));
    return;
  }
  const before = stateText(page.job);
  page.job = job;
  if (!isOver(job)) {
    page.progress?.update(job);
    if (stateText(job) !== before) announce(stateText(job));
    return;
  }
  await showAnswer(job, page.turn);
}

const drawJobs = () => showJobs(page.jobs, { open, remove, current: page.job?.job_id });

async function remove(job) {
  if (!(await confirmed("Delete this answer?", "The job and its results are deleted from the service."))) return;
  try {
    await api.deleteJob(job.job_id);
  } catch (error) {
    if (error.status !== 404) byId("give-problem").replaceChildren(problemCard(error));
  }
  page.jobs = page.jobs.filter((one) => one.job_id !== job.job_id);
  if (page.job?.job_id === job.job_id) showStart();
  drawJobs();
  announce("Deleted.");
}

function confirmed(title, text) {
  const dialog = el("dialog", { "aria-labelledby": "dialog-title" },
    el("form", { method: "dialog" },
      el("h2", { id: "dialog-title", text: title }), el("p", { text }),
      el("p", { class: "buttons" },
        el("button", { value: "no", text: "Keep" }), el("button", { value: "yes", class: "danger", text: "Delete" }))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    }));
}

// ---- Showing a job

function showStart() {
  page.turn++;
  page.job = null;
  document.body.dataset.view = "start";
  for (const id of ["stage", "answer"]) byId(id).hidden = true;
  if (location.hash) history.pushState(null, "", location.pathname);
  document.title = "voxray";
  drawJobs();
}

async function open(jobId) {
  const turn = ++page.turn;
  byId("give-problem").replaceChildren();
  let job;
  try {
    job = await api.job(jobId);
  } catch (error) {
    showStart();
    byId("give-problem").replaceChildren(problemCard(error));
    return;
  }
  if (turn !== page.turn) return;
  page.job = job;
  if (location.hash !== `#${jobId}`) history.pushState(null, "", `#${jobId}`);
  document.body.dataset.view = "scan";
  for (const id of ["stage", "answer"]) byId(id).hidden = false;
  document.title = `${spoken(job.model)} - voxray`;
  drawAnswer(job, null);
  drawJobs();
  window.scrollTo(0, 0); // on a phone the list of earlier scans lies below the picture
  if (!isOver(job)) follow();
  const shown = await showScan(job.study_id, turn);
  if (shown && turn === page.turn && isOver(page.job)) await showAnswer(page.job, turn);
}

const note = (text) => (byId("views-note").textContent = text);

// One for all scans, also where a second scan is opened before it is there.
function theViewer() {
  page.opening ??= openViewer(
    { views: byId("views"), planes: byId("planes"), render: byId("render"), ink: byId("ink") },
    { onMove: tellPlace, onWindow: tellWindow, onPoint: pointed },
  ).catch((error) => {
    page.opening = null;
    throw error;
  });
  return page.opening;
}

async function showScan(studyId, turn) {
  try {
    page.viewer = await theViewer();
    if (turn !== page.turn) return false;
    if (page.shown === studyId) {
      await page.viewer.clearMasks();
      return turn === page.turn;
    }
    page.shown = null;
    await page.viewer.clear();
    note("Loading the scan");
    const [study, bytes] = await Promise.all([
      api.study(studyId),
      api.bytes(api.volumePath(studyId), (share, loaded) => note(`Loading the scan, ${share === null ? size(loaded) : `${Math.round(100 * share)} %`}`)),
    ]);
    if (turn !== page.turn) return false;
    page.study = study;
    drawAnswer(page.job, null);
    const window = chosenWindow();
    await page.viewer.showScan(bytes, window);
    if (turn !== page.turn) return false; // it may have been cleared again
    page.shown = studyId;
    note("");
    tools.tell({ window });
    return true;
  } catch (error) {
    if (turn === page.turn) note(error.detail ? `${error.detail} ${error.remedy}` : `The scan cannot be shown: ${error.message}.`);
    console.warn(error);
    return turn === page.turn;
  }
}

// A guess for the first look, by the names in the model; a window that the user chose stays.
function chosenWindow() {
  if (page.window) return page.window;
  const words = [page.job.model, ...(modelOf(page.job.model)?.classes.slice(0, 4) ?? [])].join(" ");
  return /lung|nodule|airway|pulmon|thora|chest/i.test(words) ? WINDOWS.lung : WINDOWS.soft;
}

// ---- The answer's panel

// Answers stay when their model is taken away, or another one gets its name.
function modelNote(job, sha256) {
  const model = modelOf(job.model);
  if (!model && page.models.length && !job.is_served) {
    return isOver(job) ? "This model is no longer served; its answers stay until they expire." : "This model is not served now: the job waits until it is served again.";
  }
  return model?.sha256 && sha256 && model.sha256 !== sha256 ? "The model of this name has been replaced since; it might answer otherwise today." : "";
}

// With `result` the answer, with `error` why it cannot be shown; with neither it is being loaded.
function drawAnswer(job, result, error = null) {
  const model = modelOf(job.model);
  const parts = [
    el("header", {},
      el("h2", { id: "answer-title", text: result?.title ?? spoken(job.model) }),
      el("p", { class: "about", text: result ? spoken(job.model) : model?.description ?? "" })),
  ];
  const changed = modelNote(job, result?.sha256);
  if (changed) parts.push(el("p", { class: "warning", text: changed }));
  page.progress = null;
  if (job.state === "failed") parts.push(problemCard(job.error ?? { detail: "The job failed." }, again(job)));
  else if (job.state === "cancelled") parts.push(el("div", { class: "problem calm" }, el("p", { text: "This job was cancelled." }), el("p", { class: "buttons" }, again(job))));
  else if (job.state === "done" && result) parts.push(result.element, downloads(job));
  else if (job.state === "done" && error) parts.push(problemCard(error, el("button", { type: "button", class: "main", onclick: () => showAnswer(job, page.turn), text: "Load again" })));
  else if (job.state === "done") parts.push(el("p", { class: "about", text: "Loading the answer" }));
  else {
    page.progress = progressCard({ cancel: () => cancel(job) });
    page.progress.update(job);
    parts.push(page.progress.element);
  }
  parts.push(aboutScan(job));
  byId("answer").replaceChildren(...parts);
  byId("answer").setAttribute("aria-label", `Answer of ${spoken(job.model)}`);
}

const again = (job) => (job.is_served ? el("button", { type: "button", class: "main", onclick: () => ask(job.study_id, job.model), text: "Try again" }) : "");

async function cancel(job) {
  try {
    await progressed(await api.cancelJob(job.job_id));
    follow();
  } catch (error) {
    byId("answer").prepend(problemCard(error));
  }
}

function aboutScan(job) {
  const study = page.study?.study_id === job.study_id ? page.study : null;
  const rows = [
    study && ["Scan", `${study.is_dicom ? "DICOM" : study.format}, ${shape(study)}`],
    job.timing_s?.total && job.state === "done" ? ["Time", `${round(job.timing_s.total, 1)} s, of which the model ${round(job.timing_s.answer, 1)} s`] : null,
    ["Kept until", new Date(job.expires).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })],
  ].filter(Boolean);
  const others = page.models.filter((model) => model.name !== job.model);
  const select = el("select", { id: "other", "aria-label": "Another model" }, ...others.map((model) => el("option", { value: model.name, text: spoken(model.name) })));
  return el("section", { class: "scan-facts" },
    ...(job.state === "done" ? [] : study?.warnings ?? []).map((warning) => el("p", { class: "warning", text: warning })),
    el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
    others.length && isOver(job)
      ? el("p", { class: "row other" }, select, el("button", { type: "button", onclick: () => ask(job.study_id, select.value), text: "Ask this model, too" }))
      : null);
}

async function showAnswer(job, turn) {
  drawJobs();
  announce(stateText(job));
  page.list = null;
  drawAnswer(job, null);
  if (job.state !== "done") return;
  try {
    const file = await api.answer(job.job_id);
    if (turn !== page.turn) return;
    await (file.findings ? showFindings(job, file) : showLabels(job, file, turn));
  } catch (error) {
    console.warn(error);
    if (turn === page.turn) drawAnswer(job, null, error);
  }
}

async function showFindings(job, file) {
  const found = [...new Set(file.findings.map((finding) => finding.class))];
  const known = modelOf(job.model)?.classes ?? [];
  const classes = found.every((name) => known.includes(name)) ? known : found.sort(); // another model may have its name
  let shown = [];
  const list = findingsList(file, classes, {
    show: (findings) => {
      shown = findings;
      byId("answer-title").textContent = list.title(findings.length);
      if (page.shown === job.study_id) page.viewer.showBoxes(findings.map((finding) => boxOf(finding, classes)));
    },
    choose: (index, { stay = false } = {}) => {
      if (page.shown !== job.study_id) return;
      page.viewer.choose(index);
      const [x, y, z] = shown[index].center_mm;
      if (!stay) page.viewer.moveTo([-x, -y, z]); // the answer is in LPS, niivue in RAS
    },
  });
  drawAnswer(job, { title: list.title(0), element: withWarnings(list.element, file), sha256: file.model.sha256 });
  page.list = list;
  list.start();
  announce(byId("answer-title").textContent);
}

function boxOf(finding, classes) {
  const label = `${finding.id} · ${round(finding.diameter_mm, 1)} mm · ${round(finding.score, 2)}`;
  return { id: finding.id, box: finding.box_vox, colour: boxColour(classes, finding.class), short: String(finding.id), label };
}

async function showLabels(job, file, turn) {
  const ready = page.shown === job.study_id;
  const list = classesList(file, {
    change: (hidden, opacity) => ready && page.viewer.setMasks(list.labels, hidden, opacity),
    go: (value) => {
      const place = ready && page.viewer.placeOf(value);
      if (place) page.viewer.moveTo(place);
    },
  });
  drawAnswer(job, { title: list.labels.length === 1 ? "1 class found" : `${list.labels.length} classes found`, element: withWarnings(list.element, file), sha256: file.model.sha256 });
  page.list = list;
  if (ready && list.labels.length) await showMasks(job, list, turn);
  if (turn !== page.turn) return;
  announce(byId("answer-title").textContent);
}

// Volumes are shown without their masks, where these do not come.
async function showMasks(job, list, turn) {
  note("Loading the masks");
  try {
    const bytes = await api.bytes(api.resultPath(job.job_id, "nifti"), () => {});
    if (turn !== page.turn) return;
    await page.viewer.showMasks(bytes, list.labels);
    note("");
    list.start();
  } catch (error) {
    console.warn(error);
    if (turn === page.turn) note(error.detail ? `${error.detail} ${error.remedy}` : `The masks cannot be shown: ${error.message}.`);
  }
}

const withWarnings = (element, file) =>
  el("div", {}, ...(file.warnings ?? []).map((warning) => el("p", { class: "warning", text: warning })), element);

// ---- What the views tell

function tellPlace(place) {
  tools.tell(place);
  const [x, y, z] = [-place.mm[0], -place.mm[1], place.mm[2]].map((value) => round(value, 1));
  const name = place.label ? page.list?.name?.(place.label) : "";
  byId("probe").replaceChildren(
    el("span", { text: `${Math.round(place.hu)} HU` }), el("span", { class: "where", text: `x ${x}  y ${y}  z ${z} mm` }), name ? el("strong", { text: name }) : "");
}

const tellWindow = (low, high) => tools.tell({ window: { low, high } });

function pointed(index) {
  page.viewer.choose(index);
  page.list?.mark(index);
}

const tools = prepareTools({
  viewer: () => (page.shown ? page.viewer : null),
  planeName: (plane) => PLANES[plane],
  next: (by) => page.list?.next(by),
  chooseWindow: (key) => {
    page.window = WINDOWS[key];
    remember("window", key);
    page.viewer?.setWindow(page.window);
  },
});

// ---- Start

function fromAddress() {
  const id = location.hash.slice(1);
  if (/^[0-9a-f]{32}$/.test(id)) open(id);
  else if (page.job) showStart();
}

byId("model").addEventListener("change", () => {
  remember("model", byId("model").value);
  aboutModel();
});
byId("new-scan").addEventListener("click", () => {
  showStart();
  byId("choose-files").focus();
});
byId("sign-out").addEventListener("click", async () => {
  await api.signOut().catch(() => null);
  location.assign("/");
});
window.addEventListener("popstate", fromAddress);
document.addEventListener("visibilitychange", () => document.hidden || follow());
watchFiles((files) => give(files));
window.voxray = page; // for a look from the browser's console

try {
  await loadModels();
} catch (error) {
  byId("give-problem").replaceChildren(problemCard(error));
}
await follow();
fromAddress();
