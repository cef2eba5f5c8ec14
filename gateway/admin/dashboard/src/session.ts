import { useQuery } from "@tanstack/react-query";
import { readSession, type Session } from "./api";

export const sessionQuery = { queryKey: ["session"], queryFn: readSession, staleTime: 60_000 } as const;

/** Inside the shell somebody is always signed in. */
export function useSession(): Session | null {
  return useQuery(sessionQuery).data ?? null;
}
/** Whether this role may call an endpoint: what it may not is not offered. The server decides in any case. */
export function useMay(): (name: string) => boolean {
  const may = useSession()?.may ?? [];
  return (name) => may.includes(name);
}
