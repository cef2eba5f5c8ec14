import { Alert, Box, Button, Code, Group, Pill, Stack, Text, TextInput } from "@mantine/core";
import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { CircleCheck, CircleX, Download, ScrollText, ShieldCheck } from "../parts/icons";
import { get, path, type AuditRow, type AuditVerdict, type Page as Slice } from "../api";
import { ago, count, dateTime, usd, words } from "../format";
import { Section } from "../parts/bits";
import { Page } from "../parts/page";
import { Empty, Failure, Waiting } from "../parts/states";
import { useMay, useSession } from "../session";

const route = getRouteApi("/shell/audit");
const FILTERS = [["actor", "Who", "ann"], ["action", "What", "key.create"], ["subject", "Of which", "an id"], ["why", "Why", "words of the reason"]] as const;

const ADMINS: readonly string[] = ["owner", "admin"];

export default function AuditPage() {
  const search = route.useSearch() as Record<string, string | undefined>;
  const navigate = route.useNavigate();
  const may = useMay();
  const change = (said: Record<string, string | undefined>) => void navigate({ search: ((now: object) => ({ ...now, ...said })) as never });
  const session = useSession();
  // Rows belong to organisations; who administers less than one has none to read.
  const reads = [session, ...(session?.memberships ?? []).filter(({ scope }) => scope === "organisation")].some((held) => held && ADMINS.includes(held.role));
  const verdict = useQuery({ queryKey: ["audit-verify"], queryFn: () => get<AuditVerdict>("/audit/verify"), enabled: false });
  const list = useInfiniteQuery({
    queryKey: ["audit", search],
    queryFn: ({ pageParam }) => get<Slice<AuditRow>>("/audit", { ...search, cursor: pageParam, limit: 50 }),
    initialPageParam: "",
    getNextPageParam: (last) => last.next,
    staleTime: 0,
  });
  const rows = list.data?.pages.flatMap(({ items }) => items) ?? [];
  return (
    <Page title="Audit" about="Every change, who made it, and what it was before. Nothing here can be edited unseen: each row's hash covers the one before it."
      actions={<>
        {may("audit.export") && <Button component="a" href={path("/audit/export", search)} download variant="default" leftSection={<Download size={16} aria-hidden />}>Export</Button>}
        {may("audit.verify") && <Button variant="default" leftSection={<ShieldCheck size={16} aria-hidden />} loading={verdict.isFetching} onClick={() => void verdict.refetch()}>Verify the chain</Button>}
      </>}>
      {verdict.data && (verdict.data.intact
        ? <Alert color="teal" icon={<CircleCheck size={18} aria-hidden />} title={`Intact: ${count(verdict.data.rows)} rows`}><Text size="sm">Keep the newest hash elsewhere to notice rows that are cut off at the end:</Text><Code className="fb-wrap">{verdict.data.head}</Code></Alert>
        : <Alert color="red" icon={<CircleX size={18} aria-hidden />} title={`Broken at row ${verdict.data.broken_at}`}>A row was changed, removed or put in after row {verdict.data.rows}.</Alert>)}
      {verdict.isError && <Failure error={verdict.error} />}
      <form onSubmit={(event) => {
        event.preventDefault();
        const said = new FormData(event.currentTarget);
        change(Object.fromEntries(FILTERS.map(([name]) => [name, String(said.get(name) ?? "").trim() || undefined])));
      }}>
        <Group gap="sm" align="flex-end">
          {FILTERS.map(([name, label, hint]) => <TextInput key={`${name}${search[name] ?? ""}`} name={name} size="xs" w={190} label={label} placeholder={hint} defaultValue={search[name] ?? ""} />)}
          <Button type="submit" size="xs" variant="default">Filter</Button>
        </Group>
      </form>
      <Group gap="xs">{Object.entries(search).filter(([, value]) => value).map(([name, value]) => (
        <Pill key={name} size="md" withRemoveButton onRemove={() => change({ [name]: undefined })} removeButtonProps={{ "aria-label": `Remove the filter ${name}`, tabIndex: 0, "aria-hidden": false }}>{words(name)}: {value}</Pill>
      ))}</Group>
      {list.isPending && <Waiting query={list} />}
      {list.isError && <Failure error={list.error} again={() => void list.refetch()} />}
      {list.data && rows.length === 0 && !reads && <Empty icon={ScrollText} title="Kept by the organisation">The trail is one for a whole organisation, with what others did in it. You administer a part of it: an owner or admin of the organisation can read it, and export what you need.</Empty>}
      {list.data && rows.length === 0 && reads && <Empty icon={ScrollText} title={Object.values(search).some(Boolean) ? "Nothing matches" : "Nothing recorded"}>Changes to keys, budgets, prices, people and money appear here.</Empty>}
      {rows.length > 0 && (
        <Section title="Changes">
          <Stack gap={0} component="ol" m={0} p={0} style={{ listStyle: "none" }}>
            {rows.map((row) => <Row key={row.id} row={row} change={change} />)}
          </Stack>
        </Section>
      )}
      {list.hasNextPage && <Box ta="center"><Button variant="default" loading={list.isFetchingNextPage} onClick={() => void list.fetchNextPage()}>Show older</Button></Box>}
    </Page>
  );
}

function Row({ row, change }: { row: AuditRow; change: (said: Record<string, string | undefined>) => void }) {
  const link = (name: string, value: string, text = value) => (
    <Box component="button" type="button" onClick={() => change({ [name]: value })} className="fb-wrap"
      style={{ all: "unset", cursor: "pointer", textDecoration: "underline", textDecorationColor: "var(--fb-line)", textUnderlineOffset: 3 }}>{text}</Box>
  );
  const named = (row.after as Values)?.["name"] as string | undefined;
  return (
    <Box component="li" py="sm" style={{ borderTop: "1px solid var(--fb-line)" }}>
      <Group justify="space-between" gap="xs" wrap="nowrap" align="flex-start">
        <Text size="sm" component="div"><b>{link("actor", row.actor)}</b> · {link("action", row.action, words(row.action))}{named ? <> · <b>{named}</b></> : null} · <Text span size="xs" c="dimmed" className="fb-mono">{link("subject", row.subject)}</Text></Text>
        <Text size="xs" c="dimmed" className="fb-num" title={dateTime(row.at)}>{ago(row.at)}</Text>
      </Group>
      {row.note && <Text size="sm" mt={2}>{row.note}</Text>}
      <Change before={row.before as Values} after={row.after as Values} />
      <Text size="xs" c="dimmed" className="fb-mono">#{row.id} {row.hash.slice(0, 16)}…</Text>
    </Box>
  );
}

type Values = Record<string, unknown> | null;
// Said already by the row itself, or of no use to a reader.
const SILENT = new Set(["id", "organisation_id", "created_at_ns", "created_by", "name"]);
const WINDOWS = new Set(["total", "month", "day"]);
const isEmpty = (value: unknown): boolean => value === null || value === undefined || (typeof value === "object" && Object.keys(value).length === 0);

/** Stored as whole numbers of 10^-12 dollars and of nanoseconds; read as dollars and dates. */
function said(name: string, value: unknown): string {
  if (isEmpty(value)) return "none";
  if (typeof value === "number") {
    if (name.endsWith("_pusd") || WINDOWS.has(name)) return usd(value / 1e12);
    if (name.endsWith("_ns")) return dateTime(new Date(value / 1e6).toISOString());
  }
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "object") return Object.entries(value as object).map(([key, each]) => `${said(name, each)} ${words(key).toLowerCase()}`).join(", ");
  return String(value);
}

function Change({ before, after }: { before: Values; after: Values }) {
  const names = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])]
    .filter((name) => !SILENT.has(name) && !(isEmpty(before?.[name]) && isEmpty(after?.[name])));
  if (names.length === 0) return null;
  return (
    <Group gap="4px 16px" mt={2}>
      {names.map((name) => (
        <Text key={name} size="xs" className="fb-wrap"><Text span size="xs" c="dimmed">{words(name.replace(/_(pusd|ns|id)$/, ""))} </Text>
          {before && name in before ? <>{said(name, before[name])} → <b>{said(name, after?.[name])}</b></> : <b>{said(name, after?.[name])}</b>}</Text>
      ))}
    </Group>
  );
}
