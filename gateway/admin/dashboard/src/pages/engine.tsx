import { Card, SimpleGrid, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { Cpu } from "../parts/icons";
import { useRef } from "react";
import { get, type Engine } from "../api";
import { Spark } from "../charts/spark";
import { compact, ms, percent } from "../format";
import { Section, State } from "../parts/bits";
import { Page } from "../parts/page";
import { Empty, Loaded } from "../parts/states";

interface Sample { at: number; figures: Record<string, number> }

/** Figures of vLLM's names; rates are from one look to the next. */
export default function EnginePage() {
  const kept = useRef<Sample[]>([]);
  const query = useQuery({
    queryKey: ["engine"],
    queryFn: async () => {
      const engine = await get<Engine>("/engine");
      kept.current = [...kept.current, { at: Date.now(), figures: engine.figures }].slice(-60);
      return { engine, samples: kept.current };
    },
    refetchInterval: 2_000,
    staleTime: 0,
  });
  return (
    <Page title="Local engine" about="Our own engine on this machine: asked every two seconds.">
      <Loaded query={query}>{({ engine, samples }) => engine.state === "up"
        ? <Figures engine={engine} samples={samples} />
        : <Empty icon={Cpu} title={engine.state === "off" ? "The local engine is off" : "The local engine does not answer"}>{engine.detail}</Empty>}</Loaded>
    </Page>
  );
}

function Figures({ engine, samples }: { engine: Engine; samples: Sample[] }) {
  const gauge = (name: string) => samples.map(({ figures }) => figures[name] ?? 0);
  const rate = (name: string) => samples.slice(1).map(({ at, figures }, index) => {
    const before = samples[index];
    return before ? Math.max(0, ((figures[name] ?? 0) - (before.figures[name] ?? 0)) / ((at - before.at) / 1000)) : 0;
  });
  const last = (values: number[]) => values[values.length - 1] ?? 0;
  const mean = (name: string) => {
    const times = engine.figures[`${name}_count`] ?? 0;
    return times ? Math.round(((engine.figures[`${name}_sum`] ?? 0) / times) * 1000) : null;
  };
  const hits = engine.figures["vllm:prefix_cache_hits_total"] ?? 0;
  const asked = engine.figures["vllm:prefix_cache_queries_total"] ?? 0;
  const written = rate("vllm:generation_tokens_total");
  const steps = rate("farebox:engine_steps_total");
  const batch = written.map((tokens, index) => (steps[index] ? tokens / (steps[index] ?? 1) : 0));
  const read = rate("vllm:prompt_tokens_total");
  const cards: [string, string, number[]?][] = [
    ["Tokens written a second", compact(Math.round(last(written))), written],
    ["Prompt tokens read a second", compact(Math.round(last(read))), read],
    ["Running together (batch)", compact(last(gauge("vllm:num_requests_running"))), gauge("vllm:num_requests_running")],
    ["Waiting (queue)", compact(last(gauge("vllm:num_requests_waiting"))), gauge("vllm:num_requests_waiting")],
    ["Tokens a forward pass", last(batch).toFixed(1), batch],
    ["KV cache in use", percent(last(gauge("vllm:kv_cache_usage_perc"))), gauge("vllm:kv_cache_usage_perc")],
    ["Prefix cache hits", percent(asked ? hits / asked : 0)],
    ["First token, mean", ms(mean("vllm:time_to_first_token_seconds"))],
    ["Between tokens, mean", ms(mean("vllm:inter_token_latency_seconds"))],
    ["Preemptions", compact(engine.figures["vllm:num_preemptions_total"] ?? 0)],
  ];
  return (
    <>
      <Section title={engine.model} actions={<State name="up" />}>
        <Text size="sm" c="dimmed">{compact(engine.figures["vllm:prompt_tokens_total"] ?? 0)} prompt tokens read and {compact(engine.figures["vllm:generation_tokens_total"] ?? 0)} written since it started, in {compact(engine.figures["farebox:engine_steps_total"] ?? 0)} forward passes.</Text>
      </Section>
      <SimpleGrid cols={{ base: 1, xs: 2, md: 4 }}>
        {cards.map(([title, value, line]) => (
          <Card key={title} className="fb-card" p="md"><Text size="sm" c="dimmed">{title}</Text><Text fz={24} fw={640} className="fb-num">{value}</Text>{line && <Spark values={line} width={180} height={36} />}</Card>
        ))}
      </SimpleGrid>
    </>
  );
}
