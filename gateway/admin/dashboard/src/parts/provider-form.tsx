import { Alert, Button, Checkbox, Group, NumberInput, PasswordInput, Select, Stack, Switch, Text, Textarea, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { get, post, put, type ProviderChange, type ProviderDetail, type ProviderKind, type Tried } from "../api";
import { useChange } from "../change";
import { Dialog } from "./dialog";
import { CircleAlert, CircleCheck } from "./icons";
import { notify } from "./notify";
import { Failure, Loaded } from "./states";

/** Adds a provider, or changes one (`existing`). A credential that is left empty there stays as it is. */
export function ProviderForm({ opened, close, existing }: { opened: boolean; close: () => void; existing?: ProviderDetail | undefined }) {
  const kinds = useQuery({ queryKey: ["provider-kinds"], queryFn: () => get<ProviderKind[]>("/provider-kinds"), enabled: opened, staleTime: Infinity });
  return (
    <Dialog opened={opened} onClose={close} title={existing ? `Change ${existing.name}` : "Add provider"} size="lg">
      <Loaded query={kinds}>{(list) => <Form kinds={list} existing={existing} close={close} />}</Loaded>
    </Dialog>
  );
}

function Form({ kinds, existing, close }: { kinds: ProviderKind[]; existing?: ProviderDetail | undefined; close: () => void }) {
  const [kindName, setKind] = useState<string | null>(existing?.kind ?? null);
  const [name, setName] = useState(existing?.name ?? "");
  const kind = kinds.find((each) => each.kind === kindName);
  // An existing one begins as it is: known by the fields that are stored, or by none.
  const stored = Object.keys(existing?.credential_fields ?? {});
  const [way, setWay] = useState<string | null>(existing && kind ? (kind.ways.find(({ fields = [] }) => (stored.length ? stored.every((name) => fields.some((field) => field.name === name)) : fields.length === 0))?.label ?? null) : null);
  const [fields, setFields] = useState<Record<string, string>>({});
  const [options, setOptions] = useState<Record<string, string>>(Object.fromEntries(Object.entries(existing?.options ?? {}).filter(([, value]) => typeof value === "string")) as Record<string, string>);
  const [url, setUrl] = useState(existing?.base_url ?? "");
  const [region, setRegion] = useState(existing?.region ?? "");
  const [inside, setInside] = useState(existing?.allow_private ?? false);
  const [enabled, setEnabled] = useState(existing?.enabled ?? true);
  const [probe, setProbe] = useState<number | string>(existing?.probe_s ?? "");
  const [replicas, setReplicas] = useState(existing?.replicas ?? false);
  const [model, setModel] = useState("");
  const ways = kind?.ways ?? [];
  const chosen = ways.find((each) => each.label === way) ?? ways[0];
  const keeps = Boolean(existing?.credential) && !Object.values(fields).some(Boolean) && Boolean(chosen?.fields?.length);
  const said = (): ProviderChange => ({
    kind: kindName ?? "", enabled, base_url: replicas ? null : url || null, region: region || null, allow_private: inside,
    probe_s: probe === "" ? null : Number(probe), probe_path: existing?.probe_path ?? null, replicas,
    credential: keeps ? (existing?.credential ?? null) : null,
    credential_fields: chosen?.fields?.length && !keeps ? Object.fromEntries(Object.entries(fields).filter(([, value]) => value)) : null,
    options: { ...existing?.options, ...Object.fromEntries(Object.entries(options).filter(([, value]) => value)) },
  });
  const test = useMutation({ mutationFn: () => post<Tried>("/provider-tests", { ...said(), name: name || "new", model: model || null }) });
  // What was there when the form began: a change of somebody else's that comes meanwhile is not overwritten unseen.
  const [began] = useState(existing);
  const save = useChange(
    () => put<ProviderDetail>(`/providers/${encodeURIComponent(name)}`, said(), began ? { "if-match": began.etag ?? "*" } : { "if-none-match": "*" }),
    () => { notify(existing ? `${name} is changed.` : `${name} can be asked now.`); close(); },
  );
  const choose = (next: string | null) => {
    if (!name || kinds.some((each) => each.kind === name)) setName(next ?? "");
    setKind(next); setWay(null); setFields({}); test.reset();
  };
  return (
    <form onSubmit={(event) => { event.preventDefault(); save.mutate(); }}>
      <Stack>
        {save.isError && <Failure error={save.error} />}
        <Group grow align="flex-start">
          <Select label="Kind" placeholder="Who is it?" searchable data={kinds.map((each) => ({ value: each.kind, label: each.label }))} value={kindName} onChange={choose} disabled={Boolean(existing)} required withAsterisk={false} />
          <TextInput label="Name" description="As in NAME/model; yours to choose" value={name} onChange={(event) => setName(event.currentTarget.value)} disabled={Boolean(existing)} required withAsterisk={false} inputWrapperOrder={["label", "input", "description"]} />
        </Group>
        {kind && (
          <>
            {kind.region != null && <TextInput label="Region" placeholder={kind.kind === "vertex" ? "global" : "us-east-1"} value={region} onChange={(event) => setRegion(event.currentTarget.value)} required={kind.region} withAsterisk={false} />}
            {(kind.base_url || replicas) && <Checkbox label="Engines join by themselves" description="Each says its own address, by a lease; none of them: requests are told to come back" checked={replicas} onChange={(event) => setReplicas(event.currentTarget.checked)} />}
            {!replicas && <TextInput label="Endpoint" description={kind.base_url ? "Its address" : "Leave empty for the provider's own"} placeholder={kind.default_base_url ?? (kind.base_url ? "https://…" : "the provider's own")} value={url} onChange={(event) => setUrl(event.currentTarget.value)} required={kind.base_url ?? false} withAsterisk={false} />}
            {url && !replicas && <Checkbox label="Allow private addresses" description="The endpoint is in our own network: an engine of yours, an emulator" checked={inside} onChange={(event) => setInside(event.currentTarget.checked)} />}
            {(kind.options ?? []).map((option) => (
              <TextInput key={option.name} label={option.label} placeholder={option.hint} value={options[option.name] ?? ""} onChange={(event) => setOptions({ ...options, [option.name]: event.currentTarget.value })} required={option.required ?? false} withAsterisk={false} />
            ))}
            {ways.length > 1 && <Select label="Known by" allowDeselect={false} data={ways.map((each) => each.label)} value={chosen?.label ?? null} onChange={(next) => { setWay(next); setFields({}); }} />}
            {(chosen?.fields ?? []).map((field) => {
              const props = {
                label: field.label, value: fields[field.name] ?? "", autoComplete: "off", withAsterisk: false, required: (field.required ?? true) && !keeps,
                placeholder: existing?.credential_fields[field.name] ? shown(existing.credential_fields[field.name]) : field.hint ?? "",
              };
              const change = (value: string) => setFields({ ...fields, [field.name]: value });
              if (field.name.endsWith("_json")) return <Textarea key={field.name} {...props} autosize minRows={3} maxRows={8} onChange={(event) => change(event.currentTarget.value)} />;
              return field.secret
                ? <PasswordInput key={field.name} {...props} onChange={(event) => change(event.currentTarget.value)} />
                : <TextInput key={field.name} {...props} onChange={(event) => change(event.currentTarget.value)} />;
            })}
            {Boolean(chosen?.fields?.length) && <Text size="xs" c="dimmed">Stored sealed and never shown again. Or say where it is: env:NAME, file:/run/secrets/…, vault:…, aws-secretsmanager:…, gcp-secret-manager:…, azure-key-vault:…</Text>}
            <NumberInput label="Probe every (seconds)" description="Asked at no cost whether it is there; empty: only requests find out" min={1} max={86400} value={probe} onChange={setProbe} />
            {existing && <Switch label="Enabled" checked={enabled} onChange={(event) => setEnabled(event.currentTarget.checked)} />}
            <TextInput label="Model to test with" description="Optional: asked for one token" value={model} onChange={(event) => setModel(event.currentTarget.value)} />
            {test.isError && <Failure error={test.error} />}
            {test.data && <TriedNote tried={test.data} />}
          </>
        )}
        <Group justify="flex-end">
          <Button variant="default" disabled={save.isPending} onClick={close}>Cancel</Button>
          <Button variant="default" disabled={!kind} loading={test.isPending} onClick={() => test.mutate()}>Test</Button>
          <Button type="submit" disabled={!kind} loading={save.isPending}>{existing ? "Save" : "Add provider"}</Button>
        </Group>
      </Stack>
    </form>
  );
}

export function TriedNote({ tried }: { tried: Tried }) {
  return (
    <Alert role="status" color={tried.ok ? "teal" : "red"} icon={tried.ok ? <CircleCheck size={18} aria-hidden /> : <CircleAlert size={18} aria-hidden />} title={tried.ok ? "It works" : `It failed (${tried.stage})`}>
      <Text size="sm" className="fb-wrap">{tried.says} {tried.todo}</Text>
      <Text size="xs" c="dimmed">{tried.took_ms} ms</Text>
    </Alert>
  );
}

/** What may be seen of a credential's field. */
export const shown = (field: { reference?: string | null; last4?: string | null } | undefined): string =>
  field?.reference ?? (field?.last4 ? `••••${field.last4}` : "hidden");
