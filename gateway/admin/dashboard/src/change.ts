import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useRef } from "react";

export const CHANGE = ["change"];

/** Something that changes what the server keeps; what only asks is a `useMutation`.
 *
 * It is done once the page knows what is there now: until then it is pending, then `done` runs, which closes dialogs and
 * tells. So whoever looks or presses next does so on what there is. Pressed again meanwhile, it is not sent again.
 * gone: the first part of the keys of queries that would ask for what is not there any more. */
export function useChange<Came, Said = void>(send: (said: Said) => Promise<Came>, done?: (came: Came, said: Said) => void, gone?: string) {
  const queries = useQueryClient();
  const sent = useRef(false);
  const change = useMutation({
    mutationKey: CHANGE,
    mutationFn: send,
    onSuccess: async (came, said) => {
      await queries.invalidateQueries({ predicate: ({ queryKey }) => queryKey[0] !== gone });
      done?.(came, said);
    },
  });
  const mutate = (said: Said): void => {
    // A second press may come before the button is drawn as waiting.
    if (sent.current) return;
    sent.current = true;
    change.mutateAsync(said).catch(() => undefined).finally(() => { sent.current = false; });
  };
  return { ...change, mutate };
}
