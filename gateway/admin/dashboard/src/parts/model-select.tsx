import { Select } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { get, type Models } from "../api";

export function useModels() {
  return useQuery({ queryKey: ["models", "", "all"], queryFn: () => get<Models>("/models", { limit: 5000 }), staleTime: 60_000 });
}

/** Any model that has a price. */
export function ModelSelect({ value, onChange }: { value: string | null; onChange: (model: string) => void }) {
  const models = useModels();
  const priced = (models.data?.models ?? []).filter(({ deployments }) => deployments.some(({ price }) => price)).map(({ alias }) => alias);
  return <Select label="Model" searchable allowDeselect={false} limit={80} data={priced} value={value} placeholder={models.isPending ? "Loading" : "Choose a model"} nothingFoundMessage="No model by that name" onChange={(next) => next && onChange(next)} />;
}
