import { ActionIcon, Box, Button, Group, Menu, NumberInput, Select, Stack, Switch, Table, Tabs, Text, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { keepPreviousData, useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { Ban, Ellipsis, KeyRound, Pencil, Plus, RefreshCw, Wallet } from "../../parts/icons";
import { useState } from "react";
import { get, patch, post, put, remove, type Key, type Page as Slice, type Project, type ShownKey } from "../../api";
import { useChange } from "../../change";
import { ago, dateTime } from "../../format";
import { Money, Once, Share, State } from "../../parts/bits";
import { Dialog, Ends } from "../../parts/dialog";
import { KeyForm } from "../../parts/key-form";
import { KeyLimits, limitsIn } from "../../parts/key-limits";
import { notify } from "../../parts/notify";
import { Page } from "../../parts/page";
import { Empty, Failure, Loaded } from "../../parts/states";
import { useMay } from "../../session";
import { BudgetsTab } from "./budgets";

const route = getRouteApi("/shell/keys");
type Doing = { what: "revoke" | "budget" | "edit" | "rotate"; key: Key } | { what: "project" } | null;

export default function KeysPage() {
  const search = route.useSearch() as { project?: string; new?: string; all?: string; tab?: string; budget?: string; like?: string };
  const navigate = route.useNavigate();
  const may = useMay();
  const [doing, setDoing] = useState<Doing>(null);
  const [like] = useDebouncedValue(search.like ?? "", 200);
  const keys = useInfiniteQuery({
    queryKey: ["keys", search.project, like, search.all],
    queryFn: ({ pageParam }) => get<Slice<Key>>("/keys", { project_id: search.project, like, active: search.all === "1" ? undefined : "true", cursor: pageParam, limit: 50 }),
    initialPageParam: "",
    getNextPageParam: (last) => last.next,
    placeholderData: keepPreviousData,
    refetchInterval: 15_000,
  });
  const filtered = Boolean(search.project || like || search.all);
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects") });
  const change = (said: Record<string, string | undefined>) => void navigate({ search: ((now: object) => ({ ...now, ...said })) as never });
  return (
    <Page title="Keys & quotas" about="What your applications sign in with. Each has its own limits, budget and bill."
      actions={<>
        {may("projects.create") && <Button variant="default" onClick={() => setDoing({ what: "project" })}>New project</Button>}
        {may("keys.create") && <Button leftSection={<Plus size={16} aria-hidden />} onClick={() => change({ new: "1" })}>Create key</Button>}
      </>}>
      <Tabs value={search.tab ?? "keys"} onChange={(next) => void navigate({ search: { tab: next === "keys" ? undefined : next } as never })} keepMounted={false}>
        <Tabs.List mb="md" aria-label="Keys and quotas"><Tabs.Tab value="keys">Keys</Tabs.Tab><Tabs.Tab value="budgets">Budgets</Tabs.Tab></Tabs.List>
        <Tabs.Panel value="budgets"><BudgetsTab open={search.budget} show={(budget) => change({ budget })} may={may} /></Tabs.Panel>
        <Tabs.Panel value="keys">
          <Stack gap="lg">
            <Group>
              <TextInput w={240} aria-label="Search keys" placeholder="Name, or fbx-..." value={search.like ?? ""} onChange={(event) => void navigate({ search: { ...search, like: event.currentTarget.value || undefined } as never, replace: true })} />
              <Select w={220} aria-label="Project" placeholder="All projects" clearable clearButtonProps={{ "aria-label": "All projects" }} value={search.project ?? null}
                data={(projects.data ?? []).map(({ id, name }) => ({ value: id, label: name }))} onChange={(next) => change({ project: next ?? undefined })} />
              <Switch label="Show revoked and expired" checked={search.all === "1"} onChange={(event) => change({ all: event.currentTarget.checked ? "1" : undefined })} />
            </Group>
            <Loaded query={keys}>{({ pages }) => {
              const shown = pages.flatMap(({ items }) => items);
              return shown.length === 0
                ? filtered ? <Empty icon={KeyRound} title="Nothing matches">No key has all of these properties. Take a filter away.</Empty> : <Empty icon={KeyRound} title="No keys here" action={may("keys.create") && <Button mt="sm" onClick={() => change({ new: "1" })}>Create the first</Button>}>An application needs a key to ask for anything. Give each its own, so that its spending can be told apart and stopped.</Empty>
                : <Rows keys={shown} may={may} act={setDoing} />;
            }}</Loaded>
            {keys.hasNextPage && <Box ta="center"><Button size="xs" variant="default" loading={keys.isFetchingNextPage} onClick={() => void keys.fetchNextPage()}>Show older</Button></Box>}
          </Stack>
        </Tabs.Panel>
      </Tabs>
      <KeyForm opened={search.new === "1" && may("keys.create")} close={() => change({ new: undefined })} />
      <Actions doing={doing} close={() => setDoing(null)} />
    </Page>
  );
}

function Rows({ keys, may, act }: { keys: Key[]; may: (name: string) => boolean; act: (doing: Doing) => void }) {
  return (
    <Box style={{ border: "1px solid var(--fb-line)", borderRadius: "var(--mantine-radius-lg)", background: "var(--mantine-color-body)" }}>
      <Table.ScrollContainer minWidth={860} px="xs">
        <Table>
          <Table.Thead><Table.Tr><Table.Th>Key</Table.Th><Table.Th>Project</Table.Th><Table.Th>State</Table.Th><Table.Th ta="right">Spent</Table.Th><Table.Th w={200}>Budget</Table.Th><Table.Th>Limits</Table.Th><Table.Th>Last used</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>
            {keys.map((key) => (
              <Table.Tr key={key.id}>
                <Table.Td><Text size="sm" fw={550}>{key.name}</Text><Text size="xs" c="dimmed" className="fb-mono">{key.shown}…</Text></Table.Td>
                <Table.Td>{key.project}</Table.Td>
                <Table.Td><State name={key.state} />{key.old_until && <Text size="xs" c="dimmed" title={dateTime(key.old_until)}>two secrets for now</Text>}</Table.Td>
                <Table.Td ta="right"><Money exact={key.spent_usd} /></Table.Td>
                <Table.Td>
                  {key.budgets.length === 0 && <Text size="sm" c="dimmed">none</Text>}
                  {key.budgets.map((budget) => (
                    <Box key={budget.window} mb={2}>
                      <Text size="xs" mb={3}><Money exact={budget.spent_usd} /> of <Money exact={budget.limit_usd} /> <Text span c="dimmed" size="xs">{budget.window === "total" ? "in all" : `this ${budget.window}`}</Text></Text>
                      <Share value={budget.share} label={`Budget of ${key.name}, ${budget.window}`} />
                    </Box>
                  ))}
                </Table.Td>
                <Table.Td><Text size="xs">{limits(key) || <Text span c="dimmed" size="xs">none</Text>}</Text></Table.Td>
                <Table.Td className="fb-num" title={key.last_used_at ? dateTime(key.last_used_at) : "not in the last 30 days"}>{ago(key.last_used_at)}</Table.Td>
                <Table.Td ta="right">
                  {key.state !== "revoked" && (may("keys.update") || may("budgets.set")) && (
                    <Menu position="bottom-end">
                      <Menu.Target><ActionIcon variant="subtle" color="gray" aria-label={`Actions for ${key.name}`}><Ellipsis size={18} aria-hidden /></ActionIcon></Menu.Target>
                      <Menu.Dropdown>
                        {may("budgets.set") && <Menu.Item leftSection={<Wallet size={15} aria-hidden />} onClick={() => act({ what: "budget", key })}>Set budget</Menu.Item>}
                        {may("keys.update") && <Menu.Item leftSection={<Pencil size={15} aria-hidden />} onClick={() => act({ what: "edit", key })}>Change limits</Menu.Item>}
                        {may("keys.rotate") && <Menu.Item leftSection={<RefreshCw size={15} aria-hidden />} onClick={() => act({ what: "rotate", key })}>Rotate the secret</Menu.Item>}
                        {may("keys.revoke") && <Menu.Item color="red" leftSection={<Ban size={15} aria-hidden />} onClick={() => act({ what: "revoke", key })}>Revoke</Menu.Item>}
                      </Menu.Dropdown>
                    </Menu>
                  )}
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
    </Box>
  );
}

const limits = (key: Key): string => [
  key.rpm !== null && `${key.rpm} requests/min`, key.tpm !== null && `${key.tpm} tokens/min`, key.parallel !== null && `${key.parallel} at once`, key.weight !== 1 && `weight ${key.weight}`,
  key.models && key.models.join(", "), key.allow_ips && key.allow_ips.join(", "), key.expires_at && `until ${dateTime(key.expires_at)}`,
].filter(Boolean).join(" · ");

function Actions({ doing, close }: { doing: Doing; close: () => void }) {
  const [shown, setShown] = useState<ShownKey | null>(null);
  const act = useChange((work: () => Promise<string | ShownKey>) => work(), (came) => {
    if (typeof came !== "string") { setShown(came); return; }
    notify(came);
    leave();
  });
  const leave = () => { act.reset(); setShown(null); close(); };
  const titles = { rotate: "Rotate the secret", revoke: "Revoke key", budget: "Set budget", edit: "Change limits", project: "New project" };
  return (
    <Dialog opened={doing !== null} onClose={leave} title={doing ? titles[doing.what] : ""} closeOnClickOutside={!shown} size={shown || doing?.what === "edit" ? "lg" : "md"}>
      {shown && <Once secret={shown.secret} done={leave}>Copy it now: it cannot be shown again. {shown.key.old_until ? `The one before works until ${dateTime(shown.key.old_until)}.` : "The one before is refused from now on."}</Once>}
      {doing && !shown && (
        <form onSubmit={(event) => {
          event.preventDefault();
          const said = new FormData(event.currentTarget);
          act.mutate(async () => {
            if (doing.what === "project") { await post("/projects", { name: String(said.get("name")) }); return "The project is there."; }
            const { key } = doing;
            if (doing.what === "rotate") return post<ShownKey>(`/keys/${key.id}/rotate`, { overlap_hours: Number(said.get("overlap")) });
            if (doing.what === "revoke") { await remove(`/keys/${key.id}`); return `${key.name} is revoked.`; }
            if (doing.what === "budget") {
              // What it does at its limit is said where all budgets are: here it stays as it is.
              const window = String(said.get("window")), now = key.budgets.find((each) => each.window === window);
              await put(`/budgets/key/${key.id}/${window}`, {
                limit_usd: String(said.get("limit")).replaceAll(",", "").replace("$", ""),
                ...(now && { kind: now.kind, slow_rpm: now.slow_rpm, slow_from_percent: now.slow_from_percent }),
              });
              return `${key.name} has a new budget.`;
            }
            const { expires_at, ...limits } = limitsIn(said);
            const sameDay = expires_at?.slice(0, 10) === key.expires_at?.slice(0, 10);
            // What was not touched is not sent: somebody else may have changed it since it was read.
            const touched = Object.entries({ name: String(said.get("name")), ...limits }).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(key[name as keyof Key]));
            await patch(`/keys/${key.id}`, { ...Object.fromEntries(touched), ...(sameDay ? {} : { expires_at }) });
            return `${key.name} is changed.`;
          });
        }}>
          <Stack>
            {act.isError && <Failure error={act.error} />}
            {doing.what === "project" && <TextInput name="name" label="Name" required withAsterisk={false} data-autofocus />}
            {doing.what === "revoke" && <Text size="sm">Every gateway refuses <b>{doing.key.name}</b> within a second, for good. What it has spent stays on the books.</Text>}
            {doing.what === "rotate" && (
              <>
                <Text size="sm"><b>{doing.key.name}</b> gets a new secret and stays the same key: limits, budgets and usage go on.</Text>
                <Select name="overlap" label="The secret before works on" defaultValue="24" allowDeselect={false} data={[{ value: "0", label: "not at all" }, { value: "1", label: "for an hour" }, { value: "24", label: "for a day" }, { value: "168", label: "for a week" }, { value: "720", label: "for 30 days" }]} />
              </>
            )}
            {doing.what === "budget" && (
              <Group grow align="flex-start">
                <NumberInput name="limit" label="Limit" prefix="$" min={0} decimalScale={12} hideControls required withAsterisk={false} data-autofocus defaultValue={doing.key.budgets[0]?.base_usd ?? ""} />
                <Select name="window" label="For" defaultValue={doing.key.budgets[0]?.window ?? "total"} allowDeselect={false} data={[{ value: "total", label: "ever" }, { value: "month", label: "each month" }, { value: "day", label: "each day" }]} />
              </Group>
            )}
            {doing.what === "edit" && (
              <>
                <TextInput name="name" label="Name" defaultValue={doing.key.name} required withAsterisk={false} data-autofocus />
                <KeyLimits of={doing.key} />
              </>
            )}
            <Ends leave={leave} busy={act.isPending} color={doing.what === "revoke" ? "red.8" : undefined}>{doing.what === "revoke" ? "Revoke" : doing.what === "rotate" ? "Rotate" : "Save"}</Ends>
          </Stack>
        </form>
      )}
    </Dialog>
  );
}
