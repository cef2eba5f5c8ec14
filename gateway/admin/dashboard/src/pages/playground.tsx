import { ActionIcon, Anchor, Box, Button, Card, Code, FileButton, Grid, Group, Image as Picture, JsonInput, NumberInput, PasswordInput, Paper, Select, SimpleGrid, Slider, Stack, Switch, Text, Textarea, TextInput } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import { get, type Project } from "../api";
import { ownKey, Refused, type Ending, type Part } from "../chat";
import { textOf, useConversation, type Conversation, type Terms, type Turn } from "../conversation";
import { count, ms, usd } from "../format";
import { Columns, Image, MessageSquare, Send, Square, Trash, Wrench, X } from "../parts/icons";
import { firstModel, ModelSelect, useModels } from "../parts/model-select";
import { Page } from "../parts/page";
import { Empty, Failure } from "../parts/states";

const route = getRouteApi("/shell/playground");
const IMAGE_BYTES_MAX = 5_000_000;
const EXAMPLE = JSON.stringify([{ type: "function", function: { name: "get_weather", description: "The weather of a city, now.", parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } } }], null, 2);

export default function Playground() {
  const search = route.useSearch() as { model?: string; beside?: string };
  const navigate = route.useNavigate();
  const queries = useQueryClient();
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects") });
  const models = useModels();
  const model = search.model ?? firstModel(models.data);
  const beside = search.beside ?? null;
  const change = (said: { model?: string | undefined; beside?: string | undefined }) => void navigate({ search: ((now: object) => ({ ...now, ...said })) as never, replace: true });
  const [project, setProject] = useState<string | null>(null);
  const [key, setKey] = useState("");
  const [system, setSystem] = useState("");
  const [maxTokens, setMaxTokens] = useState<number | string>(256);
  const [temperature, setTemperature] = useState(0.7);
  const [usesTools, setUsesTools] = useState(false);
  const [tools, setTools] = useState(EXAMPLE);
  const [draft, setDraft] = useState("");
  const [images, setImages] = useState<string[]>([]);
  const [trouble, setTrouble] = useState<string | null>(null);
  const [left, right] = [useConversation(), useConversation()];
  const both = beside === null ? [left] : [left, right];
  const chosen = project ?? projects.data?.[0]?.id ?? null;
  const busy = both.some((each) => each.busy);
  const spent = [left, right].flatMap(({ turns }) => turns).reduce((sum, { ending }) => sum + (ending?.cost ?? 0), 0);

  const terms = (asked: string): Terms | null => {
    let parsed: unknown[] = [];
    if (usesTools) {
      try { parsed = JSON.parse(tools) as unknown[]; } catch (error) { setTrouble(`The tools are no JSON: ${String(error)}`); return null; }
      if (!Array.isArray(parsed)) { setTrouble("The tools are a list of functions, as in the OpenAI API."); return null; }
    }
    if (!key && !chosen) { setTrouble("There is no project to bill this to. Make one under Keys."); return null; }
    setTrouble(null);
    return {
      key: () => (key ? Promise.resolve(key) : ownKey(chosen ?? "")), model: asked, system, temperature, tools: parsed,
      ...(typeof maxTokens === "number" && maxTokens > 0 ? { maxTokens } : {}),
    };
  };
  const go = async (conversation: Conversation, asked: string | null, turns: Turn[]) => {
    const said = asked && terms(asked);
    if (said) await conversation.send(turns, said);
    void queries.invalidateQueries({ queryKey: ["requests"] });
  };
  const send = () => {
    const content = draft.trim();
    if ((!content && images.length === 0) || !model || busy || !terms(model)) return;
    const parts: Part[] = [...images.map((url) => ({ type: "image_url" as const, image_url: { url } })), ...(content ? [{ type: "text" as const, text: content }] : [])];
    const turn: Turn = { role: "user", content: images.length ? parts : content };
    setDraft("");
    setImages([]);
    void go(left, model, [turn]);
    if (beside !== null) void go(right, beside, [turn]);
  };
  const attach = (files: File[]) => {
    for (const file of files) {
      if (file.size > IMAGE_BYTES_MAX) { setTrouble(`${file.name} has more than 5 MB.`); continue; }
      const reader = new FileReader();
      reader.onload = () => setImages((all) => [...all, String(reader.result)]);
      reader.readAsDataURL(file);
    }
  };

  return (
    <Page title="Playground" about="The same endpoint that every client uses, with a key of its own for an hour. It costs what it says."
      actions={<>
        <Button size="xs" variant="default" leftSection={<Trash size={15} aria-hidden />} disabled={left.turns.length === 0} onClick={() => { left.clear(); right.clear(); }}>Begin anew</Button>
        <Button size="xs" variant={beside === null ? "default" : "light"} {...(beside === null ? {} : { c: "var(--mantine-color-text)" })} aria-pressed={beside !== null} leftSection={<Columns size={15} aria-hidden />}
          onClick={() => change({ beside: beside === null ? (model ?? undefined) : undefined })}>Two side by side</Button>
      </>}>
      <Grid gap="md">
        <Grid.Col span={{ base: 12, md: 8 }}>
          <Card className="fb-card" p={0} style={{ display: "flex", flexDirection: "column", height: "min(70vh, 44rem)" }}>
            <SimpleGrid cols={both.length} spacing={0} style={{ flex: 1, minHeight: 0 }}>
              {both.map((each, index) => (
                <Talk key={index} conversation={each} label={both.length > 1 ? (index ? beside : model) : null} edge={index > 0}
                  answer={(turns) => void go(each, index ? beside : model, turns)} />
              ))}
            </SimpleGrid>
            <form onSubmit={(event) => { event.preventDefault(); send(); }} style={{ borderTop: "1px solid var(--fb-line)" }}>
              {trouble && <Text size="sm" px="md" pt="sm" role="alert">{trouble}</Text>}
              {images.length > 0 && <Group px="md" pt="md" gap="xs">{images.map((url, index) => (
                <Box key={index} pos="relative"><Picture src={url} alt={`Attached image ${index + 1}`} h={56} w="auto" radius="sm" />
                  <ActionIcon size="xs" radius="xl" color="dark" pos="absolute" top={-6} right={-6} aria-label={`Remove image ${index + 1}`} onClick={() => setImages((all) => all.filter((_, other) => other !== index))}><X size={12} aria-hidden /></ActionIcon></Box>
              ))}</Group>}
              <Group p="md" gap="sm" wrap="nowrap" align="flex-end">
                <FileButton multiple accept="image/png,image/jpeg,image/webp,image/gif" onChange={attach} inputProps={{ "aria-label": "Image files" }}>
                  {(props) => <ActionIcon {...props} variant="default" size={36} aria-label="Attach images" title="Attach images"><Image size={17} aria-hidden /></ActionIcon>}
                </FileButton>
                <Textarea aria-label="Message" placeholder="Say hello" autosize minRows={1} maxRows={8} style={{ flex: 1 }} value={draft} onChange={(event) => setDraft(event.currentTarget.value)}
                  onKeyDown={(event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); } }} />
                {busy ? <Button variant="default" leftSection={<Square size={14} aria-hidden />} onClick={() => both.forEach((each) => each.stop())}>Stop</Button>
                  : <Button type="submit" leftSection={<Send size={15} aria-hidden />} disabled={(!draft.trim() && images.length === 0) || !model}>Send</Button>}
              </Group>
            </form>
          </Card>
        </Grid.Col>
        <Grid.Col span={{ base: 12, md: 4 }}>
          <Card className="fb-card">
            <Stack>
              <ModelSelect value={model} onChange={(next) => change({ model: next })} />
              {beside !== null && <ModelSelect label="Beside it" value={beside} onChange={(next) => change({ beside: next })} />}
              <Select label="Billed to" allowDeselect={false} value={chosen} onChange={setProject} data={(projects.data ?? []).map(({ id, name }) => ({ value: id, label: name }))} disabled={Boolean(key)} />
              {projects.isError && <Failure error={projects.error} />}
              <Textarea label="System prompt" placeholder="none" autosize minRows={2} maxRows={6} value={system} onChange={(event) => setSystem(event.currentTarget.value)} />
              <NumberInput label="Longest answer, tokens" min={1} max={100_000} value={maxTokens} onChange={setMaxTokens} hideControls />
              <div><Text size="sm" fw={500} mb={4}>Temperature {temperature}</Text><Slider min={0} max={2} step={0.1} value={temperature} onChange={setTemperature} label={null} thumbLabel="Temperature" /></div>
              <Switch label="Tools" description="The model may ask for functions; you answer for them" checked={usesTools} onChange={(event) => setUsesTools(event.currentTarget.checked)} />
              {usesTools && <JsonInput aria-label="Tools as JSON" validationError="No JSON" formatOnBlur autosize minRows={6} maxRows={16} value={tools} onChange={setTools} styles={{ input: { fontFamily: "var(--mantine-font-family-monospace)", fontSize: 12 } }} />}
              <PasswordInput label="Another key" description="Instead of the hour-long one; never stored" placeholder="fbx-…" value={key} onChange={(event) => setKey(event.currentTarget.value.trim())} autoComplete="off" visibilityToggleButtonProps={{ "aria-label": "Show the key" }} />
              {spent > 0 && <Text size="sm">This conversation has cost <b>{usd(spent)}</b>.</Text>}
            </Stack>
          </Card>
        </Grid.Col>
      </Grid>
    </Page>
  );
}

function Talk({ conversation: { turns, busy }, label, edge, answer }: { conversation: Conversation; label: string | null; edge: boolean; answer: (turns: Turn[]) => void }) {
  const end = useRef<HTMLDivElement>(null);
  // In braces: what scrollIntoView returns, a promise in newer browsers, is no clean-up.
  useEffect(() => { void end.current?.scrollIntoView({ block: "nearest" }); }, [turns]);
  return (
    <Box p="lg" style={{ overflowY: "auto", minHeight: 0, ...(edge ? { borderLeft: "1px solid var(--fb-line)" } : {}) }} tabIndex={0} role="log" aria-label={label ? `Conversation with ${label}` : "Conversation"}>
      {label && <Text size="xs" fw={600} c="dimmed" mb="sm" className="fb-clip">{label}</Text>}
      {turns.length === 0 && <Empty icon={MessageSquare} title="Ask something">The answer streams here, and below it stands what it cost, to the last digit.</Empty>}
      <Stack gap="md">{turns.map((turn, index) => <Said key={index} turn={turn} busy={busy && index === turns.length - 1} last={index === turns.length - 1} answer={answer} />)}</Stack>
      <div ref={end} />
    </Box>
  );
}

function Said({ turn, busy, last, answer }: { turn: Turn; busy: boolean; last: boolean; answer: (turns: Turn[]) => void }) {
  const text = textOf(turn.content);
  const pictures = typeof turn.content === "string" ? [] : turn.content.flatMap((part) => (part.type === "image_url" ? [part.image_url.url] : []));
  if (turn.role === "user" || turn.role === "tool") {
    return (
      <Paper bg="var(--mantine-primary-color-light)" p="sm" radius="lg" ml="auto" maw="85%">
        {turn.role === "tool" && <Text size="xs" c="var(--mantine-color-text)" fw={600}>Result of the tool</Text>}
        {pictures.map((url, index) => <Picture key={index} src={url} alt={`Sent image ${index + 1}`} mah={160} w="auto" radius="sm" mb={text ? "xs" : 0} />)}
        {text && <Text size="sm" style={{ whiteSpace: "pre-wrap" }} className="fb-wrap">{text}</Text>}
      </Paper>
    );
  }
  const { ending, refused } = turn;
  return (
    <Box maw="95%">
      {text && <Text size="sm" style={{ whiteSpace: "pre-wrap" }} className="fb-wrap" lh={1.65}>{text}</Text>}
      {!text && busy && <Text size="sm" c="dimmed">Waiting for the first token …</Text>}
      {!text && !busy && !refused && !turn.tool_calls && <Text size="sm" c="dimmed">(nothing came)</Text>}
      {turn.tool_calls && <Calls turn={turn} open={last && !busy} answer={answer} />}
      {refused && <Paper withBorder p="sm" radius="md" role="alert" mt={text ? "xs" : 0}><Text size="sm" fw={600}>{refused instanceof Refused ? `${refused.status} ${refused.code}` : "Not sent"}</Text><Text size="sm" className="fb-wrap">{refused.message}</Text></Paper>}
      {ending && <Box mt={6}><Spent ending={ending} /></Box>}
    </Box>
  );
}

/** What the model asks for, and a place to answer in its tools' stead. */
function Calls({ turn, open, answer }: { turn: Turn; open: boolean; answer: (turns: Turn[]) => void }) {
  return (
    <form onSubmit={(event) => {
      event.preventDefault();
      const said = new FormData(event.currentTarget);
      answer((turn.tool_calls ?? []).map(({ id }) => ({ role: "tool" as const, tool_call_id: id, content: String(said.get(id) ?? "") })));
    }}>
      <Stack gap="xs" mt={4}>
        {(turn.tool_calls ?? []).map((call) => (
          <Paper key={call.id} withBorder p="sm" radius="md">
            <Group gap={6} mb={4}><Wrench size={14} aria-hidden /><Text size="sm" fw={600} className="fb-mono">{call.function.name}</Text></Group>
            <Code block fz={12} tabIndex={0} aria-label={`Arguments of ${call.function.name}`}>{call.function.arguments}</Code>
            {open && <TextInput name={call.id} mt="xs" size="xs" label="Its result" placeholder='{"celsius": 7}' required withAsterisk={false} />}
          </Paper>
        ))}
        {open && <Button type="submit" size="xs" w="fit-content">Send {turn.tool_calls?.length === 1 ? "the result" : "the results"}</Button>}
      </Stack>
    </form>
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
