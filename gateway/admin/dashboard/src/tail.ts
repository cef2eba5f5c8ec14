import { useEffect, useState } from "react";
import { path, type RequestRow } from "./api";

const KEPT = 300;

/** Requests as they end, the newest first, while somebody wants to see them. The browser comes again by itself. */
export function useTail(on: boolean, filters: Record<string, string | undefined>): { rows: RequestRow[]; state: "off" | "connecting" | "live" } {
  const [rows, setRows] = useState<RequestRow[]>([]);
  const [state, setState] = useState<"off" | "connecting" | "live">("off");
  const address = path("/requests/tail", filters);
  useEffect(() => {
    setRows([]);
    if (!on) { setState("off"); return undefined; }
    setState("connecting");
    const source = new EventSource(address);
    source.onopen = () => setState("live");
    // Each connection ends after half a minute, which is no trouble: only one that cannot be had again is.
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) setState("connecting"); };
    source.onmessage = ({ data }: MessageEvent<string>) => {
      const row = JSON.parse(data) as RequestRow;
      setRows((all) => (all.some(({ id }) => id === row.id) ? all : [row, ...all].slice(0, KEPT)));
    };
    return () => source.close();
  }, [on, address]);
  return { rows, state };
}
