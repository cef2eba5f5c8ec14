import { post, type ShownKey } from "./api";

export type Part = { type: "text"; text: string } | { type: "image_url"; image_url: { url: string } };
export interface ToolCall { id: string; type: "function"; function: { name: string; arguments: string } }
export interface Message { role: "user" | "assistant" | "system" | "tool"; content: string | Part[]; tool_calls?: ToolCall[]; tool_call_id?: string }
export interface Ending { requestId: string | null; cost: number | null; input: number | null; output: number | null; firstMs: number | null; totalMs: number; finish: string | null; provider: string | null; calls: ToolCall[] }
export class Refused extends Error {
  constructor(readonly status: number, readonly code: string, message: string) { super(message); }
}

/** Keys that this page made for itself, by project: in memory only, and gone with it. One each, also where two ask at once. */
const own = new Map<string, Promise<ShownKey>>();

export async function ownKey(project: string): Promise<string> {
  const known = own.get(project);
  if (!known) {
    const made = post<ShownKey>("/playground/key", { project_id: project });
    own.set(project, made);
    return (await made).secret;
  }
  const key = await known.catch(() => null);
  if (key && Date.parse(key.key.expires_at ?? "") > Date.now() + 60_000) return key.secret;
  if (own.get(project) === known) own.delete(project);
  return ownKey(project);
}

interface Asked { key: string; model: string; messages: Message[]; maxTokens?: number; temperature?: number; tools?: unknown[]; signal: AbortSignal; text: (piece: string) => void }

/** One streamed answer over the same endpoint that every client uses. Throws Refused with the server's own words. */
export async function ask({ key, model, messages, maxTokens, temperature, tools, signal, text }: Asked): Promise<Ending> {
  const began = performance.now();
  const answer = await fetch("/v1/chat/completions", {
    method: "POST",
    signal,
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    body: JSON.stringify({
      model, messages, stream: true, stream_options: { include_usage: true },
      ...(maxTokens ? { max_tokens: maxTokens } : {}), ...(temperature === undefined ? {} : { temperature }),
      ...(tools?.length ? { tools } : {}),
    }),
  });
  const ending: Ending = {
    requestId: answer.headers.get("x-request-id"), provider: answer.headers.get("x-farebox-provider"),
    cost: null, input: null, output: null, firstMs: null, totalMs: 0, finish: null, calls: [],
  };
  if (!answer.ok || !answer.body) {
    const said = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, said.error?.code ?? "error", said.error?.message ?? answer.statusText);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith("data:") || line.includes("[DONE]")) continue;
      const chunk = JSON.parse(line.slice(5));
      if (chunk.error) throw new Refused(answer.status, chunk.error.code ?? "error", chunk.error.message ?? "The answer broke off.");
      const choice = chunk.choices?.[0];
      const piece: unknown = choice?.delta?.content;
      if (typeof piece === "string" && piece) {
        ending.firstMs ??= Math.round(performance.now() - began);
        text(piece);
      }
      for (const call of (choice?.delta?.tool_calls ?? []) as (Partial<ToolCall> & { index: number })[]) {
        // A call comes in pieces: its name first, then its arguments bit by bit.
        const begun = (ending.calls[call.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
        begun.id ||= call.id ?? "";
        begun.function.name += call.function?.name ?? "";
        begun.function.arguments += call.function?.arguments ?? "";
        ending.firstMs ??= Math.round(performance.now() - began);
      }
      ending.finish = choice?.finish_reason ?? ending.finish;
      if (chunk.usage) {
        ending.cost = chunk.usage.cost ?? null;
        ending.input = chunk.usage.prompt_tokens ?? null;
        ending.output = chunk.usage.completion_tokens ?? null;
      }
    }
  }
  ending.totalMs = Math.round(performance.now() - began);
  return ending;
}
