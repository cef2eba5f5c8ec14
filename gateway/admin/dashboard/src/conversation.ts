import { useEffect, useRef, useState } from "react";
import { ask, type Ending, type Message, type Part } from "./chat";

export interface Turn extends Message { ending?: Ending; refused?: Error; model?: string }
export interface Terms { key: () => Promise<string>; model: string; system: string; maxTokens?: number; temperature: number; tools: unknown[] }

/** One conversation with one model: its turns, whether it is being answered, and how to go on with it. */
export function useConversation() {
  const [turns, setTurns] = useState<Turn[]>([]);
  const [busy, setBusy] = useState(false);
  const running = useRef<AbortController | null>(null);
  useEffect(() => () => running.current?.abort(), []);
  const send = async (added: Turn[], { key, model, system, maxTokens, temperature, tools }: Terms): Promise<void> => {
    if (busy) return;
    // What was refused is left out, and so is the question that it was an answer to.
    const before = turns.filter((turn, index) => !turn.refused && !turns[index + 1]?.refused);
    const messages: Message[] = [...(system ? [{ role: "system" as const, content: system }] : []), ...[...before, ...added].map(plain)];
    const at = turns.length + added.length;
    const edit = (change: (turn: Turn) => Turn) => setTurns((all) => all.map((turn, index) => (index === at ? change(turn) : turn)));
    setTurns([...turns, ...added, { role: "assistant", content: "", model }]);
    setBusy(true);
    const stop = (running.current = new AbortController());
    try {
      const ending = await ask({
        key: await key(), model, messages, temperature, tools, signal: stop.signal, ...(maxTokens ? { maxTokens } : {}),
        text: (piece) => edit((turn) => ({ ...turn, content: `${textOf(turn.content)}${piece}` })),
      });
      edit((turn) => ({ ...turn, ending, ...(ending.calls.length ? { tool_calls: ending.calls } : {}) }));
    } catch (error) {
      if (!stop.signal.aborted) edit((turn) => ({ ...turn, refused: error instanceof Error ? error : new Error(String(error)) }));
    } finally {
      setBusy(false);
    }
  };
  return { turns, busy, send, stop: () => running.current?.abort(), clear: () => { running.current?.abort(); setTurns([]); } };
}
export type Conversation = ReturnType<typeof useConversation>;

export const textOf = (content: string | Part[]): string => (typeof content === "string" ? content : content.map((part) => (part.type === "text" ? part.text : "")).join(""));
const plain = ({ role, content, tool_calls, tool_call_id }: Turn): Message => ({ role, content, ...(tool_calls ? { tool_calls } : {}), ...(tool_call_id ? { tool_call_id } : {}) });
