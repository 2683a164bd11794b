// Talks to the bridge. Knows paths and lines of JSON; knows nothing of the page.

export class BridgeFailure extends Error {
  constructor({ error, reason, status }) {
    super(error);
    this.reason = reason;
    this.status = status;
  }
}

const NOT_REACHED = { error: "The bridge does not answer; check that it runs.", reason: "UNREACHED", status: 0 };
const CUT_SHORT = { error: "The answer ended before its end; run it again.", reason: "CUT_SHORT", status: 0 };

export async function getJson(path) {
  const reply = await send(path, {});
  if (!reply.ok) throw await failureOf(reply);
  return reply.json();
}

// Yields the bridge's events; ends with `completed` or throws.
export async function* inspect(question, signal) {
  const reply = await send("inspect", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(question),
    signal,
  });
  if (!reply.ok) throw await failureOf(reply);
  try {
    for await (const event of lines(reply.body)) {
      if (event.event === "error") throw new BridgeFailure(event);
      yield event;
      if (event.event === "completed") return;
    }
  } catch (error) {
    if (error instanceof BridgeFailure || error.name === "AbortError") throw error;
  }
  throw new BridgeFailure(CUT_SHORT);
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new BridgeFailure(NOT_REACHED);
  }
}

async function failureOf(reply) {
  try {
    return new BridgeFailure({ ...(await reply.json()), status: reply.status });
  } catch {
    return new BridgeFailure({ ...NOT_REACHED, status: reply.status });
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}
