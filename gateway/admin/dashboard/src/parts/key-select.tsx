import { Select, type SelectProps } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { get, type Key, type Page } from "../api";

/** A key that works, found by what is typed: there may be more of them than a list can hold. */
export function KeySelect({ defaultValue, ...rest }: Omit<SelectProps, "data" | "searchable">) {
  const [typed, setTyped] = useState("");
  const [like] = useDebouncedValue(typed, 200);
  const found = useQuery({ queryKey: ["keys", "like", like], queryFn: () => get<Page<Key>>("/keys", { like, active: "true", limit: 50 }), placeholderData: keepPreviousData });
  // The one that stands there already, which need not be among those found.
  const standing = useQuery({ queryKey: ["keys", "one", defaultValue], queryFn: () => get<Key>(`/keys/${defaultValue}`), enabled: Boolean(defaultValue) });
  const keys = new Map([...(standing.data ? [standing.data] : []), ...(found.data?.items ?? [])].map(({ id, name }) => [id, name]));
  return (
    <Select {...rest} searchable defaultValue={defaultValue ?? null} onSearchChange={setTyped} filter={({ options }) => options} nothingFoundMessage="No key by that name"
      data={[...keys].map(([value, label]) => ({ value, label }))} />
  );
}
