import { ActionIcon, Button, Group, MultiSelect, NumberInput, Select, Stack, Table, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { get, put, remove, type BodyLogging, type Project } from "../api";
import { useChange } from "../change";
import { Section } from "./bits";
import { Dialog } from "./dialog";
import { Trash } from "./icons";
import { notify } from "./notify";
import { Failure, Loaded } from "./states";

export const DETECTORS: Record<string, string> = { card: "Card numbers", iban: "IBANs", email: "E-mail addresses", phone: "Telephone numbers", ip: "IP addresses", api_key: "API keys" };
const label = (name: string) => DETECTORS[name] ?? name;

/** Projects whose requests and answers are kept, for how long, and without what. */
export function BodyLogs({ may }: { may: boolean }) {
  const [making, setMaking] = useState(false);
  const logged = useQuery({ queryKey: ["bodies"], queryFn: () => get<BodyLogging[]>("/bodies/projects") });
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects") });
  const named = (id: string) => projects.data?.find((each) => each.id === id)?.name ?? id;
  const stop = useChange((id: string) => remove(`/bodies/projects/${encodeURIComponent(id)}`), (_, id) => notify(`Bodies of ${named(id)} are not logged any more.`));
  return (
    <Section title="Logged bodies" about="What requests and answers said: redacted, sealed, read under audit from a request's page. Off unless a project asks."
      actions={may && <Button size="xs" variant="default" onClick={() => setMaking(true)}>Log a project</Button>}>
      {stop.isError && <Failure error={stop.error} />}
      <Loaded query={logged}>{(rows) => rows.length === 0 ? <Text size="sm" c="dimmed">No project logs bodies.</Text> : (
        <Table>
          <Table.Thead><Table.Tr><Table.Th>Project</Table.Th><Table.Th>Kept</Table.Th><Table.Th>Taken out before</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>{rows.map((row) => (
            <Table.Tr key={row.project_id}>
              <Table.Td>{named(row.project_id)}</Table.Td><Table.Td>{row.days} {row.days === 1 ? "day" : "days"}</Table.Td><Table.Td>{row.detectors.map(label).join(", ") || "nothing"}</Table.Td>
              <Table.Td ta="right">{may && <ActionIcon variant="subtle" color="gray" aria-label={`Log no more of ${named(row.project_id)}`} disabled={stop.isPending} onClick={() => stop.mutate(row.project_id)}><Trash size={16} aria-hidden /></ActionIcon>}</Table.Td>
            </Table.Tr>
          ))}</Table.Tbody>
        </Table>
      )}</Loaded>
      <Dialog opened={making} onClose={() => setMaking(false)} title="Log the bodies of a project">
        <Loaded query={projects}>{(all) => <Form projects={all} done={() => setMaking(false)} />}</Loaded>
      </Dialog>
    </Section>
  );
}

function Form({ projects, done }: { projects: Project[]; done: () => void }) {
  const [project, setProject] = useState<string | null>(projects.length === 1 ? (projects[0]?.id ?? null) : null);
  const [days, setDays] = useState<string | number>(30);
  const [detectors, setDetectors] = useState<string[]>(Object.keys(DETECTORS));
  const save = useChange(() => put<BodyLogging>(`/bodies/projects/${encodeURIComponent(project ?? "")}`, { days: Number(days), detectors }), () => { notify("Logged from now on."); done(); });
  return (
    <form onSubmit={(event) => { event.preventDefault(); save.mutate(); }}>
      <Stack>
        {save.isError && <Failure error={save.error} />}
        <Select label="Project" searchable data={projects.map(({ id, name }) => ({ value: id, label: name }))} value={project} onChange={setProject} required withAsterisk={false} />
        <NumberInput label="Keep each for, days" min={1} max={3650} allowDecimal={false} value={days} onChange={setDays} required withAsterisk={false} />
        <MultiSelect label="Take out before" data={Object.entries(DETECTORS).map(([value, text]) => ({ value, label: text }))} value={detectors} onChange={setDetectors} />
        <Text size="xs" c="dimmed">Owners and admins may read them, one request at a time; each reading stands in the audit.</Text>
        <Group justify="flex-end"><Button type="submit" disabled={!project} loading={save.isPending}>Log from now on</Button></Group>
      </Stack>
    </form>
  );
}
