import { Anchor, Button, Group, Pill, SegmentedControl, Select, Table, Text, TextInput } from "@mantine/core";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { ChartColumn, Download } from "../parts/icons";
import { get, path, type Usage } from "../api";
import { Bars, Dot } from "../charts/bars";
import { asMetric, METRICS, stacks, type Metric } from "../charts/points";
import { compact, count, dateTime, percent, usd, words } from "../format";
import { Money, Section } from "../parts/bits";
import { Page, PeriodPicker } from "../parts/page";
import { Empty, Loaded } from "../parts/states";
import { asPeriod, bounds, zoomed } from "../period";
import type { UsageSearch } from "../router";

const route = getRouteApi("/shell/usage");
export const DIMENSIONS: Record<string, string> = {
  alias: "Model", key: "Key", project: "Project", team: "Team", organisation: "Organisation", provider: "Provider", model: "Provider's model",
  deployment: "Deployment", end_user: "End user", tag: "Tag", outcome: "Outcome", dialect: "API dialect",
};
const formats: Record<Metric, (value: number) => string> = { spend: usd, requests: compact, tokens: compact, errors: compact };

const local = (at: string): string => new Date(Date.parse(at) - new Date(at).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
const between = (from: string, to: string, before: { from: string; to: string } | null): UsageSearch => {
  const said = { from: from ? new Date(from).toISOString() : undefined, to: to ? new Date(to).toISOString() : undefined };
  return zoomed(said) ? { ...said, bucket: undefined } : (before ?? {});
};

export default function UsagePage() {
  const search = route.useSearch() as UsageSearch;
  const navigate = route.useNavigate();
  const period = asPeriod(search.period, "7d");
  const by = search.by && search.by in DIMENSIONS ? search.by : "alias";
  const metric = asMetric(search.metric);
  const filters = Object.fromEntries(Object.keys(DIMENSIONS).flatMap((name) => (search[name] ? [[name, search[name]]] : [])));
  const change = (said: UsageSearch) => void navigate({ search: ((now: object) => ({ ...now, ...said })) as never });
  const zoom = zoomed(search);
  const asked = { ...(zoom ?? bounds(period)), by, bucket: search.bucket, ...filters };
  const query = useQuery({
    queryKey: ["usage", zoom ?? period, by, search.bucket, filters],
    queryFn: () => get<Usage>("/usage", asked),
    placeholderData: keepPreviousData,
  });
  return (
    <Page title="Usage" about="Group, filter and follow it down to single requests. The address keeps what you see."
      actions={<>
        <PeriodPicker value={zoom ? null : period} onChange={(next) => change({ period: next, bucket: undefined, from: undefined, to: undefined })} />
        <Button component="a" href={path("/usage.csv", asked)} download size="xs" variant="default" leftSection={<Download size={15} aria-hidden />}>CSV</Button>
        <Button component="a" href={path("/usage.parquet", asked)} download size="xs" variant="default" leftSection={<Download size={15} aria-hidden />}>Parquet</Button>
      </>}>
      <Group gap="sm">
        <Select size="sm" w={170} aria-label="Group by" leftSection={<Text size="xs" c="dimmed">by</Text>} value={by} allowDeselect={false}
          data={Object.entries(DIMENSIONS).map(([value, label]) => ({ value, label }))} onChange={(next) => change({ by: next ?? undefined })} />
        <SegmentedControl size="xs" aria-label="Measure" value={metric} onChange={(next) => change({ metric: next })}
          data={Object.entries(METRICS).map(([value, { label }]) => ({ value, label }))} />
        <TextInput size="sm" type="datetime-local" w={240} leftSection={<Text size="xs" c="dimmed">from</Text>} leftSectionWidth={44} aria-label="From" value={zoom ? local(zoom.from) : ""} onChange={(event) => change(between(event.currentTarget.value, zoom?.to ?? bounds(period).to, zoom))} />
        <TextInput size="sm" type="datetime-local" w={240} leftSection={<Text size="xs" c="dimmed">to</Text>} leftSectionWidth={44} aria-label="To" value={zoom ? local(zoom.to) : ""} onChange={(event) => change(between(zoom?.from ?? bounds(period).from, event.currentTarget.value, zoom))} />
        {zoom && <Pill size="md" withRemoveButton onRemove={() => change({ from: undefined, to: undefined })} removeButtonProps={{ "aria-label": "Zoom out", tabIndex: 0, "aria-hidden": false }}>{dateTime(zoom.from)} to {dateTime(zoom.to)}</Pill>}
        {Object.entries(filters).map(([name, value]) => (
          <Pill key={name} size="md" withRemoveButton onRemove={() => change({ [name]: undefined })}
            removeButtonProps={{ "aria-label": `Remove the filter ${DIMENSIONS[name]}`, tabIndex: 0, "aria-hidden": false }}>{DIMENSIONS[name]}: {value}</Pill>
        ))}
      </Group>
      <Loaded query={query}>{(data) => <Explored data={data} by={by} metric={metric} search={search} change={change} />}</Loaded>
    </Page>
  );
}

function Explored({ data, by, metric, search, change }: { data: Usage; by: string; metric: Metric; search: UsageSearch; change: (said: UsageSearch) => void }) {
  const navigate = route.useNavigate();
  if (data.total.requests === 0) {
    return <Empty icon={ChartColumn} title="Nothing matches">No request in this period has all of these properties. Take a longer period or remove a filter.</Empty>;
  }
  const labels = Object.fromEntries(data.groups.map(({ name, label }) => [name, by === "outcome" ? words(name) : label]));
  const top = data.groups.slice(0, 8).map(({ name }) => name);
  const names = data.series.some(({ name }) => name === "(other)") ? [...top, "(other)"] : top;
  const total = Number(data.total.charge_usd);
  const inner = data.period.bucket !== "minute";
  const zoomTo = (at: string) => change({ from: at, to: new Date(Date.parse(at) + (data.period.bucket === "day" ? 86_400_000 : 3_600_000)).toISOString(), bucket: undefined });
  // One level down: from what costs most to who caused it.
  const next = by === "alias" ? "key" : "alias";
  return (
    <>
      <Section title={`${METRICS[metric].label} by ${DIMENSIONS[by]?.toLowerCase()}`} about={`in steps of ${data.period.bucket === "hour" ? "an hour" : `a ${data.period.bucket}`}, UTC${inner ? "; click a bar to look inside" : ""}`}>
        <Bars data={stacks(data.series, data.period, metric)} names={names} labels={labels} bucket={data.period.bucket} format={formats[metric]} height={280} pick={inner ? zoomTo : undefined} label={`${METRICS[metric].label} over time`} />
      </Section>
      <Section title="Groups" actions={<Text size="sm" c="dimmed">{count(data.total.requests)} requests, <Money exact={data.total.charge_usd} /></Text>}>
        <Table.ScrollContainer minWidth={720}>
          <Table>
            <Table.Thead><Table.Tr><Table.Th>{DIMENSIONS[by]}</Table.Th><Table.Th ta="right">Spend</Table.Th><Table.Th ta="right">Share</Table.Th><Table.Th ta="right">Requests</Table.Th><Table.Th ta="right">Errors</Table.Th><Table.Th ta="right">Input</Table.Th><Table.Th ta="right">Output</Table.Th><Table.Th><span className="fb-skip">Open</span></Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>
              {data.groups.map(({ name, totals }, index) => (
                <Table.Tr key={name}>
                  <Table.Td><Group gap={8} wrap="nowrap"><Dot index={Math.min(index, 7)} />
                    <Anchor component="button" type="button" size="sm" c="var(--mantine-color-text)" onClick={() => change({ [by]: name, by: next })}>{labels[name]}</Anchor></Group></Table.Td>
                  <Table.Td ta="right"><Money exact={totals.charge_usd} /></Table.Td>
                  <Table.Td ta="right" className="fb-num">{percent(total ? Number(totals.charge_usd) / total : 0)}</Table.Td>
                  <Table.Td ta="right" className="fb-num">{count(totals.requests)}</Table.Td>
                  <Table.Td ta="right" className="fb-num">{count(totals.failed)}</Table.Td>
                  <Table.Td ta="right" className="fb-num">{compact(totals.input_tokens)}</Table.Td>
                  <Table.Td ta="right" className="fb-num">{compact(totals.output_tokens)}</Table.Td>
                  <Table.Td ta="right"><Anchor component="button" type="button" size="sm" aria-label={`Requests of ${labels[name]}`}
                    onClick={() => void navigate({ to: "/requests", search: { ...search, by: undefined, metric: undefined, bucket: undefined, [by]: name } as never })}>Requests</Anchor></Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      </Section>
    </>
  );
}
