import { ActionIcon, Badge, Button, Group, MultiSelect, Select, Stack, Switch, Table, Text, Textarea, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";
import { get, post, put, remove, type Guardrail, type GuardrailReport, type GuardrailTried, type Project } from "../api";
import { useChange } from "../change";
import { ago, dateTime, words } from "../format";
import { Section, State } from "../parts/bits";
import { Dialog, Ends } from "../parts/dialog";
import { Pencil, Plus, Shield, Trash } from "../parts/icons";
import { KeySelect } from "../parts/key-select";
import { notify } from "../parts/notify";
import { BodyLogs, DETECTORS } from "../parts/body-logs";
import { Page } from "../parts/page";
import { Empty, Failure, Loaded } from "../parts/states";
import { useMay } from "../session";

const route = getRouteApi("/shell/guardrails");
type Spec = Record<string, unknown> & { kind: string };
const lines = (said: FormDataEntryValue | null) => String(said ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
const list = (value: unknown): string[] => (Array.isArray(value) ? value.map(String) : []);
const KINDS: Record<string, { label: string; about: string; actions: string[] }> = {
  pii: { label: "Personal data and keys", about: "By look and checksum", actions: ["redact", "block", "flag"] },
  patterns: { label: "Patterns", about: "Regular expressions of your own", actions: ["redact", "block", "flag"] },
  topics: { label: "Topics", about: "Texts that match are stopped", actions: ["block", "flag"] },
  tools: { label: "Tools", about: "Which tools a request may declare", actions: ["block", "redact", "flag"] },
  webhook: { label: "Webhook", about: "A service of your own is asked", actions: ["redact", "block", "flag"] },
  bedrock: { label: "Amazon Bedrock", about: "A guardrail of your AWS account is asked", actions: ["redact", "block", "flag"] },
  azure: { label: "Azure Content Safety", about: "A resource of your Azure subscription is asked", actions: ["block", "flag"] },
};
const ACTIONS: Record<string, string> = { redact: "Take it out", block: "Block", flag: "Only count" };
const STAGES = [{ value: "both", label: "Prompts and answers" }, { value: "input", label: "Prompts" }, { value: "output", label: "Answers" }];

export default function GuardrailsPage() {
  const search = route.useSearch() as { edit?: string };
  const navigate = route.useNavigate();
  const may = useMay();
  const rules = useQuery({ queryKey: ["guardrails"], queryFn: () => get<Guardrail[]>("/guardrails") });
  const open = (id?: string) => void navigate({ search: { edit: id } as never });
  const add = may("guardrails.create") && <Button leftSection={<Plus size={16} aria-hidden />} onClick={() => open("new")}>New guardrail</Button>;
  const edited = rules.data?.find(({ id }) => id === search.edit);
  return (
    <Page title="Guardrails" about="What may not go in or come out. Rules for all look first, then an organisation's, a project's, a key's." actions={add}>
      <Loaded query={rules}>{(found) => found.length === 0
        ? <Empty icon={Shield} title="Nothing is looked at" action={may("guardrails.create") && <Button mt="sm" onClick={() => open("new")}>Make the first</Button>}>Take personal data out of prompts, stop a topic, bound the tools, or ask a service of your own. Streams wait only for what could still become a match.</Empty>
        : <Rules rules={found} may={may} edit={open} />}</Loaded>
      {may("guardrails.test") && (rules.data?.length ?? 0) > 0 && <Trial rules={rules.data ?? []} />}
      {may("guardrails.reports") && <Reports />}
      {may("bodies.list") && <BodyLogs may={may("bodies.set")} />}
      {may("guardrails.create") && <Edit key={edited?.id ?? (search.edit === "new" ? "new" : "")} opened={search.edit === "new" || edited !== undefined} rule={edited} close={() => open()} />}
    </Page>
  );
}

function Rules({ rules, may, edit }: { rules: Guardrail[]; may: (name: string) => boolean; edit: (id: string) => void }) {
  const [leaving, setLeaving] = useState<Guardrail | null>(null);
  const drop = useChange((id: string) => remove(`/guardrails/${id}`), () => { keep(); notify("The guardrail is gone."); });
  const keep = () => { drop.reset(); setLeaving(null); };
  return (
    <Section title="Rules" about="In the order they look. What asks somebody else looks last.">
      <Table.ScrollContainer minWidth={760}>
        <Table>
          <Table.Thead><Table.Tr><Table.Th>Name</Table.Th><Table.Th>Looks for</Table.Th><Table.Th>In</Table.Th><Table.Th>Of</Table.Th><Table.Th>Then</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>{rules.map((rule) => (
            <Table.Tr key={rule.id}>
              <Table.Td><Text size="sm" fw={550}>{rule.name}</Text>{!rule.enabled && <Badge variant="default" size="xs" tt="none">off</Badge>}</Table.Td>
              <Table.Td maw={300}><Text size="sm">{KINDS[rule.kind]?.label ?? rule.kind}</Text><Text size="xs" c="dimmed" className="fb-wrap">{told(rule.spec as Spec)}</Text></Table.Td>
              <Table.Td>{STAGES.find(({ value }) => value === rule.stage)?.label}</Table.Td>
              <Table.Td className="fb-wrap">{rule.scope === "all" ? "all" : `${words(rule.scope)} ${rule.scope_id ?? ""}`}</Table.Td>
              <Table.Td>{ACTIONS[rule.action]}</Table.Td>
              <Table.Td>{may("guardrails.update") && <Group gap="xs" justify="flex-end" wrap="nowrap">
                <ActionIcon variant="subtle" color="gray" aria-label={`Edit ${rule.name}`} onClick={() => edit(rule.id)}><Pencil size={16} aria-hidden /></ActionIcon>
                <ActionIcon variant="subtle" color="gray" aria-label={`Remove ${rule.name}`} onClick={() => setLeaving(rule)}><Trash size={16} aria-hidden /></ActionIcon>
              </Group>}</Table.Td>
            </Table.Tr>
          ))}</Table.Tbody>
        </Table>
      </Table.ScrollContainer>
      <Dialog opened={leaving !== null} onClose={keep} title="Remove guardrail">
        <Stack>
          {drop.isError && <Failure error={drop.error} />}
          <Text size="sm"><b className="fb-wrap">{leaving?.name}</b> looks at nothing any more, within a second. What it said stays in the list.</Text>
          <Ends leave={keep} stay="Keep it" busy={drop.isPending} send={() => leaving && drop.mutate(leaving.id)} color="red.8">Remove</Ends>
        </Stack>
      </Dialog>
    </Section>
  );
}

function told(spec: Spec): string {
  switch (spec.kind) {
    case "pii": return list(spec["detectors"]).map((name) => DETECTORS[name] ?? name).join(", ");
    case "patterns": return list(spec["patterns"]).join(" · ");
    case "topics": return [...list(spec["deny"]).map((one) => `not ${one}`), ...list(spec["allow"]).map((one) => `only ${one}`)].join(" · ");
    case "tools": return `allowed: ${list(spec["allow"]).join(", ")}${list(spec["deny"]).length ? `; denied: ${list(spec["deny"]).join(", ")}` : ""}`;
    case "webhook": return String(spec["url"]);
    case "bedrock": return `${String(spec["guardrail_id"])}, version ${String(spec["version"])}`;
  }
  return `severity ${String(spec["severity"])} and up`;
}

function Trial({ rules }: { rules: Guardrail[] }) {
  const trial = useMutation({ mutationFn: (said: { text: string; stage: string }) => post<GuardrailTried>("/guardrails/test", { ...said, rules: rules.filter(({ enabled }) => enabled).map(({ id }) => id) }) });
  return (
    <Section title="Try a text" about="What all rules that are on would make of it. Nothing is written down; services are asked.">
      <form onSubmit={(event) => { event.preventDefault(); const said = new FormData(event.currentTarget); trial.mutate({ text: String(said.get("text")), stage: String(said.get("stage")) }); }}>
        <Stack gap="sm">
          <Textarea name="text" aria-label="Text to try" placeholder="My card is 4111 1111 1111 1111" autosize minRows={2} maxRows={8} required />
          <Group><Select name="stage" aria-label="As" w={150} allowDeselect={false} defaultValue="input" data={[{ value: "input", label: "As a prompt" }, { value: "output", label: "As an answer" }]} /><Button type="submit" variant="default" loading={trial.isPending}>Try it</Button></Group>
          {trial.isError && <Failure error={trial.error} />}
          {trial.data && <div role="status">
            <Text size="sm" fw={550}>{trial.data.left === null ? "Blocked: nothing of it goes on." : "Goes on as:"}</Text>
            {trial.data.left !== null && <Text size="sm" className="fb-mono fb-wrap">{trial.data.left}</Text>}
            {trial.data.findings.map((one) => <Text key={one.rule_id} size="xs" c="dimmed">{one.rule}: {words(one.outcome)}{found(one.found)}{one.reason ? `, ${one.reason}` : ""}</Text>)}
          </div>}
        </Stack>
      </form>
    </Section>
  );
}

const found = (counts: Record<string, number>) => Object.entries(counts).map(([name, count]) => `, ${count} × ${name}`).join("");

function Reports() {
  const reports = useQuery({ queryKey: ["guardrail-reports"], queryFn: () => get<GuardrailReport[]>("/guardrails/reports", { limit: 50 }), refetchInterval: 15_000 });
  return (
    <Section title="What they said" about="Of the newest requests. What was found is never written down, only how often.">
      <Loaded query={reports}>{(rows) => rows.length === 0 ? <Text size="sm" c="dimmed">Nothing yet.</Text> : (
        <Table.ScrollContainer minWidth={640}>
          <Table verticalSpacing={7}>
            <Table.Thead><Table.Tr><Table.Th>Time</Table.Th><Table.Th>Outcome</Table.Th><Table.Th>Model</Table.Th><Table.Th>By</Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>{rows.map((row) => (
              <Table.Tr key={row.request_id}>
                <Table.Td className="fb-num" title={dateTime(row.at)}>{ago(row.at)}</Table.Td>
                <Table.Td><State name={row.outcome} /></Table.Td>
                <Table.Td>{row.alias}</Table.Td>
                <Table.Td><Text size="sm">{row.findings.filter(({ outcome }) => outcome !== "passed").map((one) => `${one.rule}${found(one.found)}`).join("; ") || "all passed"}</Text><Text size="xs" c="dimmed" className="fb-mono">{row.request_id}</Text></Table.Td>
              </Table.Tr>
            ))}</Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}</Loaded>
    </Section>
  );
}

function Edit({ opened, rule, close }: { opened: boolean; rule: Guardrail | undefined; close: () => void }) {
  const spec = (rule?.spec ?? { kind: "pii" }) as Spec;
  const [kind, setKind] = useState(spec.kind);
  const [scope, setScope] = useState<string>(rule?.scope ?? "all");
  const [action, setAction] = useState<string>(rule?.action ?? "redact");
  const [picked, setPicked] = useState<string[]>(rule?.kind === "pii" ? list(spec["detectors"]) : Object.keys(DETECTORS));
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects"), enabled: opened && scope !== "all" && scope !== "key" });
  const save = useChange(
    (said: Record<string, unknown>) => rule ? put<Guardrail>(`/guardrails/${rule.id}`, said) : post<Guardrail>("/guardrails", said),
    () => { notify("The guardrail is in force within a second."); leave(); },
  );
  const leave = () => { save.reset(); close(); };
  const actions = KINDS[kind]?.actions ?? ["block"];
  const chosen = actions.includes(action) ? action : actions[0] ?? "block";
  const organisations = new Map((projects.data ?? []).map((each) => [each.organisation_id, each.organisation]));
  const ids = scope === "project" ? (projects.data ?? []).map(({ id, name }) => ({ value: id, label: name })) : [...organisations].map(([value, label]) => ({ value, label }));
  return (
    <Dialog opened={opened} onClose={leave} title={rule ? `Edit ${rule.name}` : "New guardrail"} size="lg">
      <form onSubmit={(event) => {
        event.preventDefault();
        const said = new FormData(event.currentTarget);
        const text = (name: string) => String(said.get(name) ?? "").trim();
        const kept = rule?.kind === kind ? spec : {};
        const filled: Record<string, () => Record<string, unknown>> = {
          pii: () => ({ detectors: picked }),
          patterns: () => ({ patterns: lines(said.get("patterns")) }),
          topics: () => ({ deny: lines(said.get("deny")), allow: lines(said.get("allow")) }),
          tools: () => ({ allow: lines(said.get("allow")), deny: lines(said.get("deny")) }),
          webhook: () => ({ url: text("url") }),
          bedrock: () => ({ guardrail_id: text("guardrail_id"), version: text("version"), provider: text("provider") }),
          azure: () => ({ provider: text("provider"), severity: Number(text("severity")) }),
        };
        save.mutate({
          name: text("name"), action: chosen, stage: kind === "tools" ? "input" : said.get("stage"), scope, scope_id: scope === "all" ? null : said.get("id"), position: rule?.position ?? 0,
          enabled: said.get("enabled") === "on", message: text("message") || null, spec: { ...kept, kind, ...filled[kind]?.() },
        });
      }}>
        <Stack>
          {save.isError && <Failure error={save.error} />}
          <Group grow align="flex-start">
            <TextInput name="name" label="Name" description="Also a label of the metrics" defaultValue={rule?.name ?? ""} placeholder="No card numbers" required withAsterisk={false} data-autofocus />
            <Select label="Looks for" description={KINDS[kind]?.about} allowDeselect={false} value={kind} data={Object.entries(KINDS).map(([value, { label }]) => ({ value, label }))} onChange={(next) => setKind(next ?? "pii")} />
          </Group>
          {kind === "pii" && <MultiSelect label="What" value={picked} onChange={setPicked} data={Object.entries(DETECTORS).map(([value, label]) => ({ value, label }))} />}
          {kind === "patterns" && <Textarea name="patterns" label="Patterns" description="One a line, without regard to case. A match has an end: {1,100}, not + or *" className="fb-mono" autosize minRows={2} defaultValue={list(spec["patterns"]).join("\n")} required withAsterisk={false} />}
          {(kind === "topics" || kind === "tools") && <Group grow align="flex-start" key={kind}>
            <Textarea name="deny" label="Deny" description={kind === "topics" ? "Patterns, one a line" : "Names or globs, one a line"} autosize minRows={2} defaultValue={rule?.kind === kind ? list(spec["deny"]).join("\n") : ""} />
            <Textarea name="allow" label="Allow only" description={kind === "topics" ? "Prompts alone; empty: any" : "As get_*"} autosize minRows={2} defaultValue={rule?.kind === kind ? list(spec["allow"]).join("\n") : kind === "tools" ? "*" : ""} />
          </Group>}
          {kind === "webhook" && <TextInput name="url" type="url" label="Address" description="Signed if guardrails.signing_secret is set" defaultValue={String(spec["url"] ?? "")} placeholder="https://example.com/guard" required withAsterisk={false} />}
          {kind === "bedrock" && <Group grow align="flex-start">
            <TextInput name="guardrail_id" label="Guardrail" description="Its id or ARN" defaultValue={String(spec["guardrail_id"] ?? "")} required withAsterisk={false} />
            <TextInput name="version" label="Version" description="A number, or DRAFT" defaultValue={String(spec["version"] ?? "DRAFT")} required withAsterisk={false} />
            <TextInput name="provider" label="Provider" description="Whose keys ask" defaultValue={String(spec["provider"] ?? "bedrock")} required withAsterisk={false} />
          </Group>}
          {kind === "azure" && <Group grow align="flex-start">
            <TextInput name="provider" label="Provider" description="Whose address and key ask" defaultValue={String(spec["provider"] ?? "azure_ai")} required withAsterisk={false} />
            <TextInput name="severity" label="From severity" description="0 to 7" inputMode="numeric" defaultValue={String(spec["severity"] ?? 4)} required withAsterisk={false} />
          </Group>}
          <Group grow align="flex-start">
            <Select name="stage" label="In" allowDeselect={false} defaultValue={rule?.stage ?? "both"} disabled={kind === "tools"} data={STAGES} />
            <Select label="Then" allowDeselect={false} value={chosen} data={actions.map((value) => ({ value, label: ACTIONS[value] ?? value }))} onChange={(next) => setAction(next ?? "block")} />
          </Group>
          <Group grow align="flex-start">
            <Select label="Of" allowDeselect={false} value={scope} data={["all", "organisation", "project", "key"].map((value) => ({ value, label: words(value) }))} onChange={(next) => setScope(next ?? "all")} />
            {scope === "key" ? <KeySelect name="id" label="Which" required withAsterisk={false} defaultValue={rule?.scope === "key" ? rule.scope_id : null} />
              : <Select key={scope} name="id" label="Which" searchable disabled={scope === "all"} required={scope !== "all"} withAsterisk={false} defaultValue={rule?.scope_id ?? null} data={ids} />}
          </Group>
          <TextInput name="message" label="What a client is told" description="Where its request is blocked; empty: the name of the guardrail" defaultValue={rule?.message ?? ""} maxLength={1000} />
          <Switch name="enabled" label="On" defaultChecked={rule?.enabled ?? true} />
          <Ends leave={leave} busy={save.isPending}>{rule ? "Save" : "Set guardrail"}</Ends>
        </Stack>
      </form>
    </Dialog>
  );
}
