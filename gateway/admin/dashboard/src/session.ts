import { useQuery } from "@tanstack/react-query";
import { readSession, type Session } from "./api";

export const sessionQuery = { queryKey: ["session"], queryFn: readSession, staleTime: 60_000 } as const;

/** Inside the shell somebody is always signed in. */
export function useSession(): Session | null {
  return useQuery(sessionQuery).data ?? null;
}
/** The tab that an address names, where this role may see it; else the first. needs: what a tab asks for. */
export function useTab(asked: string | undefined, first: string, needs: Record<string, string>): string {
  const may = useMay();
  const need = needs[asked ?? ""];
  return asked === undefined || (need !== undefined && !may(need)) ? first : asked;
}
/** Whether this role may call an endpoint: what it may not is not offered. The server decides in any case. */
export function useMay(): (name: string) => boolean {
  const may = useSession()?.may ?? [];
  return (name) => may.includes(name);
}
