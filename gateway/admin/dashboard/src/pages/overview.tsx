import { Badge, Button, Card, Grid, Group, SimpleGrid, Stack, Text } from "@mantine/core";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { ArrowDownRight, ArrowUpRight, Rocket } from "../parts/icons";
import { useState } from "react";
import { get, type Group as Totalled, type Overview, type Savings } from "../api";
import { Bars } from "../charts/bars";
import { BarList } from "../charts/list";
import { asMetric, METRICS, stacks, type Metric } from "../charts/points";
import { Spark } from "../charts/spark";
import { compact, ms, percent, usd, words } from "../format";
import { Money, Section, Share } from "../parts/bits";
import { Page, PeriodPicker } from "../parts/page";
import { Empty, Loaded } from "../parts/states";
import { bounds, type Period } from "../period";

const route = getRouteApi("/shell/overview");
const formats: Record<Metric, (value: number) => string> = { spend: usd, requests: compact, tokens: compact, errors: compact };

export default function OverviewPage() {
  const { period = "24h" } = route.useSearch();
  const navigate = route.useNavigate();
  const query = useQuery({
    queryKey: ["overview", period],
    queryFn: () => get<Overview>("/overview", bounds(period)),
    // The longer the period, the dearer the sum and the less it moves.
    refetchInterval: period === "1h" || period === "24h" ? 15_000 : 300_000,
    placeholderData: keepPreviousData,
  });
  return (
    <Page title="Overview" about="What was asked, what it cost, and how fast it went."
      actions={<PeriodPicker value={period} onChange={(next) => void navigate({ search: { period: next } })} />}>
      <Loaded query={query}>{(data) => (data.first_request ? <Board data={data} period={period} /> : <First />)}</Loaded>
    </Page>
  );
}

function First() {
  return (
    <Empty icon={Rocket} title="No requests yet" action={<Button component={Link} to="/start" mt="sm">Send the first one</Button>}>
      Point an SDK at this gateway, and spend, speed and errors show here within a second.
    </Empty>
  );
}

function Board({ data, period }: { data: Overview; period: Period }) {
  const [metric, setMetric] = useState<Metric>("spend");
  const navigate = route.useNavigate();
  const { now, before } = data;
  const rate = (totals: Overview["now"]) => (totals.requests ? totals.failed / totals.requests : 0);
  // Without the step that is still running, which would always look like a fall.
  const line = (of: Metric) => stacks(data.by_model, data.period, of).slice(0, -1).map(({ values }) => Object.values(values).reduce((sum, value) => sum + value, 0));
  const names = [...data.models.map(({ name }) => name), ...(data.by_model.some(({ name }) => name === "(other)") ? ["(other)"] : [])];
  return (
    <Stack gap="lg">
      <SimpleGrid cols={{ base: 1, xs: 2, md: 3, lg: 6 }} spacing="md">
        <Figure title="Spend" value={<Money exact={now.charge_usd} />} now={Number(now.charge_usd)} before={Number(before.charge_usd)} spark={line("spend")} />
        <Figure title="Requests" value={compact(now.requests)} now={now.requests} before={before.requests} spark={line("requests")} />
        <Figure title="Tokens" value={compact(now.input_tokens + now.output_tokens)} now={now.input_tokens + now.output_tokens} before={before.input_tokens + before.output_tokens} spark={line("tokens")} />
        <Figure title="Error rate" value={percent(rate(now))} now={rate(now)} before={rate(before)} less spark={line("errors")} />
        <Figure title="First token, p95" value={ms(data.first_token_now.p95_ms)} now={data.first_token_now.p95_ms ?? 0} before={data.first_token_before.p95_ms ?? 0} less note={`median ${ms(data.first_token_now.p50_ms)}`} />
        <Saved period={period} />
      </SimpleGrid>
      <Section title={`${METRICS[metric].label} by model`} actions={
        <Group gap={6} role="group" aria-label="Measure">
          {(Object.keys(METRICS) as Metric[]).map((name) => (
            <Button key={name} size="compact-xs" variant={metric === name ? "light" : "subtle"} color={metric === name ? "teal" : "gray"} c="var(--mantine-color-text)" aria-pressed={metric === name} onClick={() => setMetric(asMetric(name))}>{METRICS[name].label}</Button>
          ))}
        </Group>}>
        <Bars data={stacks(data.by_model, data.period, metric)} names={names} bucket={data.period.bucket} format={formats[metric]} label={`${METRICS[metric].label} by model over time`} />
      </Section>
      <Grid gap="md">
        <Grid.Col span={{ base: 12, md: 6 }}><Top title="Top models" by="alias" lines={data.models} period={period} /></Grid.Col>
        <Grid.Col span={{ base: 12, md: 6 }}><Top title="Top keys" by="key" lines={data.keys} period={period} /></Grid.Col>
        <Grid.Col span={{ base: 12, md: 6 }}>
            <Section title="Outcomes">
              <BarList label="Outcomes" lines={data.outcomes.map(({ name, totals }) => ({
                name, label: words(name), value: totals.requests, shown: compact(totals.requests),
                go: () => void navigate({ to: "/requests", search: { outcome: name, period } }),
              }))} />
            </Section>
        </Grid.Col>
        <Grid.Col span={{ base: 12, md: 6 }}>
            <Section title="Budgets in use">
              {data.budgets.length === 0 && <Text size="sm" c="dimmed">No budgets are set. A key with one stops at its limit.</Text>}
              <Stack gap="sm">
                {data.budgets.map((budget) => (
                  <div key={budget.scope_id + budget.window}>
                    <Group justify="space-between" mb={4} wrap="nowrap"><Text size="sm" className="fb-clip">{budget.label} <Text span size="xs" c="dimmed">{budget.scope}, {budget.window}</Text></Text>
                      <Text size="sm" className="fb-num"><Money exact={budget.spent_usd} /> of <Money exact={budget.limit_usd} /></Text></Group>
                    <Share value={budget.share} label={`Budget of ${budget.label}`} />
                  </div>
                ))}
              </Stack>
            </Section>
        </Grid.Col>
      </Grid>
    </Stack>
  );
}

/** Read apart from the rest: it goes through single requests, which takes longer than sums. */
function Saved({ period }: { period: Period }) {
  const query = useQuery({ queryKey: ["savings", period], queryFn: () => get<Savings>("/savings", bounds(period)), staleTime: 300_000, retry: false });
  const data = query.data;
  const short = period === "30d" || period === "90d";
  return (
    <Card className="fb-card" p="md">
      <Text size="sm" c="dimmed">Saved by caches</Text>
      <Text fz={24} fw={640} lh={1.3} lts="-0.02em" className="fb-num">{data ? <Money exact={data.saved_usd} /> : query.isError ? "–" : "…"}</Text>
      <Text size="xs" c="dimmed" mt={4} mih={22}>{data ? `${compact(data.cached_tokens)} tokens read cached${data.kept_answers ? `, ${compact(data.kept_answers)} answers kept` : ""}${short ? ", last 7 days" : ""}` : query.isError ? "Not added up in time." : "Adding up"}</Text>
    </Card>
  );
}

function Figure({ title, value, now, before, spark, note, less = false }: { title: string; value: React.ReactNode; now: number; before: number; spark?: number[]; note?: string; less?: boolean }) {
  const change = before > 0 ? (now - before) / before : null;
  const good = change === null || Math.abs(change) < 0.005 ? "gray" : change < 0 === less ? "teal" : less ? "red" : "gray";
  return (
    <Card className="fb-card" p="md">
      <Text size="sm" c="dimmed">{title}</Text>
      <Group justify="space-between" align="flex-end" wrap="nowrap" gap="xs">
        <Text fz={24} fw={640} lh={1.3} lts="-0.02em" className="fb-num">{value}</Text>
        {spark && <Spark values={spark} width={72} />}
      </Group>
      <Group gap={6} mt={4} mih={22}>
        {change !== null && (
          <Badge size="sm" radius="sm" tt="none" variant="light" color={good} styles={{ label: { color: "var(--mantine-color-text)" } }}
            leftSection={change >= 0 ? <ArrowUpRight size={12} aria-hidden /> : <ArrowDownRight size={12} aria-hidden />}>
            {percent(Math.abs(change))}
          </Badge>
        )}
        <Text size="xs" c="dimmed">{note ?? (change === null ? "nothing before" : "against the period before")}</Text>
      </Group>
    </Card>
  );
}

function Top({ title, by, lines, period }: { title: string; by: string; lines: Totalled[]; period: Period }) {
  const navigate = route.useNavigate();
  return (
    <Section title={title}>
      {lines.length === 0 && <Text size="sm" c="dimmed">Nothing in this period.</Text>}
      <BarList label={title} lines={lines.map(({ name, label, totals }) => ({
        name, label, value: Number(totals.charge_usd), shown: usd(totals.charge_usd),
        aside: <Text size="xs" c="dimmed" className="fb-num">{compact(totals.requests)} req.</Text>,
        go: () => void navigate({ to: "/usage", search: { by: by === "alias" ? "key" : "alias", [by]: name, period } }),
      }))} />
    </Section>
  );
}
