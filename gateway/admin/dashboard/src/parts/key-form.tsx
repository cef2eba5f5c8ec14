import { Button, Collapse, Group, NumberInput, Select, Stack, TextInput } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { get, post, type NewKey, type Project, type ShownKey } from "../api";
import { useChange } from "../change";
import { Once } from "./bits";
import { Dialog, Ends } from "./dialog";
import { KeyLimits, limitsIn } from "./key-limits";
import { Failure } from "./states";

/** Makes a key and shows its secret, once. */
export function KeyForm({ opened, close, made }: { opened: boolean; close: () => void; made?: (key: ShownKey) => void }) {
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects"), enabled: opened });
  const [more, { toggle }] = useDisclosure();
  const create = useChange((said: NewKey) => post<ShownKey>("/keys", said), made);
  const leave = () => { close(); create.reset(); };
  return (
    <Dialog opened={opened} onClose={leave} title={create.data ? "Your new key" : "Create key"} closeOnClickOutside={!create.data} size="lg">
      {create.data ? (
        <Once secret={create.data.secret} done={leave}>Copy it now: it is stored only as a hash and cannot be shown again.</Once>
      ) : (
        <form onSubmit={(event) => {
          event.preventDefault();
          const said = new FormData(event.currentTarget);
          const budget = String(said.get("budget") ?? "").replaceAll(",", "").replace("$", "");
          create.mutate({
            project_id: String(said.get("project")), name: String(said.get("name")),
            budgets: budget ? [{ limit_usd: budget, window: String(said.get("window")) as "total" }] : [],
            ...limitsIn(said),
          });
        }}>
          <Stack>
            {create.isError && <Failure error={create.error} />}
            <TextInput name="name" label="Name" placeholder="nightly batch" description="What will use it" required withAsterisk={false} data-autofocus />
            {projects.data && (
              <Select name="project" label="Project" allowDeselect={false} defaultValue={projects.data[0]?.id ?? null}
                data={projects.data.map(({ id, name }) => ({ value: id, label: name }))} required withAsterisk={false} />
            )}
            <Group grow align="flex-start">
              <NumberInput name="budget" label="Budget" description="Hard: it stops there" placeholder="no budget" prefix="$" min={0} decimalScale={12} hideControls />
              <Select name="window" label="For" description="In UTC" defaultValue="total" allowDeselect={false} data={[{ value: "total", label: "ever" }, { value: "month", label: "each month" }, { value: "day", label: "each day" }]} />
            </Group>
            <Button variant="subtle" color="gray" c="var(--mantine-color-text)" size="compact-sm" onClick={toggle} aria-expanded={more} w="fit-content">{more ? "Fewer" : "More"} limits</Button>
            <Collapse expanded={more}>
              <Stack>
                <KeyLimits />
              </Stack>
            </Collapse>
            <Ends leave={leave} busy={create.isPending} disabled={!projects.data}>Create key</Ends>
          </Stack>
        </form>
      )}
    </Dialog>
  );
}
