import { ActionIcon, Alert, Anchor, Autocomplete, Badge, Button, Group, MultiSelect, NumberInput, Select, Stack, Table, TagsInput, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";
import { get, post, put, remove, type AliasEntry, type AliasRow, type Catalogue, type DeploymentRow, type Models, type Plan } from "../api";
import { useChange } from "../change";
import { dateTime, ms } from "../format";
import { Section } from "../parts/bits";
import { Dialog, Ends } from "../parts/dialog";
import { CircleAlert, Plus, Route, Trash } from "../parts/icons";
import { KeptAnswers } from "../parts/kept-answers";
import { notify } from "../parts/notify";
import { Page } from "../parts/page";
import { Empty, Failure, Loaded } from "../parts/states";
import { useMay } from "../session";

const route = getRouteApi("/shell/routing");
const path = (alias: string) => `/aliases/${alias.split("/").map(encodeURIComponent).join("/")}`;

const STRATEGIES: { value: NonNullable<AliasEntry["strategy"]>; label: string; says: string }[] = [
  { value: "weighted", label: "By weight", says: "By chance, as the weights say." },
  { value: "priority", label: "As listed", says: "The first that is well." },
  { value: "lowest_cost", label: "Cheapest", says: "For this prompt, what is cached there at the cached price." },
  { value: "lowest_latency", label: "Quickest", says: "Soonest done, the better of two picks." },
  { value: "least_busy", label: "Least busy", says: "Fewest in flight for its weight." },
  { value: "most_quota", label: "Most quota left", says: "By the providers' own rate headers." },
  { value: "sticky", label: "Sticky", says: "Always the same for a session, end user or key." },
  { value: "split", label: "Split", says: "Always the same for a key, by weight: an A/B test." },
  { value: "prefix", label: "Warm prefix", says: "Soonest first token, counting what it holds of this prompt." },
  { value: "auto", label: "Auto", says: "Price and seconds weighed against each other." },
];
const label = (strategy: string | undefined) => STRATEGIES.find((each) => each.value === strategy)?.label ?? strategy ?? "By weight";

export default function RoutingPage() {
  const search = route.useSearch() as { alias?: string; new?: string };
  const navigate = route.useNavigate();
  const may = useMay();
  const aliases = useQuery({ queryKey: ["aliases"], queryFn: () => get<AliasRow[]>("/aliases") });
  const catalogue = useQuery({ queryKey: ["catalogue"], queryFn: () => get<Catalogue>("/catalogue", { limit: 10 }), refetchInterval: 15_000 });
  const open = (said: { alias?: string; new?: string }) => void navigate({ search: said as never });
  const chosen = aliases.data?.find((each) => each.alias === search.alias);
  const add = may("aliases.put") && <Button leftSection={<Plus size={16} aria-hidden />} onClick={() => open({ new: "1" })}>New alias</Button>;
  return (
    <Page title="Routing" about="Names that clients ask for, and where each of them goes. A change is in force everywhere within two seconds." actions={add}>
      {catalogue.data && catalogue.data.faults.length > 0 && (
        <Alert color="red" icon={<CircleAlert size={18} aria-hidden />} title="A newer catalogue is not in force" role="alert">
          {catalogue.data.faults.map((fault) => <Text size="sm" key={fault.path + fault.problem}>{fault.path}: {fault.problem}; {fault.todo}</Text>)}
        </Alert>
      )}
      <Section title="Aliases">
        <Loaded query={aliases}>{(list) => list.length === 0
          ? <Empty icon={Route} title="No aliases yet" action={may("aliases.put") && <Button mt="sm" onClick={() => open({ new: "1" })}>Make the first</Button>}>Every priced model can be asked for as PROVIDER/model. An alias gives a name of your own to one or several of them, with fallbacks.</Empty>
          : <Table.ScrollContainer minWidth={720}>
            <Table>
              <Table.Thead><Table.Tr><Table.Th>Alias</Table.Th><Table.Th>Chosen</Table.Th><Table.Th>Among</Table.Th><Table.Th>Then</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
              <Table.Tbody>{list.map((row) => (
                <Table.Tr key={row.alias}>
                  <Table.Td><Text size="sm" fw={550}>{row.alias}</Text>{row.source === "file" && <Text size="xs" c="dimmed">from file</Text>}</Table.Td>
                  <Table.Td>{label(row.entry.strategy)}</Table.Td>
                  <Table.Td className="fb-wrap">{row.entry.targets.map((target) => <Text size="sm" key={target.deployment}>{target.deployment}{row.entry.targets.length > 1 && <Text span size="xs" c="dimmed"> priority {target.priority ?? 0}, weight {target.weight ?? 1}</Text>}</Text>)}</Table.Td>
                  <Table.Td className="fb-wrap">{(row.entry.fallbacks ?? []).join(", ") || "–"}</Table.Td>
                  <Table.Td ta="right"><Anchor component="button" type="button" size="sm" aria-label={`Open ${row.alias}`} onClick={() => open({ alias: row.alias })}>{row.source === "file" ? "Preview" : "Edit"}</Anchor></Table.Td>
                </Table.Tr>
              ))}</Table.Tbody>
            </Table>
          </Table.ScrollContainer>}</Loaded>
      </Section>
      <Section title="Changes" about="Every version of the catalogue is kept whole. An earlier one comes back as a new one; credentials stay as they are.">
        <Loaded query={catalogue}>{(said) => <History said={said} />}</Loaded>
      </Section>
      <Dialog opened={search.new === "1" || Boolean(chosen)} onClose={() => open({})} size="xl" title={chosen ? `Alias ${chosen.alias}` : "New alias"}>
        <Editor key={chosen?.alias ?? "new"} row={chosen} close={() => open({})} />
      </Dialog>
    </Page>
  );
}

function History({ said }: { said: Catalogue }) {
  const may = useMay();
  const back = useChange((number: number) => post<Catalogue>("/catalogue/restore", { number }), (_, number) => notify(`Version ${number} is in force again.`));
  if (said.history.length === 0) return <Text size="sm" c="dimmed">Nothing was changed here yet: all that is on offer comes from the settings.</Text>;
  return (
    <Stack gap="sm">
      {back.isError && <Failure error={back.error} />}
      <Table>
        <Table.Tbody>{said.history.map((each) => (
          <Table.Tr key={each.number}>
            <Table.Td className="fb-num">{each.number}{each.number === said.in_force && <Badge ml="xs" color="teal" variant="light" tt="none" styles={{ label: { color: "var(--mantine-color-text)" } }}>in force</Badge>}</Table.Td>
            <Table.Td className="fb-wrap">{each.change}</Table.Td><Table.Td>{each.actor}</Table.Td><Table.Td>{dateTime(each.at)}</Table.Td>
            <Table.Td ta="right">{may("catalogue.restore") && each.number !== said.newest && <Anchor component="button" type="button" size="sm" aria-label={`Bring version ${each.number} back`} disabled={back.isPending} onClick={() => back.mutate(each.number)}>Bring back</Anchor>}</Table.Td>
          </Table.Tr>
        ))}</Table.Tbody>
      </Table>
    </Stack>
  );
}

function Editor({ row, close }: { row?: AliasRow | undefined; close: () => void }) {
  const may = useMay();
  const fixed = row?.source === "file" || !may("aliases.put");
  const models = useQuery({ queryKey: ["models", ""], queryFn: () => get<Models>("/models", { limit: 5000 }), staleTime: 60_000 });
  const deployments = useQuery({ queryKey: ["deployments"], queryFn: () => get<DeploymentRow[]>("/deployments"), staleTime: 60_000 });
  const known = [...new Set([...(deployments.data ?? []).map((each) => each.name), ...(models.data?.models ?? []).flatMap((each) => each.deployments.map((one) => one.id))])];
  const [alias, setAlias] = useState(row?.alias ?? "");
  const [entry, setEntry] = useState<AliasEntry>(row?.entry ?? { targets: [{ deployment: "" }], strategy: "weighted" });
  const [needs, setNeeds] = useState<string[]>([]);
  const change = (said: Partial<AliasEntry>) => setEntry({ ...entry, ...said });
  const target = (at: number, said: Partial<AliasEntry["targets"][number]>) => change({ targets: entry.targets.map((each, n) => (n === at ? { ...each, ...said } : each)) });
  const plan = useMutation({ mutationFn: () => post<Plan>("/route/preview", { alias, needs, ...(fixed ? {} : { entry }) }) });
  // What was there when the form began: a change of somebody else's that comes meanwhile is not overwritten unseen.
  const [began] = useState(row);
  const save = useChange(
    () => put<AliasRow>(path(alias), entry, began ? { "if-match": began.etag ?? "*" } : { "if-none-match": "*" }),
    () => { notify(`${alias} goes there now.`); close(); },
  );
  const drop = useChange(() => remove(path(alias)), () => { notify(`${alias} is gone.`); close(); });
  return (
    <form onSubmit={(event) => { event.preventDefault(); save.mutate(); }}>
      <Stack>
        {fixed && <Text size="sm" c="dimmed">This alias is in the settings file: change it there, and it is in force a moment later.</Text>}
        {save.isError && <Failure error={save.error} />}
        {drop.isError && <Failure error={drop.error} />}
        <Group grow align="flex-start">
          <TextInput label="Alias" description="What clients ask for; * is every other name" value={alias} onChange={(event) => setAlias(event.currentTarget.value)} disabled={Boolean(row)} required withAsterisk={false} />
          <Select label="Strategy" description={STRATEGIES.find((each) => each.value === entry.strategy)?.says ?? ""} allowDeselect={false} disabled={fixed} data={STRATEGIES.map(({ value, label: text }) => ({ value, label: text }))} value={entry.strategy ?? "weighted"} onChange={(next) => change({ strategy: next as NonNullable<AliasEntry["strategy"]> })} />
        </Group>
        {entry.targets.map((each, at) => (
          <Group key={at} align="flex-end" wrap="nowrap">
            <Autocomplete style={{ flex: 1 }} label={at === 0 ? "Deployment" : undefined} aria-label={`Deployment ${at + 1}`} placeholder="provider/model" limit={30} data={known} disabled={fixed} value={each.deployment} onChange={(value) => target(at, { deployment: value })} required withAsterisk={false} />
            <NumberInput w={110} label={at === 0 ? "Priority" : undefined} aria-label={`Priority ${at + 1}`} min={0} max={1000} allowDecimal={false} disabled={fixed} value={each.priority ?? 0} onChange={(value) => target(at, { priority: Number(value) || 0 })} />
            <NumberInput w={110} label={at === 0 ? "Weight" : undefined} aria-label={`Weight ${at + 1}`} min={0} allowDecimal={false} disabled={fixed} value={each.weight ?? 1} onChange={(value) => target(at, { weight: Number(value) || 0 })} />
            <ActionIcon variant="subtle" color="gray" size="lg" aria-label={`Take out number ${at + 1}`} disabled={fixed || entry.targets.length === 1} onClick={() => change({ targets: entry.targets.filter((_, n) => n !== at) })}><Trash size={16} aria-hidden /></ActionIcon>
          </Group>
        ))}
        <Text size="xs" c="dimmed">Lower priorities are tried first; equals share by the strategy. A weight of 0 is a spare.</Text>
        {!fixed && <Button variant="default" size="xs" w="fit-content" leftSection={<Plus size={14} aria-hidden />} onClick={() => change({ targets: [...entry.targets, { deployment: "" }] })}>Another deployment</Button>}
        <TagsInput label="Fallbacks" description="Other aliases or provider/model, asked in this order when all above have failed" disabled={fixed} data={known.slice(0, 200)} value={[...(entry.fallbacks ?? [])]} onChange={(value) => change({ fallbacks: value })} />
        {entry.strategy === "auto" && <TextInput label="A second is worth, $" description="What Auto pays to save it; a project or a request may say its own" placeholder="0.001" disabled={fixed} value={entry.second_usd ?? "0.001"} onChange={(event) => change({ second_usd: event.currentTarget.value })} />}
        <KeptAnswers entry={entry} change={change} known={known} fixed={fixed} />
        <Section title="Preview" about="Where a request would go now. Nothing is sent; where chance decides, each preview draws anew."
          actions={<Group gap="xs"><MultiSelect aria-label="The request uses" placeholder={needs.length ? "" : "uses …"} size="xs" w={220} data={["tools", "image_input", "response_format", "logprobs", "candidates"]} value={needs} onChange={setNeeds} /><Button size="xs" variant="default" loading={plan.isPending} onClick={() => plan.mutate()}>Preview</Button></Group>}>
          {plan.isError && <Failure error={plan.error} />}
          {plan.data && <PlanTable plan={plan.data} />}
        </Section>
        <Group justify="space-between">
          <div>{row && !fixed && <Button variant="subtle" color="red" loading={drop.isPending} disabled={save.isPending} onClick={() => drop.mutate()}>Remove alias</Button>}</div>
          {fixed ? <Button variant="default" onClick={close}>Close</Button> : <Ends leave={close} busy={save.isPending} disabled={drop.isPending}>Save alias</Ends>}
        </Group>
      </Stack>
    </form>
  );
}

function PlanTable({ plan }: { plan: Plan }) {
  return (
    <Table.ScrollContainer minWidth={560}>
      <Table>
        <Table.Thead><Table.Tr><Table.Th>#</Table.Th><Table.Th>Deployment</Table.Th><Table.Th ta="right">Likely</Table.Th><Table.Th ta="right">First token</Table.Th><Table.Th>Why</Table.Th></Table.Tr></Table.Thead>
        <Table.Tbody>
          {plan.legs.map((leg) => (
            <Table.Tr key={leg.deployment}><Table.Td>{leg.place}</Table.Td><Table.Td className="fb-wrap">{leg.deployment}</Table.Td><Table.Td ta="right" className="fb-num">${leg.likely_usd}</Table.Td><Table.Td ta="right" className="fb-num">{leg.first_token_ms === null ? "–" : ms(leg.first_token_ms)}</Table.Td><Table.Td className="fb-wrap">{leg.why}</Table.Td></Table.Tr>
          ))}
          {plan.left_out.map((each) => (
            <Table.Tr key={each.deployment}><Table.Td>–</Table.Td><Table.Td className="fb-wrap">{each.deployment}</Table.Td><Table.Td colSpan={2} /><Table.Td>left out: {each.why}</Table.Td></Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}
