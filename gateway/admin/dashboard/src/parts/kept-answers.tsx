import { Autocomplete, Checkbox, Group, MultiSelect, NumberInput, Stack } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { get, type AliasEntry, type Project } from "../api";

/** For how long an alias keeps answers, and whether they serve questions that mean the same. */
export function KeptAnswers({ entry, change, known, fixed }: { entry: AliasEntry; change: (said: Partial<AliasEntry>) => void; known: string[]; fixed: boolean }) {
  const similar = entry.similar_answers ?? null;
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects"), enabled: similar !== null });
  const say = (said: Partial<NonNullable<AliasEntry["similar_answers"]>>) => change({ similar_answers: { model: "", threshold: 0.95, max_temperature: 0.3, wait_s: 0.3, projects: [], ...similar, ...said } });
  const number = (value: number | string) => (value === "" ? null : Number(value));
  return (
    <Stack gap="sm">
      <NumberInput label="Keep answers for (seconds)" description="The very same question of a project is answered again without asking anybody; empty: never" min={1} max={86400} disabled={fixed} value={entry.keep_answers_s ?? ""}
        onChange={(value) => change(number(value) === null ? { keep_answers_s: null, similar_answers: null } : { keep_answers_s: number(value) })} />
      {entry.keep_answers_s != null && <Checkbox label="Also for questions that mean the same" description="By an embedding model of yours; a wrong hit is a wrong answer to somebody" disabled={fixed} checked={similar !== null} onChange={(event) => (event.currentTarget.checked ? say({}) : change({ similar_answers: null }))} />}
      {similar && (
        <>
          <Group grow align="flex-start">
            <Autocomplete label="Embedding model" placeholder="minilm" limit={30} data={known} disabled={fixed} value={similar.model} onChange={(model) => say({ model })} required withAsterisk={false} />
            <NumberInput label="Likeness from" description="Cosine, 0.5 to 1" min={0.5} max={1} step={0.01} decimalScale={4} disabled={fixed} value={similar.threshold ?? 0.95} onChange={(value) => say({ threshold: Number(value) })} inputWrapperOrder={["label", "input", "description"]} />
          </Group>
          <Group grow align="flex-start">
            <NumberInput label="Up to temperature" min={0} max={2} step={0.1} disabled={fixed} value={similar.max_temperature ?? 0.3} onChange={(value) => say({ max_temperature: Number(value) })} />
            <NumberInput label="Wait for a vector (seconds)" min={0.01} max={10} step={0.1} disabled={fixed} value={similar.wait_s ?? 0.3} onChange={(value) => say({ wait_s: Number(value) })} />
          </Group>
          <MultiSelect label="Projects that take part" description="None: all of them, each apart from the others" searchable disabled={fixed} data={(projects.data ?? []).map(({ id, name }) => ({ value: id, label: name }))} value={[...(similar.projects ?? [])]} onChange={(chosen) => say({ projects: chosen })} />
        </>
      )}
    </Stack>
  );
}
