import { Alert, Anchor, Box, Button, Code, Drawer, Group, Pill, Select, Stack, Table, Text, Title } from "@mantine/core";
import { useInfiniteQuery, useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { Activity, Info, Radio } from "../parts/icons";
import { get, Problem, type Page as Slice, type RequestBodies, type RequestDetail, type RequestRow } from "../api";
import { ago, compact, count, dateTime, ms, words } from "../format";
import { CopyIcon, Facts, Money, State } from "../parts/bits";
import { Page, PeriodPicker } from "../parts/page";
import { Empty, Failure, Loaded, Waiting } from "../parts/states";
import { Way } from "../parts/way";
import { asPeriod, bounds, zoomed } from "../period";
import { useMay } from "../session";
import type { UsageSearch } from "../router";
import { useTail } from "../tail";
import { DIMENSIONS } from "./usage";

const route = getRouteApi("/shell/requests");
const OUTCOMES = ["completed", "client_gone", "upstream_failed", "timed_out", "rejected", "killed"];

export default function RequestsPage() {
  const search = route.useSearch() as UsageSearch & { id?: string };
  const navigate = route.useNavigate();
  const period = asPeriod(search.period, "7d");
  const zoom = zoomed(search);
  const live = search["live"] === "1";
  const filters = Object.fromEntries(Object.keys(DIMENSIONS).flatMap((name) => (search[name] ? [[name, search[name]]] : [])));
  const change = (said: Record<string, string | undefined>) => void navigate({ search: ((now: object) => ({ ...now, ...said })) as never });
  const list = useInfiniteQuery({
    queryKey: ["requests", zoom ?? period, filters],
    queryFn: ({ pageParam }) => get<Slice<RequestRow>>("/requests", { ...(zoom ?? bounds(period)), ...filters, cursor: pageParam, limit: 50 }),
    initialPageParam: "",
    getNextPageParam: (last) => last.next,
    ...(live ? {} : { refetchInterval: 10_000 }),
  });
  const tail = useTail(live, filters);
  const listed = list.data?.pages.flatMap(({ items }) => items) ?? [];
  // What was told live stands above what the list knows, and once.
  const known = new Set(tail.rows.map(({ id }) => id));
  const rows = [...tail.rows, ...listed.filter(({ id }) => !known.has(id))].sort((a, b) => (a.at < b.at ? 1 : a.at > b.at ? -1 : 0));
  return (
    <Page title="Requests" about="Newest first. Open one to see its price line by line and its postings."
      actions={<>
        <Button size="xs" variant={live ? "light" : "default"} aria-pressed={live} onClick={() => change({ live: live ? undefined : "1" })}
          leftSection={live ? <span className="fb-live" data-on={tail.state === "live" || undefined} aria-hidden /> : <Radio size={15} aria-hidden />} {...(live ? { c: "var(--mantine-color-text)" } : {})}>{live ? "Live" : "Watch live"}</Button>
        <PeriodPicker value={zoom ? null : period} onChange={(next) => change({ period: next, from: undefined, to: undefined })} />
      </>}>
      {live && <Text size="xs" c="dimmed" role="status">{tail.state === "live" ? "Requests show here as they end, of every gateway." : "Connecting …"}</Text>}
      <Group gap="sm">
        <Select size="sm" w={190} aria-label="Outcome" placeholder="Any outcome" clearable value={search["outcome"] ?? null}
          data={OUTCOMES.map((value) => ({ value, label: words(value) }))} onChange={(next) => change({ outcome: next ?? undefined })} clearButtonProps={{ "aria-label": "Any outcome" }} />
        {Object.entries(filters).filter(([name]) => name !== "outcome").map(([name, value]) => (
          <Pill key={name} size="md" withRemoveButton onRemove={() => change({ [name]: undefined })}
            removeButtonProps={{ "aria-label": `Remove the filter ${DIMENSIONS[name]}`, tabIndex: 0, "aria-hidden": false }}>{DIMENSIONS[name]}: {value}</Pill>
        ))}
      </Group>
      {list.isError && !list.data && <Failure error={list.error} again={() => void list.refetch()} />}
      {list.isPending && <Waiting query={list} />}
      {list.data && rows.length === 0 && <Empty icon={Activity} title="No requests here">None in this period matches. What was refused before it was sent costs nothing and is not listed.</Empty>}
      {rows.length > 0 && <Rows rows={rows} open={(id) => change({ id })} />}
      {list.hasNextPage && <Group justify="center"><Button variant="default" loading={list.isFetchingNextPage} onClick={() => void list.fetchNextPage()}>Show older</Button></Group>}
      <Drawer opened={Boolean(search.id)} onClose={() => change({ id: undefined })} size={640} title={<Text fw={600}>Request</Text>}>
        {search.id && <Detail id={search.id} />}
      </Drawer>
    </Page>
  );
}

function Rows({ rows, open }: { rows: RequestRow[]; open: (id: string) => void }) {
  return (
    <Box className="fb-card" style={{ border: "1px solid var(--fb-line)", borderRadius: "var(--mantine-radius-lg)", background: "var(--mantine-color-body)" }}>
      <Table.ScrollContainer minWidth={860} px="xs">
        <Table>
          <Table.Thead><Table.Tr><Table.Th>Time</Table.Th><Table.Th>Model</Table.Th><Table.Th>Key</Table.Th><Table.Th>Outcome</Table.Th><Table.Th ta="right">Tokens</Table.Th><Table.Th ta="right">First token</Table.Th><Table.Th ta="right">Total</Table.Th><Table.Th ta="right">Cost</Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>
            {rows.map((row) => (
              <Table.Tr key={row.id} className="fb-row" tabIndex={0} onClick={() => open(row.id)} onKeyDown={(event) => { if (event.key === "Enter") open(row.id); }}>
                <Table.Td className="fb-num" title={dateTime(row.at)}>{ago(row.at)}</Table.Td>
                <Table.Td><Text size="sm">{row.alias}</Text><Text size="xs" c="dimmed">{row.provider}{row.attempts > 1 ? `, ${row.attempts} attempts` : ""}</Text></Table.Td>
                <Table.Td>{row.key}</Table.Td>
                <Table.Td><State name={row.outcome} /></Table.Td>
                <Table.Td ta="right" className="fb-num" title={`${count(row.input_tokens)} in, ${count(row.output_tokens)} out`}>{compact(row.input_tokens)} → {compact(row.output_tokens)}</Table.Td>
                <Table.Td ta="right" className="fb-num">{ms(row.first_token_ms)}</Table.Td>
                <Table.Td ta="right" className="fb-num">{ms(row.duration_ms)}</Table.Td>
                <Table.Td ta="right"><Money exact={row.charge_usd} /></Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
    </Box>
  );
}

function Detail({ id }: { id: string }) {
  const query = useQuery({ queryKey: ["request", id], queryFn: () => get<RequestDetail>(`/requests/${encodeURIComponent(id)}`),
    // One that ended a moment ago is on its way into the database.
    retry: (times, error) => times < 8 && error instanceof Problem && (error.status === 404 || error.status === 0), retryDelay: 350 });
  return <Loaded query={query}>{(data) => <Whole data={data} />}</Loaded>;
}

function Whole({ data }: { data: RequestDetail }) {
  const { request, sheet } = data;
  const may = useMay();
  return (
    <Stack gap="lg">
      <Group gap={4}><Text className="fb-mono fb-wrap">{request.id}</Text><CopyIcon text={request.id} label="Copy the id" /></Group>
      <Group gap="xl">
        <div><Text size="xs" c="dimmed">Cost</Text><Text fz={26} fw={640} lts="-0.02em"><Money exact={request.charge_usd} full /></Text></div>
        <div><Text size="xs" c="dimmed">First token</Text><Text fz={20} fw={600}>{ms(request.first_token_ms)}</Text></div>
        <div><Text size="xs" c="dimmed">Total time</Text><Text fz={20} fw={600}>{ms(request.duration_ms)}</Text></div>
        <State name={request.outcome} />
        {may("ledger.refund") && Number(request.charge_usd ?? 0) > 0 && <Anchor component={Link} to="/money" search={{ do: "refund", request: request.id } as never} size="sm">Refund</Anchor>}
      </Group>
      {request.estimated && <Alert color="yellow" icon={<Info size={16} aria-hidden />} title="Counted by estimate">The provider did not say what was used, so the text that came through was counted.</Alert>}
      <Timeline first={request.first_token_ms} whole={request.duration_ms} />
      <Way data={data} />
      <section aria-label="Price">
        <Title order={3} fz="sm" mb={6}>Price, line by line</Title>
        {data.lines.length === 0 && <Text size="sm" c="dimmed">Nothing was used, so nothing is owed.</Text>}
        {data.lines.length > 0 && (
          <Table verticalSpacing={6} highlightOnHover={false}>
            <Table.Thead><Table.Tr><Table.Th>Meter</Table.Th><Table.Th ta="right">Quantity</Table.Th><Table.Th ta="right">USD per million</Table.Th><Table.Th ta="right">Amount</Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>
              {data.lines.map((line) => (
                <Table.Tr key={line.meter}><Table.Td>{words(line.meter)}</Table.Td><Table.Td ta="right" className="fb-num">{count(line.quantity)}</Table.Td><Table.Td ta="right" className="fb-num">{line.price_usd_per_million ?? "no price"}</Table.Td><Table.Td ta="right"><Money exact={line.amount_usd} full /></Table.Td></Table.Tr>
              ))}
            </Table.Tbody>
            <Table.Tfoot><Table.Tr><Table.Th colSpan={3}>Charged</Table.Th><Table.Th ta="right"><Money exact={request.charge_usd} full /></Table.Th></Table.Tr></Table.Tfoot>
          </Table>
        )}
        {sheet && <Text size="xs" c="dimmed" mt={6}>Price sheet {sheet.id}, by {sheet.source}, in force since {dateTime(sheet.effective_from)}{sheet.above_input_tokens ? `, tier above ${count(sheet.above_input_tokens)} input tokens` : ""}. Held before the call: ${data.hold_usd}.</Text>}
      </section>
      {data.guardrails.length > 0 && <section aria-label="Guardrails">
        <Title order={3} fz="sm" mb={6}>Guardrails, in order</Title>
        {data.guardrails.map((one) => <Text key={`${one.rule_id}${one.stage}`} size="sm">{one.rule} ({one.stage === "input" ? "prompt" : "answer"}): {words(one.outcome)}{Object.entries(one.found).map(([name, times]) => `, ${times} × ${name}`)}{one.reason ? `, ${one.reason}` : ""}</Text>)}
      </section>}
      {may("bodies.read") && <Bodies id={request.id} />}
      <Facts rows={[
        ["Model asked for", request.alias], ["Served by", data.deployment], ["API dialect", words(request.dialect)],
        ["End user", request.end_user], ["Attempts", request.attempts], ["Provider's id", data.upstream_id], ["Tags", data.tags.join(", ") || null],
      ]} />
    </Stack>
  );
}

/** Only on demand: whoever reads one stands in the audit log. */
function Bodies({ id }: { id: string }) {
  const bodies = useMutation({ mutationFn: () => get<RequestBodies>(`/requests/${encodeURIComponent(id)}/bodies`) });
  return (
    <section aria-label="Bodies">
      {!bodies.data && <Button size="compact-sm" variant="default" loading={bodies.isPending} onClick={() => bodies.mutate()}>Read the logged bodies</Button>}
      {bodies.isError && <Failure error={bodies.error} />}
      {bodies.data && [["Request", bodies.data.request], ["Response", bodies.data.response]].map(([name, body]) => <div key={String(name)}>
        <Title order={3} fz="sm" mb={6}>{String(name)}</Title>
        <Code block tabIndex={0} mah={320} style={{ overflow: "auto", whiteSpace: "pre-wrap" }}>{JSON.stringify(body, null, 2)}</Code>
      </div>)}
    </section>
  );
}

/** Where the time went, as far as it was measured. */
function Timeline({ first, whole }: { first: number | null; whole: number | null }) {
  if (!whole || first === null) return null;
  const share = Math.min(100, (first / whole) * 100);
  return (
    <div role="img" aria-label={`First token after ${ms(first)} of ${ms(whole)}`}>
      <div style={{ display: "flex", height: 10, borderRadius: 6, overflow: "hidden", gap: 2 }}>
        <span style={{ width: `${share}%`, background: "var(--fb-series-1)" }} /><span style={{ flex: 1, background: "var(--fb-series-0)" }} />
      </div>
      <Group justify="space-between" mt={4}><Text size="xs" c="dimmed">Waiting for the first token, {ms(first)}</Text><Text size="xs" c="dimmed">Streaming, {ms(whole - first)}</Text></Group>
    </div>
  );
}
