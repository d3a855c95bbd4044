// Exchanges a token for the session's cookie, which no script can read.
import { byId, problemCard } from "./dom.js";

const UNREACHABLE = { detail: "The service did not answer.", remedy: "Check that it runs; then try again." };

byId("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter ?? event.target.querySelector("button");
  button.disabled = true;
  try {
    await signIn(byId("token").value.trim());
    location.reload();
  } catch (error) {
    byId("sign-in-problem").replaceChildren(problemCard(error));
    byId("token").select();
    byId("token").focus();
  } finally {
    button.disabled = false;
  }
});

async function signIn(token) {
  let reply;
  try {
    reply = await fetch("/v1/session", {
      method: "POST",
      signal: AbortSignal.timeout(120_000),
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify({ token }),
    });
  } catch {
    throw UNREACHABLE;
  }
  if (!reply.ok) throw await reply.json().catch(() => ({ detail: `The service answered with status ${reply.status}.` }));
}
