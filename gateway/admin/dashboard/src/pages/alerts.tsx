import { ActionIcon, Badge, Button, Group, Select, Stack, Table, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";
import { get, post, remove, type AlertDelivery, type AlertRule, type AlertTrial, type Project } from "../api";
import { useChange } from "../change";
import { ago, dateTime, words } from "../format";
import { Section, State } from "../parts/bits";
import { Dialog, Ends } from "../parts/dialog";
import { Bell, Plus, Send, Trash } from "../parts/icons";
import { KeySelect } from "../parts/key-select";
import { notify } from "../parts/notify";
import { Page } from "../parts/page";
import { Empty, Failure, Loaded } from "../parts/states";
import { useMay } from "../session";

const route = getRouteApi("/shell/alerts");
type Kind = AlertRule["kind"];
const KINDS: Record<Kind, { label: string; says: (threshold: string) => string; ask: string; about: string; example: string }> = {
  budget: { label: "Budget used", says: (it) => `${Number(it)}% of a budget is used`, ask: "Percent of the budget", about: "Above 0, at most 1000", example: "80" },
  balance: { label: "Balance low", says: (it) => `$${it} or less is left`, ask: "Dollars left", about: "What an organisation may still spend", example: "10" },
  outage: { label: "Outage", says: (it) => `the store of limits is away for ${it} s`, ask: "Seconds", about: "Redis, as the gateways see it", example: "30" },
  anomaly: { label: "Unusual day", says: (it) => `a day costs more than ${Number(it)}% of the average`, ask: "Percent of the daily average", about: "Of the week before; more than 100", example: "300" },
};
const CHANNELS: Record<AlertRule["channel"], { label: string; ask: string; example: string; about: string }> = {
  webhook: { label: "Webhook", ask: "Address", example: "https://example.com/farebox", about: "JSON by POST, signed if alerts.signing_secret is set" },
  slack: { label: "Slack", ask: "Incoming webhook", example: "https://hooks.slack.com/services/…", about: "Made in Slack under Incoming Webhooks" },
  email: { label: "E-mail", ask: "Address", example: "finance@example.com", about: "Through mail.host of the settings" },
};

export default function AlertsPage() {
  const search = route.useSearch() as { new?: string };
  const navigate = route.useNavigate();
  const may = useMay();
  const rules = useQuery({ queryKey: ["alerts"], queryFn: () => get<AlertRule[]>("/alerts") });
  const said = useQuery({ queryKey: ["alert-deliveries"], queryFn: () => get<AlertDelivery[]>("/alerts/deliveries", { limit: 100 }), refetchInterval: 15_000 });
  const open = (yes: boolean) => void navigate({ search: { new: yes ? "1" : undefined } as never });
  const add = may("alerts.create") && <Button leftSection={<Plus size={16} aria-hidden />} onClick={() => open(true)}>New alert</Button>;
  return (
    <Page title="Alerts" about="Somebody is told once for each crossing, within a minute of it." actions={add}>
      <Loaded query={rules}>{(list) => list.length === 0
        ? <Empty icon={Bell} title="Nobody is told anything" action={may("alerts.create") && <Button mt="sm" onClick={() => open(true)}>Make the first</Button>}>Be told by webhook, Slack or e-mail when a budget is nearly used, a balance low, or a day unusually dear.</Empty>
        : <Rules rules={list} may={may} />}</Loaded>
      <Section title="What was said" about="The newest first. What nobody took is tried again for about eleven hours.">
        <Loaded query={said}>{(list) => list.length === 0 ? <Text size="sm" c="dimmed">Nothing yet: no threshold has been crossed.</Text> : <Deliveries list={list} />}</Loaded>
      </Section>
      {may("alerts.create") && <NewAlert opened={search.new === "1"} close={() => open(false)} />}
    </Page>
  );
}

function Rules({ rules, may }: { rules: AlertRule[]; may: (name: string) => boolean }) {
  const [leaving, setLeaving] = useState<AlertRule | null>(null);
  const [tried, setTried] = useState<Record<string, AlertTrial>>({});
  const test = useMutation({ mutationFn: (id: string) => post<AlertTrial>(`/alerts/${id}/test`, {}), onSuccess: (told, id) => setTried((all) => ({ ...all, [id]: told })) });
  const drop = useChange((id: string) => remove(`/alerts/${id}`), () => { keep(); notify("The alert is gone."); });
  const keep = () => { drop.reset(); setLeaving(null); };
  return (
    <Section title="Rules">
      {test.isError && <Failure error={test.error} />}
      <Table.ScrollContainer minWidth={760}>
        <Table>
          <Table.Thead><Table.Tr><Table.Th>When</Table.Th><Table.Th>Of</Table.Th><Table.Th>Tell</Table.Th><Table.Th>Since</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>{rules.map((rule) => (
            <Table.Tr key={rule.id}>
              <Table.Td><Text size="sm" fw={550}>{KINDS[rule.kind].label}</Text><Text size="xs" c="dimmed">{KINDS[rule.kind].says(rule.threshold)}</Text></Table.Td>
              <Table.Td>{rule.scope ? `${words(rule.scope)}${rule.scope_id ? ` ${rule.scope_id}` : "s, each"}` : "every one"}</Table.Td>
              <Table.Td maw={320}><Badge variant="default" size="sm" tt="none" mr="xs">{CHANNELS[rule.channel].label}</Badge><Text span size="sm" className="fb-wrap">{rule.target}</Text>
                {tried[rule.id] && <Text size="xs" role="status" className="fb-wrap">{tried[rule.id]?.delivered ? "Taken: the test message has arrived." : `Not delivered: ${tried[rule.id]?.problem}`}</Text>}</Table.Td>
              <Table.Td title={dateTime(rule.created_at)}>{ago(rule.created_at)}</Table.Td>
              <Table.Td><Group gap="xs" justify="flex-end" wrap="nowrap">
                {may("alerts.test") && <Button size="compact-xs" variant="default" leftSection={<Send size={13} aria-hidden />} loading={test.isPending && test.variables === rule.id} onClick={() => test.mutate(rule.id)}>Send a test</Button>}
                {may("alerts.remove") && <ActionIcon variant="subtle" color="gray" aria-label={`Remove ${KINDS[rule.kind].label} to ${rule.target}`} onClick={() => setLeaving(rule)}><Trash size={16} aria-hidden /></ActionIcon>}
              </Group></Table.Td>
            </Table.Tr>
          ))}</Table.Tbody>
        </Table>
      </Table.ScrollContainer>
      <Dialog opened={leaving !== null} onClose={keep} title="Remove alert">
        <Stack>
          {drop.isError && <Failure error={drop.error} />}
          <Text size="sm"><b className="fb-wrap">{leaving?.target}</b> will not be told any more. What it was told stays in the list.</Text>
          <Ends leave={keep} stay="Keep it" busy={drop.isPending} send={() => leaving && drop.mutate(leaving.id)} color="red.8">Remove</Ends>
        </Stack>
      </Dialog>
    </Section>
  );
}

function Deliveries({ list }: { list: AlertDelivery[] }) {
  return (
    <Table.ScrollContainer minWidth={700}>
      <Table verticalSpacing={7}>
        <Table.Thead><Table.Tr><Table.Th>Time</Table.Th><Table.Th>State</Table.Th><Table.Th>What</Table.Th><Table.Th>To</Table.Th></Table.Tr></Table.Thead>
        <Table.Tbody>{list.map((each) => (
          <Table.Tr key={each.id}>
            <Table.Td className="fb-num" title={dateTime(each.at)}>{ago(each.at)}</Table.Td>
            <Table.Td><State name={each.state} /></Table.Td>
            <Table.Td><Text size="sm">{each.text}</Text>{each.problem && <Text size="xs" c="dimmed" className="fb-wrap">{each.attempts} tries: {each.problem}</Text>}</Table.Td>
            <Table.Td maw={260}><Text size="sm" className="fb-clip" title={each.target}>{CHANNELS[each.channel].label}: {each.target}</Text></Table.Td>
          </Table.Tr>
        ))}</Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}

function NewAlert({ opened, close }: { opened: boolean; close: () => void }) {
  const [kind, setKind] = useState<Kind>("budget");
  const [channel, setChannel] = useState<AlertRule["channel"]>("webhook");
  const [scope, setScope] = useState<string | null>(null);
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects"), enabled: opened && scope !== null && scope !== "key" });
  const add = useChange((said: Record<string, unknown>) => post<AlertRule>("/alerts", said), () => { notify("The alert is set. Send a test to see that it arrives."); leave(); });
  const leave = () => { add.reset(); close(); };
  const organisations = new Map((projects.data ?? []).map((each) => [each.organisation_id, each.organisation]));
  const ids = scope === "project" ? (projects.data ?? []).map(({ id, name }) => ({ value: id, label: name })) : [...organisations].map(([value, label]) => ({ value, label }));
  const scopes = kind === "balance" ? ["organisation"] : ["organisation", "project", "key"];
  return (
    <Dialog opened={opened} onClose={leave} title="New alert" size="lg">
      <form onSubmit={(event) => {
        event.preventDefault();
        const said = new FormData(event.currentTarget);
        add.mutate({ kind, channel, threshold: String(said.get("threshold")), target: String(said.get("target")).trim(), scope, scope_id: (scope && said.get("id")) || null });
      }}>
        <Stack>
          {add.isError && <Failure error={add.error} />}
          <Group grow align="flex-start">
            <Select label="Tell when" description="Once for each crossing" allowDeselect={false} value={kind} data={Object.entries(KINDS).map(([value, { label }]) => ({ value, label }))} onChange={(next) => { setKind((next ?? "budget") as Kind); setScope(null); }} data-autofocus />
            <TextInput name="threshold" label={KINDS[kind].ask} description={KINDS[kind].about} placeholder={KINDS[kind].example} inputMode="decimal" required withAsterisk={false} />
          </Group>
          <Group grow align="flex-start">
            <Select label="Of" placeholder="every one" clearable clearButtonProps={{ "aria-label": "Every one" }} value={scope} data={scopes.map((value) => ({ value, label: words(value) }))} onChange={setScope} />
            {scope === "key" ? <KeySelect name="id" label="Which" placeholder="each of them" clearable clearButtonProps={{ "aria-label": "Each of them" }} />
              : <Select key={scope} name="id" label="Which" placeholder="each of them" clearable clearButtonProps={{ "aria-label": "Each of them" }} searchable disabled={!scope} data={ids} />}
          </Group>
          <Group grow align="flex-start">
            <Select label="By" description="How it travels" allowDeselect={false} value={channel} data={Object.entries(CHANNELS).map(([value, { label }]) => ({ value, label }))} onChange={(next) => setChannel((next ?? "webhook") as AlertRule["channel"])} />
            <TextInput name="target" label={CHANNELS[channel].ask} description={CHANNELS[channel].about} placeholder={CHANNELS[channel].example} type={channel === "email" ? "email" : "url"} required withAsterisk={false} />
          </Group>
          <Ends leave={leave} busy={add.isPending}>Set alert</Ends>
        </Stack>
      </form>
    </Dialog>
  );
}
