// Talking to the appliance: JSON, streamed chat, and the key in this tab's storage.

const KEY = "appliance-key";

export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function request(path, options = {}) {
  const response = await fetch(path, { headers: headers(), cache: "no-store", ...options });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Failure(response.status, body?.error?.message ?? `${response.status} ${response.statusText}`);
}

export async function models() {
  return (await (await request("/v1/models")).json()).data.map((model) => model.id);
}

export async function passage(citation) {
  const id = citation.doc_id.split("/").map(encodeURIComponent).join("/");
  const query = new URLSearchParams({ start: citation.start, end: citation.end });
  return (await request(`/v1/documents/${encodeURIComponent(citation.domain)}/${id}?${query}`)).json();
}

// Yields the chunks of a streamed answer; ends normally only after [DONE].
export async function* chat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST", body: JSON.stringify({ ...body, stream: true }), signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Failure(0, "cut");
    buffer += value;
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure(500, chunk.error.message);
      yield chunk;
    }
  }
}
