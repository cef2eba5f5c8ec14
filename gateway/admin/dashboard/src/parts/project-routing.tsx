import { Button, Group, SegmentedControl, Stack, Text, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { get, put, type Project, type ProjectRouting } from "../api";
import { useChange } from "../change";
import { Dialog, Ends } from "./dialog";
import { notify } from "./notify";
import { Failure, Loaded } from "./states";

const path = (id: string) => `/projects/${encodeURIComponent(id)}/routing`;

/** What a project says of its requests' ways, between its alias and the request itself. */
export function ProjectRoutingForm({ project, close, fixed }: { project: Project | undefined; close: () => void; fixed: boolean }) {
  const said = useQuery({ queryKey: ["project-routing", project?.id], queryFn: () => get<ProjectRouting>(path(project?.id ?? "")), enabled: Boolean(project) });
  return (
    <Dialog opened={Boolean(project)} onClose={close} title={`Routing of ${project?.name ?? ""}`}>
      <Loaded query={said}>{(now) => <Form key={now.project_id} now={now} fixed={fixed} close={close} />}</Loaded>
    </Dialog>
  );
}

function Form({ now, fixed, close }: { now: ProjectRouting; fixed: boolean; close: () => void }) {
  const [second, setSecond] = useState(now.second_usd ?? "");
  const [marks, setMarks] = useState(now.cache_prompts === null ? "alias" : now.cache_prompts ? "on" : "off");
  const save = useChange(
    () => put<ProjectRouting>(path(now.project_id), { second_usd: second || null, cache_prompts: marks === "alias" ? null : marks === "on" }),
    () => { notify("In force within a second."); close(); },
  );
  return (
    <form onSubmit={(event) => { event.preventDefault(); save.mutate(); }}>
      <Stack>
        {save.isError && <Failure error={save.error} />}
        <TextInput label="A second is worth, $" description="What the strategy Auto pays to save it; empty: as each alias says. A request may say its own" placeholder="0.001" disabled={fixed} value={second} onChange={(event) => setSecond(event.currentTarget.value)} />
        <div>
          <Text size="sm" fw={500} id="marks">Marks for Claude's prompt cache</Text>
          <Text size="xs" c="dimmed" mb={6}>In prompts whose client set none: writing costs more, reading a tenth</Text>
          <SegmentedControl aria-labelledby="marks" disabled={fixed} data={[{ value: "alias", label: "As the alias says" }, { value: "on", label: "On" }, { value: "off", label: "Off" }]} value={marks} onChange={setMarks} />
        </div>
        {fixed ? <Group justify="flex-end"><Button variant="default" onClick={close}>Close</Button></Group> : <Ends leave={close} busy={save.isPending}>Save</Ends>}
      </Stack>
    </form>
  );
}
