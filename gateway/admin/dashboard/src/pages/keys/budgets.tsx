import { ActionIcon, Badge, Button, Drawer, Group, Menu, NumberInput, Select, Stack, Table, Text, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState, type ReactNode } from "react";
import { get, path, post, put, remove, type Balances, type Budget, type Forecast, type Project } from "../../api";
import { useChange } from "../../change";
import { Burn } from "../../charts/burn";
import { ago, dateTime, percent, usd, words } from "../../format";
import { Facts, Money, Section, Share } from "../../parts/bits";
import { Dialog, Ends } from "../../parts/dialog";
import { ChartColumn, Ellipsis, Pencil, Plus, Trash, TrendingUp, Wallet } from "../../parts/icons";
import { KeySelect } from "../../parts/key-select";
import { notify } from "../../parts/notify";
import { Empty, Failure, Loaded } from "../../parts/states";

const WINDOWS = [{ value: "total", label: "ever" }, { value: "month", label: "each month" }, { value: "day", label: "each day" }, { value: "hour", label: "each hour" }];
const KINDS = [{ value: "hard", label: "Hard: refuses what it does not cover" }, { value: "soft", label: "Soft: lets it through and tells" }, { value: "throttle", label: "Throttle: slows down" }];
type What = { what: "change" | "raise" | "remove"; budget: Budget } | { what: "new" };
const TITLES = { new: "New budget", change: "Change budget", raise: "Raise for a time", remove: "Remove budget" };
const inWords = (window: string): string => (window === "total" ? "in all" : `this ${window}`);
const amount = (value: FormDataEntryValue | null): string => String(value ?? "").replaceAll(",", "").replace("$", "");
const at = (scope: string, id: string, window: string, name: string, more = ""): string =>
  path(`/budgets/${scope}/${encodeURIComponent(id)}/${window}${more}`, { name }).replace("/admin/v1", "");
/** A budget of "owner/model" is addressed by the owner's id and `?name=`. */
function place(budget: Budget, more = ""): string {
  const [id = "", ...name] = budget.scope_id.split("/");
  return at(budget.scope, id, budget.window, name.join("/"), more);
}
const key = (budget: Budget): string => `${budget.scope}:${budget.scope_id}:${budget.window}`;

export function BudgetsTab({ open, show, may }: { open: string | undefined; show: (budget: string | undefined) => void; may: (name: string) => boolean }) {
  const list = useQuery({ queryKey: ["budgets"], queryFn: () => get<Budget[]>("/budgets"), refetchInterval: 15_000 });
  const [doing, setDoing] = useState<What | null>(null);
  const shown = list.data?.find((budget) => key(budget) === open);
  const fresh = may("budgets.set") && <Button size="xs" leftSection={<Plus size={15} aria-hidden />} onClick={() => setDoing({ what: "new" })}>New budget</Button>;
  return (
    <>
      <Section title="Budgets" about="A request passes every budget above it: its key's, its project's, its team's, its organisation's." actions={fresh}>
        <Loaded query={list}>{(budgets) => budgets.length === 0
          ? <Empty icon={Wallet} title="No budgets">Nothing but an organisation's credit bounds the spending. A budget on a key, a project or a team stops it earlier.</Empty>
          : <Table.ScrollContainer minWidth={780}>
            <Table>
              <Table.Thead><Table.Tr><Table.Th>Of</Table.Th><Table.Th>Window</Table.Th><Table.Th w={220}>Used</Table.Th><Table.Th ta="right">Limit</Table.Th><Table.Th>At the limit</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
              <Table.Tbody>{budgets.map((budget) => <Row key={key(budget)} budget={budget} may={may} show={() => show(key(budget))} act={setDoing} />)}</Table.Tbody>
            </Table>
          </Table.ScrollContainer>}</Loaded>
      </Section>
      <Drawer opened={Boolean(open)} onClose={() => show(undefined)} size={620} title={<Text fw={600}>Forecast</Text>}>
        {shown ? <Whole budget={shown} /> : list.data && <Text size="sm" c="dimmed">This budget is gone.</Text>}
      </Drawer>
      {doing && <Doing doing={doing} close={() => setDoing(null)} />}
    </>
  );
}

function Row({ budget, may, show, act }: { budget: Budget; may: (name: string) => boolean; show: () => void; act: (what: What) => void }) {
  const name = `${budget.label}, ${budget.window}`;
  return (
    <Table.Tr>
      <Table.Td><Text size="sm" fw={550} className="fb-wrap">{budget.label}</Text><Text size="xs" c="dimmed">{words(budget.scope)}</Text></Table.Td>
      <Table.Td>{budget.window === "total" ? "in all" : `each ${budget.window}`}</Table.Td>
      <Table.Td><Text size="xs" mb={3}><Money exact={budget.spent_usd} />, {percent(budget.share)}</Text><Share value={budget.share} label={`Budget of ${name}`} /></Table.Td>
      <Table.Td ta="right"><Money exact={budget.limit_usd} />{budget.raised_usd && <Text size="xs" c="dimmed" title={budget.raised_until ? dateTime(budget.raised_until) : ""}>{usd(budget.raised_usd)} of it for now</Text>}</Table.Td>
      <Table.Td><Badge variant="default" size="sm" tt="none">{budget.kind}</Badge></Table.Td>
      <Table.Td>
        <Group gap="xs" justify="flex-end" wrap="nowrap">
          <Button size="compact-xs" variant="default" leftSection={<ChartColumn size={13} aria-hidden />} aria-label={`Forecast of ${name}`} onClick={show}>Forecast</Button>
          {may("budgets.set") && (
            <Menu position="bottom-end">
              <Menu.Target><ActionIcon variant="subtle" color="gray" aria-label={`Actions for the budget of ${name}`}><Ellipsis size={18} aria-hidden /></ActionIcon></Menu.Target>
              <Menu.Dropdown>
                <Menu.Item leftSection={<Pencil size={15} aria-hidden />} onClick={() => act({ what: "change", budget })}>Change</Menu.Item>
                {may("budgets.raise") && <Menu.Item leftSection={<TrendingUp size={15} aria-hidden />} onClick={() => act({ what: "raise", budget })}>Raise for a time</Menu.Item>}
                {may("budgets.remove") && <Menu.Item color="red" leftSection={<Trash size={15} aria-hidden />} onClick={() => act({ what: "remove", budget })}>Remove</Menu.Item>}
              </Menu.Dropdown>
            </Menu>
          )}
        </Group>
      </Table.Td>
    </Table.Tr>
  );
}

function Whole({ budget }: { budget: Budget }) {
  const query = useQuery({ queryKey: ["forecast", key(budget)], queryFn: () => get<Forecast>(place(budget, "/forecast")), refetchInterval: 30_000 });
  return <Loaded query={query}>{(data) => {
    const rows: [string, ReactNode][] = [["Spent", <Money exact={data.spent_usd} />], ["Limit", <Money exact={data.limit_usd} />], ["A day, lately", <Money exact={data.a_day_usd} />]];
    if (data.at_end_usd) rows.push(["By its end", <Money exact={data.at_end_usd} />]);
    rows.push(["Used up", data.used_up_at ? (Number(data.spent_usd) >= Number(data.limit_usd) ? "now" : dateTime(data.used_up_at)) : data.ends_at ? "not before it begins anew" : "not within ten years"]);
    if (data.ends_at) rows.push(["Begins anew", dateTime(data.ends_at)]);
    if (budget.raised_until) rows.push(["Raised until", dateTime(budget.raised_until)]);
    return (
      <Stack gap="lg">
        <div><Text fw={600}>{budget.label}</Text><Text size="sm" c="dimmed">{words(budget.scope)}, {inWords(budget.window)}</Text></div>
        <Burn data={data} />
        <Facts rows={rows} />
        <Text size="xs" c="dimmed">The dashed line goes on at the rate of the last seven days{budget.window === "total" ? "" : `, or since the window began, ${ago(data.starts_at)}`}.</Text>
      </Stack>
    );
  }}</Loaded>;
}

function Doing({ doing, close }: { doing: What; close: () => void }) {
  const budget = doing.what === "new" ? null : doing.budget;
  const fresh = doing.what === "new";
  const [scope, setScope] = useState(budget?.scope ?? "project");
  const [kind, setKind] = useState<string>(budget?.kind ?? "hard");
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects"), enabled: fresh });
  const balances = useQuery({ queryKey: ["balances"], queryFn: () => get<Balances>("/ledger/balances"), enabled: fresh && scope === "organisation", retry: false });
  const act = useChange(
    async (said: FormData) => {
      if (doing.what === "remove") { await remove(place(doing.budget)); return "The budget is gone."; }
      if (doing.what === "raise") {
        await post(place(doing.budget, "/raise"), { raise_usd: amount(said.get("raise")), until: new Date(Date.now() + Number(said.get("hours")) * 3_600_000).toISOString() });
        return "Raised, for now.";
      }
      const to = doing.what === "new" ? at(scope, String(said.get("of")), String(said.get("window")), String(said.get("name") ?? "").trim()) : place(doing.budget);
      await put(to, { limit_usd: amount(said.get("limit")), kind, ...(kind === "throttle" ? { slow_rpm: Number(said.get("rpm")), slow_from_percent: budget?.slow_from_percent ?? 100 } : {}) });
      return "The budget is set.";
    },
    (told) => { notify(told); close(); },
  );
  const ids = (scope === "organisation" ? (balances.data?.organisations ?? []) : (projects.data ?? [])).map(({ id, name }) => ({ value: id, label: name }));
  const named = scope === "model" || scope === "provider" || scope === "tag";
  return (
    <Dialog opened onClose={close} title={TITLES[doing.what]}>
      <form onSubmit={(event) => { event.preventDefault(); act.mutate(new FormData(event.currentTarget)); }}>
        <Stack>
          {act.isError && <Failure error={act.error} />}
          {budget && <Text size="sm"><b className="fb-wrap">{budget.label}</b>, {inWords(budget.window)}: <Money exact={budget.spent_usd} /> of <Money exact={budget.limit_usd} /></Text>}
          {doing.what === "remove" && <Text size="sm">Nothing will bound this any more but what is above it.</Text>}
          {fresh && (
            <Group grow align="flex-start">
              <Select label="Of" allowDeselect={false} value={scope} onChange={(next) => setScope(next ?? "project")} data={["organisation", "project", "key", "end_user", "model", "provider", "tag"].map((value) => ({ value, label: value === "end_user" ? "Each end user" : words(value) }))} />
              {scope === "key" ? <KeySelect name="of" label="Which" allowDeselect={false} required withAsterisk={false} />
                : <Select key={scope} name="of" label={named || scope === "end_user" ? "In project" : "Which"} searchable allowDeselect={false} required withAsterisk={false} data={ids} />}
            </Group>
          )}
          {fresh && named && <TextInput name="name" label={words(scope)} description={scope === "model" ? "A name, or a pattern such as gpt-*" : "Its name"} required withAsterisk={false} />}
          {(fresh || doing.what === "change") && (
            <>
              <Group grow align="flex-start">
                <NumberInput name="limit" label="Limit" prefix="$" min={0} decimalScale={12} hideControls required withAsterisk={false} defaultValue={budget?.base_usd ?? ""} />
                {fresh && <Select name="window" label="For" defaultValue="month" allowDeselect={false} data={WINDOWS} />}
              </Group>
              <Select label="At the limit" allowDeselect={false} value={kind} onChange={(next) => setKind(next ?? "hard")} data={KINDS} />
              {kind === "throttle" && <NumberInput name="rpm" label="Requests a minute then" min={0} allowDecimal={false} hideControls defaultValue={budget?.slow_rpm || 10} required withAsterisk={false} />}
            </>
          )}
          {doing.what === "raise" && (
            <Group grow>
              <NumberInput name="raise" label="By" prefix="$" min={0} decimalScale={12} hideControls required withAsterisk={false} data-autofocus />
              <Select name="hours" label="For" defaultValue="24" allowDeselect={false} data={[{ value: "1", label: "an hour" }, { value: "8", label: "eight hours" }, { value: "24", label: "a day" }, { value: "168", label: "a week" }]} />
            </Group>
          )}
          <Ends leave={close} busy={act.isPending} color={doing.what === "remove" ? "red.8" : undefined}>{doing.what === "remove" ? "Remove" : doing.what === "raise" ? "Raise" : "Save"}</Ends>
        </Stack>
      </form>
    </Dialog>
  );
}
