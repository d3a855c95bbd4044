// Jobs: the list of earlier ones, and how one that is under way is shown.
import { byId, el, setBar, spoken, when } from "./dom.js";

export const isOver = (job) => ["done", "failed", "cancelled"].includes(job.state);

const STAGES = { queued: "Waiting", preparing: "Preparing the scan", answering: "The model is at work", writing: "Writing the answer" };
const STEPS = ["queued", "preparing", "answering"];

// A job in words: "Waiting: 2 scans before it", "The model is at work".
export function stateText(job) {
  if (job.state === "done") return "Done";
  if (job.state === "failed") return "Failed";
  if (job.state === "cancelled") return "Cancelled";
  if (job.state !== "queued") return STAGES[job.stage] ?? "Under way";
  if (!job.is_served) return "Waiting for its model, which is not served now";
  if (!job.place) return "Next in the queue";
  return job.place === 1 ? "Waiting: one scan before it" : `Waiting: ${job.place} scans before it`;
}

// The list of jobs, the newest first; keeps the focus where it was.
export function showJobs(jobs, { open, remove, current }) {
  const focused = document.activeElement?.closest?.("#jobs li")?.dataset.job;
  const focusedRemove = document.activeElement?.classList.contains("remove");
  const rows = jobs.map((job) => {
    const name = spoken(job.model);
    return el(
      "li",
      { "data-job": job.job_id, "data-state": job.state },
      el("button", { type: "button", class: "job", "aria-current": job.job_id === current ? "true" : null, onclick: () => open(job.job_id) },
        el("span", { class: "what", text: name }),
        el("small", {}, el("i", { class: "dot" }), `${stateText(job)} · ${when(job.created)}`),
        isOver(job) ? null : el("span", { class: "thin", style: { "--share": `${100 * job.progress}%` } })),
      el("button", { type: "button", class: "remove quiet", "aria-label": `Delete ${name}, ${when(job.created)}`, title: "Delete", onclick: () => remove(job) },
        cross()),
    );
  });
  byId("earlier").hidden = !jobs.length;
  byId("jobs").replaceChildren(...rows);
  if (focused) byId("jobs").querySelector(`[data-job="${focused}"] ${focusedRemove ? ".remove" : ".job"}`)?.focus({ preventScroll: true });
}

function cross() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [name, value] of [["viewBox", "0 0 16 16"], ["width", "14"], ["height", "14"], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
  path.setAttribute("d", "M3.5 3.5l9 9m0-9l-9 9");
  svg.append(path);
  return svg;
}

// A card for a job under way; update(job) shows how far it is.
export function progressCard({ cancel }) {
  const bar = el("div", { class: "bar", role: "progressbar", "aria-label": "Progress of the job", "aria-valuemin": "0", "aria-valuemax": "100" });
  const text = el("p", { class: "progress-text" });
  const percent = el("span", { class: "percent" });
  const steps = STEPS.map((stage) => el("li", { "data-stage": stage, text: stage === "queued" ? "Waiting" : STAGES[stage] }));
  const stop = el("button", { type: "button", onclick: () => cancel() , text: "Cancel" });
  return {
    element: el("div", { class: "progress" }, el("p", { class: "row" }, text, percent), bar, el("ol", { class: "steps" }, ...steps), stop),
    update(job) {
      const now = Math.max(0, STEPS.indexOf(job.stage === "writing" ? "answering" : job.stage));
      text.textContent = stateText(job);
      percent.textContent = job.state === "queued" ? "" : `${Math.round(100 * job.progress)} %`;
      setBar(bar, job.progress, stateText(job));
      bar.toggleAttribute("data-waiting", job.state === "queued");
      steps.forEach((step, k) => {
        step.dataset.state = k < now ? "over" : k === now ? "now" : "ahead";
        if (k === now) step.setAttribute("aria-current", "step");
        else step.removeAttribute("aria-current");
      });
    },
  };
}
