import { Button, Group, Paper, Stack, Tabs, Text, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { KeyRound, Play } from "../parts/icons";
import { useState } from "react";
import { get, type Project, type ShownKey } from "../api";
import { ask, ownKey, type Ending } from "../chat";
import { Section, Snippet } from "../parts/bits";
import { KeyForm } from "../parts/key-form";
import { firstModel, ModelSelect, useModels } from "../parts/model-select";
import { Page } from "../parts/page";
import { Failure } from "../parts/states";
import { Problem } from "../api";
import { useMay } from "../session";
import { Spent } from "./playground";

const SNIPPETS: { name: string; text: (base: string, key: string, model: string) => string }[] = [
  { name: "curl", text: (base, key, model) => `curl -N ${base}/v1/chat/completions \\
  -H 'Authorization: Bearer ${key}' \\
  -H 'Content-Type: application/json' \\
  -d '{"model": "${model}", "stream": true,
       "messages": [{"role": "user", "content": "Say hello"}]}'` },
  { name: "OpenAI Python", text: (base, key, model) => `from openai import OpenAI

client = OpenAI(base_url="${base}/v1", api_key="${key}")
answer = client.chat.completions.create(
    model="${model}",
    messages=[{"role": "user", "content": "Say hello"}],
)
print(answer.choices[0].message.content)` },
  { name: "OpenAI JS", text: (base, key, model) => `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${base}/v1", apiKey: "${key}" });
const answer = await client.chat.completions.create({
  model: "${model}",
  messages: [{ role: "user", content: "Say hello" }],
});
console.log(answer.choices[0].message.content);` },
  { name: "Anthropic", text: (base, key, model) => `from anthropic import Anthropic

client = Anthropic(base_url="${base}", auth_token="${key}")
answer = client.messages.create(
    model="${model}",
    max_tokens=256,
    messages=[{"role": "user", "content": "Say hello"}],
)
print(answer.content[0].text)` },
  { name: "Claude Code", text: (base, key, model) => `export ANTHROPIC_BASE_URL=${base}
export ANTHROPIC_AUTH_TOKEN=${key}
export ANTHROPIC_MODEL=${model}
claude` },
  { name: "Codex", text: (base, key, model) => `# ~/.codex/config.toml
model = "${model}"
model_provider = "farebox"

[model_providers.farebox]
name = "Farebox"
base_url = "${base}/v1"
env_key = "FAREBOX_KEY"
wire_api = "responses"

# then: export FAREBOX_KEY=${key}` },
  { name: "Gemini CLI", text: (base, key, model) => `export GOOGLE_GEMINI_BASE_URL=${base}
export GEMINI_API_KEY=${key}
gemini --model ${model}` },
  { name: "LangChain", text: (base, key, model) => `from langchain_openai import ChatOpenAI

chat = ChatOpenAI(base_url="${base}/v1", api_key="${key}", model="${model}")
print(chat.invoke("Say hello").content)` },
];

export default function Start() {
  const may = useMay();
  const models = useModels();
  const [picked, setPicked] = useState<string | null>(null);
  const [creating, setCreating] = useState(false);
  const [made, setMade] = useState<ShownKey | null>(null);
  const model = picked ?? firstModel(models.data);
  const key = made?.secret ?? "YOUR_KEY";
  return (
    <Page title="Get started" about="Any SDK works: give it this address, a key, and any model of any provider.">
      <Section title="1. Choose a model and a key">
        <Group align="flex-end" gap="md">
          <ModelSelect value={model} onChange={setPicked} />
          <TextInput label="Address" value={location.origin} readOnly w={240} />
          {may("keys.create") && <Button variant={made ? "default" : "filled"} leftSection={<KeyRound size={16} aria-hidden />} onClick={() => setCreating(true)}>{made ? "Create another key" : "Create a key"}</Button>}
        </Group>
        {!may("keys.create") && <Text size="sm" mt="sm" c="dimmed">Your role makes no keys. A developer, team lead or admin can make you one; put it where the snippets say YOUR_KEY.</Text>}
        {made && <Text size="sm" mt="sm">The snippets below carry <b>{made.key.name}</b> until you leave this page.</Text>}
      </Section>
      <Section title="2. Point your client here">
        <Tabs defaultValue="curl" keepMounted={false}>
          <Tabs.List mb="md" aria-label="Clients">{SNIPPETS.map(({ name }) => <Tabs.Tab key={name} value={name}>{name}</Tabs.Tab>)}</Tabs.List>
          {SNIPPETS.map(({ name, text }) => <Tabs.Panel key={name} value={name}><Snippet label={`${name} snippet`} text={text(location.origin, key, model ?? "MODEL")} /></Tabs.Panel>)}
        </Tabs>
      </Section>
      {may("playground.key") && <Trial model={model} />}
      <KeyForm opened={creating} close={() => setCreating(false)} made={setMade} />
    </Page>
  );
}

function Trial({ model }: { model: string | null }) {
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects") });
  const [text, setText] = useState("");
  const [ending, setEnding] = useState<Ending | null>(null);
  const [failed, setFailed] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const project = projects.data?.[0]?.id;
  const run = async () => {
    if (!model || !project) return;
    setText(""); setEnding(null); setFailed(null); setBusy(true);
    try {
      setEnding(await ask({
        key: await ownKey(project), model, maxTokens: 60, signal: new AbortController().signal,
        messages: [{ role: "user", content: "Say hello in one short sentence." }], text: (piece) => setText((said) => said + piece),
      }));
    } catch (error) {
      setFailed(error instanceof Problem ? error : new Problem(0, "refused", error instanceof Error ? error.message : String(error), "The message above is what any client would get."));
    } finally { setBusy(false); }
  };
  return (
    <Section title="3. Or try it right here" actions={<Button leftSection={<Play size={15} aria-hidden />} loading={busy} disabled={!model || !project} onClick={() => void run()}>Send a test request</Button>}>
      <Stack gap="sm">
        {!text && failed === null && <Text size="sm" c="dimmed">Asks {model ?? "a model"} for one short sentence, through the front door, and shows what it cost.</Text>}
        {text && <Paper p="md" radius="md" bg="var(--fb-page)"><Text size="sm" style={{ whiteSpace: "pre-wrap" }}>{text}</Text></Paper>}
        {failed !== null && <Failure error={failed} />}
        {ending && <Group justify="space-between"><Spent ending={ending} /><Button component={Link} to="/overview" size="xs" variant="default">See it in the overview</Button></Group>}
      </Stack>
    </Section>
  );
}
