import { Anchor, Card, Code, SimpleGrid, Stack, Table, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { Cpu } from "../parts/icons";
import { useRef } from "react";
import { get, type Replica } from "../api";
import { Spark } from "../charts/spark";
import { compact, count, ms, percent } from "../format";
import { Section, State } from "../parts/bits";
import { Page } from "../parts/page";
import { Empty, Loaded } from "../parts/states";

interface Sample { at: number; figures: Record<string, number> }
const route = getRouteApi("/shell/engine");
const WRITTEN = "vllm:generation_tokens_total";
const READ = "vllm:prompt_tokens_total";

/** Figures of vLLM's names; rates are from one look to the next. */
export default function EnginePage() {
  const { of } = route.useSearch() as { of?: string };
  const navigate = route.useNavigate();
  const kept = useRef<Record<string, Sample[]>>({});
  const query = useQuery({
    queryKey: ["engines"],
    queryFn: async () => {
      const engines = await get<Replica[]>("/engines");
      const at = Date.now();
      kept.current = Object.fromEntries(engines.filter(({ state }) => state === "up").map(({ name, figures }) => [name, [...(kept.current[name] ?? []), { at, figures }].slice(-60)]));
      return { engines, samples: kept.current };
    },
    refetchInterval: 2_000,
    staleTime: 0,
  });
  return (
    <Page title="Local engine" about="Engines of your own, asked every two seconds: ours on this machine, and providers in your own network.">
      <Loaded query={query}>{({ engines, samples }) => {
        const chosen = engines.find(({ name }) => name === of) ?? engines[0];
        if (!chosen) return <Empty icon={Cpu} title="No engine of your own"><Code>farebox up</Code> starts one on this machine; a vLLM, an SGLang or another of ours is added as a provider.</Empty>;
        return (
          <>
            <Section title="Replicas" about="Choose one to see how it does."><Replicas engines={engines} samples={samples} chosen={chosen.name} choose={(name) => void navigate({ search: { of: name } as never, replace: true })} /></Section>
            {chosen.state === "up" ? <Figures engine={chosen} samples={samples[chosen.name] ?? []} /> : <Empty icon={Cpu} title={`${chosen.name} does not answer`}>{chosen.detail}</Empty>}
          </>
        );
      }}</Loaded>
    </Page>
  );
}

const rates = (samples: Sample[], name: string) => samples.slice(1).map(({ at, figures }, index) => {
  const before = samples[index];
  return before && at > before.at ? Math.max(0, ((figures[name] ?? 0) - (before.figures[name] ?? 0)) / ((at - before.at) / 1000)) : 0;
});
const last = (values: number[]) => values[values.length - 1] ?? 0;
const hits = (figures: Record<string, number>) => {
  const asked = figures["vllm:prefix_cache_queries_total"] ?? 0;
  return asked ? percent((figures["vllm:prefix_cache_hits_total"] ?? 0) / asked) : "–";
};
const blocks = ({ kv_blocks: all, kv_used: used }: Replica) => (all !== null && used !== null ? `${count(Math.round(all * used))} of ${count(all)}` : used === null ? "–" : percent(used));

function Replicas({ engines, samples, chosen, choose }: { engines: Replica[]; samples: Record<string, Sample[]>; chosen: string; choose: (name: string) => void }) {
  return (
    <Table.ScrollContainer minWidth={760}>
      <Table>
        <Table.Thead><Table.Tr><Table.Th>Engine</Table.Th><Table.Th>Model</Table.Th><Table.Th /><Table.Th ta="right">Batch</Table.Th><Table.Th ta="right">Queue</Table.Th><Table.Th ta="right">KV blocks</Table.Th><Table.Th ta="right">Prefix hits</Table.Th><Table.Th ta="right">Tokens / s</Table.Th></Table.Tr></Table.Thead>
        <Table.Tbody>{engines.map((each) => (
          <Table.Tr key={each.name} {...(each.name === chosen && engines.length > 1 ? { "aria-selected": true, bg: "var(--mantine-color-default-hover)" } : {})}>
            <Table.Td><Anchor component="button" type="button" size="sm" fw={550} c="var(--mantine-color-text)" aria-label={`Engine ${each.name}`} aria-pressed={each.name === chosen} onClick={() => choose(each.name)}>{each.name}</Anchor><Text size="xs" c="dimmed" className="fb-clip" maw={220} title={each.base_url}>{each.base_url}</Text></Table.Td>
            <Table.Td className="fb-wrap">{each.models.join(", ") || "–"}</Table.Td>
            <Table.Td><State name={each.state} /></Table.Td>
            {each.state === "up" ? (
              <>
                <Table.Td ta="right" className="fb-num">{compact(each.figures["vllm:num_requests_running"] ?? 0)}</Table.Td>
                <Table.Td ta="right" className="fb-num">{compact(each.figures["vllm:num_requests_waiting"] ?? 0)}</Table.Td>
                <Table.Td ta="right" className="fb-num">{blocks(each)}</Table.Td>
                <Table.Td ta="right" className="fb-num">{hits(each.figures)}</Table.Td>
                <Table.Td ta="right" className="fb-num">{compact(Math.round(last(rates(samples[each.name] ?? [], WRITTEN))))}</Table.Td>
              </>
            ) : <Table.Td colSpan={5}><Text size="xs" c="dimmed">{each.detail}</Text></Table.Td>}
          </Table.Tr>
        ))}</Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}

function Figures({ engine, samples }: { engine: Replica; samples: Sample[] }) {
  const gauge = (name: string) => samples.map(({ figures }) => figures[name] ?? 0);
  const mean = (name: string) => {
    const times = engine.figures[`${name}_count`] ?? 0;
    return times ? Math.round(((engine.figures[`${name}_sum`] ?? 0) / times) * 1000) : null;
  };
  const written = rates(samples, WRITTEN);
  const steps = rates(samples, "farebox:engine_steps_total");
  const batch = written.map((tokens, index) => (steps[index] ? tokens / (steps[index] ?? 1) : 0));
  const read = rates(samples, READ);
  const cards: [string, string, number[]?][] = [
    ["Tokens written a second", compact(Math.round(last(written))), written],
    ["Prompt tokens read a second", compact(Math.round(last(read))), read],
    ["Running together (batch)", compact(last(gauge("vllm:num_requests_running"))), gauge("vllm:num_requests_running")],
    ["Waiting (queue)", compact(last(gauge("vllm:num_requests_waiting"))), gauge("vllm:num_requests_waiting")],
    ["Tokens a forward pass", last(batch).toFixed(1), batch],
    ["KV blocks in use", blocks(engine), gauge("vllm:kv_cache_usage_perc")],
    ["Prefix cache hits", hits(engine.figures)],
    ["First token, mean", ms(mean("vllm:time_to_first_token_seconds"))],
    ["Between tokens, mean", ms(mean("vllm:inter_token_latency_seconds"))],
    ["Preemptions", compact(engine.figures["vllm:num_preemptions_total"] ?? 0)],
  ];
  return (
    <Stack gap="md">
      <Text size="sm" c="dimmed">{engine.name}: {compact(engine.figures[READ] ?? 0)} prompt tokens read and {compact(engine.figures[WRITTEN] ?? 0)} written since it started{engine.figures["farebox:engine_steps_total"] ? `, in ${compact(engine.figures["farebox:engine_steps_total"])} forward passes` : ""}.</Text>
      <SimpleGrid cols={{ base: 1, xs: 2, md: 4 }}>
        {cards.map(([title, value, line]) => (
          <Card key={title} className="fb-card" p="md"><Text size="sm" c="dimmed">{title}</Text><Text fz={24} fw={640} className="fb-num">{value}</Text>{line && <Spark values={line} width={180} height={36} />}</Card>
        ))}
      </SimpleGrid>
    </Stack>
  );
}
