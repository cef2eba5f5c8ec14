import { Alert, Badge, Button, FileButton, Group, Select, Stack, Switch, Table, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { get, post, type Reconciliation, type Usage } from "../../api";
import { Bars } from "../../charts/bars";
import { count, some, usd } from "../../format";
import { Money, Section } from "../../parts/bits";
import { CircleAlert, CircleCheck, Scale, Upload } from "../../parts/icons";
import { Empty, Failure } from "../../parts/states";
import { bounds } from "../../period";

/** "*Sonnet*=claude-sonnet-5, *Haiku*=claude-haiku-4" */
const namesOf = (text: string): Record<string, string> =>
  Object.fromEntries(text.split(",").map((pair) => pair.split("=").map((side) => side.trim())).filter(([bill, ours]) => bill && ours) as [string, string][]);

/** A provider's bill, held against what we counted ourselves. */
export function ReconcileTab() {
  // Of whoever was asked lately, configured still or not: a bill comes when the month is over.
  const asked = useQuery({ queryKey: ["usage", "asked-providers"], queryFn: () => get<Usage>("/usage", { ...bounds("90d"), by: "provider" }) });
  const providers = (asked.data?.groups ?? []).map(({ name }) => name);
  const [picked, setPicked] = useState<string | null>(null);
  const [byDay, setByDay] = useState(false);
  const [names, setNames] = useState("");
  const [file, setFile] = useState<string | null>(null);
  const [only, setOnly] = useState(true);
  const provider = picked ?? providers[0] ?? null;
  const compare = useMutation({ mutationFn: (bill: string) => post<Reconciliation>("/reconcile", { provider, bill, by_day: byDay, names: namesOf(names) }) });
  const read = async (chosen: File | null) => {
    if (!chosen) return;
    setFile(chosen.name);
    compare.mutate(await chosen.text());
  };
  return (
    <Stack gap="md">
      <Section title="Hold a bill against our rows" about="OpenAI's, Anthropic's or Groq's usage export, an AWS, Azure, GCP or FOCUS cost export: JSON or CSV, as it came. It is read and forgotten.">
        <Group align="flex-end" gap="sm">
          <Select size="sm" w={190} label="Provider" allowDeselect={false} value={provider} data={providers} onChange={setPicked} />
          <TextInput size="sm" w={320} label="Names on the bill" placeholder="*Sonnet*=claude-sonnet-5, …" value={names} disabled={byDay} onChange={(event) => setNames(event.currentTarget.value)} />
          <Switch mb={8} label="Days only, all models together" checked={byDay} onChange={(event) => setByDay(event.currentTarget.checked)} />
          <FileButton accept=".json,.csv,application/json,text/csv" onChange={(chosen) => void read(chosen)} inputProps={{ "aria-label": "Bill file" }}>
            {(props) => <Button {...props} loading={compare.isPending} disabled={!provider} leftSection={<Upload size={15} aria-hidden />}>Choose the export</Button>}
          </FileButton>
        </Group>
      </Section>
      {compare.isError && <Failure error={compare.error} />}
      {!compare.data && !compare.isError && <Empty icon={Scale} title="No bill yet">Differences are shown for each day and model. What our own estimates can explain is taken off.</Empty>}
      {compare.data && <Found data={compare.data} file={file ?? ""} only={only} setOnly={setOnly} />}
    </Stack>
  );
}

function Found({ data, file, only, setOnly }: { data: Reconciliation; file: string; only: boolean; setOnly: (only: boolean) => void }) {
  const lines = data.lines.filter(({ explained }) => !only || !explained);
  const sum = (of: (line: Reconciliation["lines"][number]) => string | null | undefined) => data.lines.reduce((all, line) => all + Number(of(line) ?? 0), 0);
  const days = [...new Set(data.lines.map(({ day }) => day))].sort();
  const priced = data.lines.some(({ theirs }) => theirs?.cost_usd !== null && theirs !== null);
  const stacks = days.map((day) => {
    const of = data.lines.filter((line) => line.day === day);
    return { at: `${day}T00:00:00Z`, values: { ours: of.reduce((all, { ours }) => all + Number(ours.cost_usd ?? 0), 0), more: Math.max(0, of.reduce((all, { unexplained }) => all + Number(unexplained.cost_usd ?? 0), 0)) } };
  });
  return (
    <>
      {data.unexplained === 0
        ? <Alert color="teal" icon={<CircleCheck size={18} aria-hidden />} title="Nothing is unexplained">{some(data.lines.length, "line")} of {file} agree with what was counted here.</Alert>
        : <Alert color="yellow" icon={<CircleAlert size={18} aria-hidden />} title={`${count(data.unexplained)} of ${count(data.lines.length)} lines differ`}>
          {priced && <>They bill {usd(sum(({ theirs }) => theirs?.cost_usd))}, we counted {usd(sum(({ ours }) => ours.cost_usd))}; {usd(sum(({ unexplained }) => unexplained.cost_usd))} is unexplained.</>}
        </Alert>}
      {priced && days.length > 1 && <Section title="Cost by day"><Bars data={stacks} names={["ours", "more"]} labels={{ ours: "Counted here", more: "Billed beyond that" }} bucket="day" format={usd} height={180} label="Cost by day, counted here and billed beyond that" /></Section>}
      <Section title="Days and models" actions={<Switch label="Only what differs" checked={only} onChange={(event) => setOnly(event.currentTarget.checked)} />}>
        {lines.length === 0 ? <Text size="sm" c="dimmed">Nothing differs.</Text> : (
          <Table.ScrollContainer minWidth={860}>
            <Table verticalSpacing={6}>
              <Table.Thead><Table.Tr><Table.Th>Day</Table.Th><Table.Th>Model</Table.Th><Table.Th ta="right">Output, ours</Table.Th><Table.Th ta="right">theirs</Table.Th><Table.Th ta="right">Cost, ours</Table.Th><Table.Th ta="right">theirs</Table.Th><Table.Th ta="right">Unexplained</Table.Th></Table.Tr></Table.Thead>
              <Table.Tbody>{lines.map((line) => (
                <Table.Tr key={line.day + line.model}>
                  <Table.Td className="fb-num">{line.day}</Table.Td><Table.Td className="fb-wrap">{line.model}{line.theirs === null && <Badge ml="xs" size="xs" variant="default" tt="none">not on the bill</Badge>}</Table.Td>
                  <Table.Td ta="right" className="fb-num">{count(line.ours.output_tokens ?? 0)}</Table.Td><Table.Td ta="right" className="fb-num">{line.theirs?.output_tokens == null ? "–" : count(line.theirs.output_tokens)}</Table.Td>
                  <Table.Td ta="right"><Money exact={line.ours.cost_usd} /></Table.Td><Table.Td ta="right"><Money exact={line.theirs?.cost_usd} /></Table.Td>
                  <Table.Td ta="right">{line.explained ? <Text span size="sm" c="dimmed">nothing</Text> : line.unexplained.cost_usd !== null && Number(line.unexplained.cost_usd) !== 0 ? <Money exact={line.unexplained.cost_usd} /> : <span className="fb-num">{count(line.unexplained.output_tokens || line.unexplained.input_tokens || 0)} tokens</span>}</Table.Td>
                </Table.Tr>
              ))}</Table.Tbody>
            </Table>
          </Table.ScrollContainer>
        )}
      </Section>
    </>
  );
}
