// The service's native API, /v1. Everything that goes wrong is a ServiceError with the server's sentence and remedy.

export class ServiceError extends Error {
  constructor({ status = 0, code = "", detail, remedy = "", request_id: requestId = "", series = [] }) {
    super(detail);
    Object.assign(this, { status, code, detail, remedy, requestId, series });
  }
}

const ANSWER_MS = 120_000; // for a reply to begin, and for its next bytes
const FIRST_BYTES_MS = 900_000; // what is made when it is first asked for, such as a large scan as NIfTI

const unreadable = (status) =>
  new ServiceError({
    status,
    code: "service.unreadable",
    detail: "The service's answer cannot be read.",
    remedy: "Check what lies between here and the service, such as a proxy; then try again.",
  });

const unreachable = () =>
  new ServiceError({
    code: "service.unreachable",
    detail: "The service did not answer.",
    remedy: "Check the connection and that the service runs; then try again.",
  });

function problem(status, text) {
  if (status === 401) location.reload(); // the server answers with the sign-in page
  try {
    const body = JSON.parse(text);
    if (body.detail && typeof body.detail === "string") return new ServiceError({ ...body, status });
  } catch {
    // not the service's own words, such as a proxy's page
  }
  return new ServiceError({
    status,
    code: `http.${status}`,
    detail: `The service answered with status ${status}.`,
    remedy: "Try again; if it stays so, tell whoever runs the service.",
  });
}

function parsed(status, text) {
  try {
    return JSON.parse(text);
  } catch {
    throw unreadable(status); // such as a proxy's page
  }
}

async function ask(path, { method = "GET", body = null, headers = {} } = {}) {
  let reply;
  let text;
  try {
    const signal = AbortSignal.timeout(ANSWER_MS);
    reply = await fetch(path, { method, body, signal, headers: { Accept: "application/json", ...headers } });
    text = await reply.text();
  } catch {
    throw unreachable();
  }
  if (!reply.ok) throw problem(reply.status, text);
  return reply.status === 204 ? null : parsed(reply.status, text);
}

const post = (path, value, headers = {}) =>
  ask(path, { method: "POST", body: JSON.stringify(value), headers: { "Content-Type": "application/json", ...headers } });

export const models = async () => (await ask("/v1/models")).models;
export const jobs = async () => (await ask("/v1/jobs")).jobs;
export const job = (id) => ask(`/v1/jobs/${id}`);
export const study = (id) => ask(`/v1/studies/${id}`);
export const cancelJob = (id) => ask(`/v1/jobs/${id}/cancel`, { method: "POST" });
export const deleteJob = (id) => ask(`/v1/jobs/${id}`, { method: "DELETE" });
export const signOut = () => ask("/v1/session", { method: "DELETE" });
export const volumePath = (studyId) => `/v1/studies/${studyId}/volume`;
export const resultPath = (jobId, form) => `/v1/jobs/${jobId}/results/${form}`;
export const answer = (jobId) => ask(resultPath(jobId, "json"));

// A second press of the button, or a repeat by the browser, makes no second job.
export function newJob(studyId, model) {
  const random = crypto.getRandomValues(new Uint8Array(16));
  const key = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return post("/v1/jobs", { study_id: studyId, model }, { "Idempotency-Key": key });
}

// XMLHttpRequest, since fetch does not tell how much has been sent.
export function newStudy(files, { onProgress, signal, series = null }) {
  const form = new FormData();
  for (const file of files) form.append("file", file, file.webkitRelativePath || file.name);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", series ? `/v1/studies?series=${encodeURIComponent(series)}` : "/v1/studies");
    request.setRequestHeader("Accept", "application/json");
    request.upload.addEventListener("progress", (event) => event.lengthComputable && onProgress(event.loaded, event.total));
    request.addEventListener("load", () => {
      if (request.status !== 201) return reject(problem(request.status, request.responseText));
      try {
        return resolve(parsed(request.status, request.responseText));
      } catch (error) {
        return reject(error);
      }
    });
    request.addEventListener("error", () => reject(unreachable()));
    request.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

// The bytes of a file of the service; onProgress(share, bytes), where share is null if the length is unknown.
export async function bytes(path, onProgress) {
  let reply;
  const stalled = new AbortController();
  let watch = setTimeout(() => stalled.abort(), FIRST_BYTES_MS);
  try {
    reply = await fetch(path, { signal: stalled.signal });
    if (!reply.ok) throw problem(reply.status, await reply.text());
    const total = Number(reply.headers.get("Content-Length")) || 0;
    const parts = [];
    let loaded = 0;
    for (const reader = reply.body.getReader(); ; ) {
      clearTimeout(watch);
      watch = setTimeout(() => stalled.abort(), ANSWER_MS);
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      loaded += value.length;
      onProgress(total ? Math.min(1, loaded / total) : null, loaded);
    }
    return await new Blob(parts).arrayBuffer();
  } catch (error) {
    throw error instanceof ServiceError ? error : unreachable();
  } finally {
    clearTimeout(watch);
  }
}
