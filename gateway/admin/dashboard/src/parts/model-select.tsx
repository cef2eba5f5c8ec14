import { Select } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { get, type Models } from "../api";

export function useModels() {
  return useQuery({ queryKey: ["models", "", "all"], queryFn: () => get<Models>("/models", { limit: 5000 }), staleTime: 60_000 });
}

const priced = (models: Models | undefined) => (models?.models ?? []).filter(({ deployments }) => deployments.some(({ price }) => price));
const NO_CHAT = /embed|audio|image|tts|whisper|transcri|moderation|realtime|live|search|davinci|babbage|rerank|guard/;

/** What to offer first: our own engine's, else a small one that can chat. */
export function firstModel(models: Models | undefined): string | null {
  const all = priced(models);
  const chat = all.filter(({ alias }) => !NO_CHAT.test(alias));
  const own = all.find(({ deployments }) => deployments.some(({ provider }) => provider === "local"));
  return (own ?? chat.find(({ alias }) => /mini|flash|haiku|small|lite|8b/.test(alias)) ?? chat[0] ?? all[0])?.alias ?? null;
}

/** Any model that has a price. */
export function ModelSelect({ value, onChange, label = "Model" }: { label?: string; value: string | null; onChange: (model: string) => void }) {
  const models = useModels();
  const names = priced(models.data).map(({ alias }) => alias);
  return <Select label={label} searchable allowDeselect={false} limit={80} data={names} value={value} placeholder={models.isPending ? "Loading" : "Choose a model"} nothingFoundMessage="No model by that name" onChange={(next) => next && onChange(next)} />;
}
