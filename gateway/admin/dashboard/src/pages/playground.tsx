import { Anchor, Box, Button, Card, Grid, Group, NumberInput, PasswordInput, Paper, Select, Slider, Stack, Text, Textarea } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { MessageSquare, Send, Square } from "../parts/icons";
import { useEffect, useRef, useState } from "react";
import { get, type Project } from "../api";
import { ask, ownKey, Refused, type Ending, type Message } from "../chat";
import { count, ms, usd } from "../format";
import { firstModel, ModelSelect, useModels } from "../parts/model-select";
import { Page } from "../parts/page";
import { Empty, Failure } from "../parts/states";

const route = getRouteApi("/shell/playground");
interface Turn extends Message { ending?: Ending; refused?: Refused | Error }

export default function Playground() {
  const { model: named } = route.useSearch() as { model?: string };
  const navigate = route.useNavigate();
  const queries = useQueryClient();
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects") });
  const models = useModels();
  const model = named ?? firstModel(models.data);
  const [project, setProject] = useState<string | null>(null);
  const [key, setKey] = useState("");
  const [system, setSystem] = useState("");
  const [maxTokens, setMaxTokens] = useState<number | string>(256);
  const [temperature, setTemperature] = useState(0.7);
  const [draft, setDraft] = useState("");
  const [turns, setTurns] = useState<Turn[]>([]);
  const running = useRef<AbortController | null>(null);
  const [busy, setBusy] = useState(false);
  const end = useRef<HTMLDivElement>(null);
  // In braces: what scrollIntoView returns, a promise in newer browsers, is no clean-up.
  useEffect(() => { void end.current?.scrollIntoView({ block: "nearest" }); }, [turns]);
  useEffect(() => () => running.current?.abort(), []);
  const chosen = project ?? projects.data?.[0]?.id ?? null;
  const spent = turns.reduce((sum, { ending }) => sum + (ending?.cost ?? 0), 0);

  const send = async () => {
    const content = draft.trim();
    if (!content || !model || busy) return;
    const before = turns.filter(({ refused, content: said }) => !refused && said);
    const messages: Message[] = [...(system ? [{ role: "system" as const, content: system }] : []), ...before.map(({ role, content: said }) => ({ role, content: said })), { role: "user" as const, content }];
    const at = turns.length + 1;
    const edit = (change: (turn: Turn) => Turn) => setTurns((all) => all.map((turn, index) => (index === at ? change(turn) : turn)));
    setTurns([...turns, { role: "user", content }, { role: "assistant", content: "" }]);
    setDraft("");
    setBusy(true);
    running.current = new AbortController();
    try {
      if (!key && !chosen) throw new Error("There is no project to bill this to. Make one under Keys.");
      const secret = key || (await ownKey(chosen ?? ""));
      const ending = await ask({
        key: secret, model, messages, temperature, signal: running.current.signal,
        ...(typeof maxTokens === "number" && maxTokens > 0 ? { maxTokens } : {}),
        text: (piece) => edit((turn) => ({ ...turn, content: turn.content + piece })),
      });
      edit((turn) => ({ ...turn, ending }));
    } catch (error) {
      if (!(error instanceof DOMException && error.name === "AbortError")) edit((turn) => ({ ...turn, refused: error instanceof Error ? error : new Error(String(error)) }));
    } finally {
      setBusy(false);
      void queries.invalidateQueries({ queryKey: ["requests"] });
    }
  };

  return (
    <Page title="Playground" about="The same endpoint that every client uses, with a key of its own for an hour. It costs what it says.">
      <Grid gap="md">
        <Grid.Col span={{ base: 12, md: 8 }}>
          <Card className="fb-card" p={0} style={{ display: "flex", flexDirection: "column", height: "min(70vh, 44rem)" }}>
            <Box p="lg" style={{ flex: 1, overflowY: "auto" }} tabIndex={0} role="log" aria-label="Conversation">
              {turns.length === 0 && <Empty icon={MessageSquare} title="Ask something">The answer streams here, and below it stands what it cost, to the last digit.</Empty>}
              <Stack gap="md">{turns.map((turn, index) => <Said key={index} turn={turn} busy={busy && index === turns.length - 1} />)}</Stack>
              <div ref={end} />
            </Box>
            <form onSubmit={(event) => { event.preventDefault(); void send(); }} style={{ borderTop: "1px solid var(--fb-line)" }}>
              <Group p="md" gap="sm" wrap="nowrap" align="flex-end">
                <Textarea aria-label="Message" placeholder="Say hello" autosize minRows={1} maxRows={8} style={{ flex: 1 }} value={draft} onChange={(event) => setDraft(event.currentTarget.value)}
                  onKeyDown={(event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); void send(); } }} />
                {busy ? <Button variant="default" leftSection={<Square size={14} aria-hidden />} onClick={() => running.current?.abort()}>Stop</Button>
                  : <Button type="submit" leftSection={<Send size={15} aria-hidden />} disabled={!draft.trim() || !model}>Send</Button>}
              </Group>
            </form>
          </Card>
        </Grid.Col>
        <Grid.Col span={{ base: 12, md: 4 }}>
          <Card className="fb-card">
            <Stack>
              <ModelSelect value={model} onChange={(next) => void navigate({ search: { model: next } as never, replace: true })} />
              <Select label="Billed to" allowDeselect={false} value={chosen} onChange={setProject} data={(projects.data ?? []).map(({ id, name }) => ({ value: id, label: name }))} disabled={Boolean(key)} />
              {projects.isError && <Failure error={projects.error} />}
              <Textarea label="System prompt" placeholder="none" autosize minRows={2} maxRows={6} value={system} onChange={(event) => setSystem(event.currentTarget.value)} />
              <NumberInput label="Longest answer, tokens" min={1} max={100_000} value={maxTokens} onChange={setMaxTokens} hideControls />
              <div><Text size="sm" fw={500} mb={4}>Temperature {temperature}</Text><Slider min={0} max={2} step={0.1} value={temperature} onChange={setTemperature} label={null} thumbLabel="Temperature" /></div>
              <PasswordInput label="Another key" description="Instead of the hour-long one; never stored" placeholder="fbx-…" value={key} onChange={(event) => setKey(event.currentTarget.value.trim())} autoComplete="off" visibilityToggleButtonProps={{ "aria-label": "Show the key" }} />
              <Group justify="space-between"><Text size="sm" c="dimmed">This conversation</Text><Text fw={600} className="fb-num">{usd(spent)}</Text></Group>
              {turns.length > 0 && <Button variant="default" onClick={() => setTurns([])} disabled={busy}>Start over</Button>}
            </Stack>
          </Card>
        </Grid.Col>
      </Grid>
    </Page>
  );
}

function Said({ turn, busy }: { turn: Turn; busy: boolean }) {
  const mine = turn.role === "user";
  return (
    <Stack gap={4} align={mine ? "flex-end" : "flex-start"}>
      <Paper p="sm" px="md" radius="lg" maw="85%" bg={mine ? "teal.7" : "var(--fb-page)"} c={mine ? "white" : "var(--mantine-color-text)"} style={{ whiteSpace: "pre-wrap", overflowWrap: "anywhere" }}>
        <Text size="sm" inherit>{turn.content || (busy ? "…" : turn.refused ? "" : "(stopped)")}</Text>
        {turn.refused && <Text size="sm" fw={500}>{turn.refused.message}{turn.refused instanceof Refused && <Text span size="xs" c="dimmed"> ({turn.refused.status}, {turn.refused.code})</Text>}</Text>}
      </Paper>
      {turn.ending && <Spent ending={turn.ending} />}
    </Stack>
  );
}

export function Spent({ ending }: { ending: Ending }) {
  return (
    <Group gap="sm" role="status">
      <Text size="xs" fw={600} className="fb-num" data-testid="cost" title={ending.cost === null ? "" : `$${ending.cost}`}>{ending.cost === null ? "cost unknown" : usd(ending.cost)}</Text>
      {ending.input !== null && <Text size="xs" c="dimmed" className="fb-num">{count(ending.input)} in, {count(ending.output ?? 0)} out</Text>}
      <Text size="xs" c="dimmed" className="fb-num">first token {ms(ending.firstMs)}, {ms(ending.totalMs)} in all</Text>
      {ending.requestId && <Anchor component={Link} size="xs" to="/requests" search={{ id: ending.requestId } as never}>Details</Anchor>}
    </Group>
  );
}
