import { Anchor, Button, Group, MultiSelect, NumberInput, Stack, Switch, Text, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { get, put, remove, type DeploymentEntry, type DeploymentRow } from "../api";
import { useChange } from "../change";
import { Ends } from "./dialog";
import { notify } from "./notify";
import { Failure, Loaded } from "./states";

const CAPABILITIES = ["tools", "image_input", "file_input", "response_format", "reasoning", "logprobs", "candidates"];
type Limit = "context_window" | "max_output_tokens" | "max_parallel" | "cache_tokens" | "cache_s";
const LIMITS: [Limit, string, string][] = [
  ["context_window", "Context window, tokens", "Longer requests are not sent there"],
  ["max_output_tokens", "Longest answer, tokens", "Also bounds what is held of a budget"],
  ["max_parallel", "At once, from each gateway", "More wait, fairly among keys"],
  ["cache_tokens", "Prefix cache, tokens", "For the strategies Warm prefix and Auto"],
  ["cache_s", "Prefix cache keeps, seconds", "An unused prefix is gone then"],
];
const path = (name: string) => `/deployments/${name.split("/").map(encodeURIComponent).join("/")}`;

/** What is known of one model of a provider: its limits, where it is, what it can. Left empty: the provider's own. */
export function DeploymentPanel({ id, provider, model, close }: { id: string; provider: string; model: string; close: () => void }) {
  const rows = useQuery({ queryKey: ["deployments"], queryFn: () => get<DeploymentRow[]>("/deployments"), staleTime: 0 });
  return <Loaded query={rows}>{(data) => <Form key={id} row={data.find((each) => each.place === id)} fresh={{ provider, model, zdr: false }} close={close} />}</Loaded>;
}

function Form({ row, fresh, close }: { row: DeploymentRow | undefined; fresh: DeploymentEntry; close: () => void }) {
  // What was there when the form began: a change of somebody else's that comes meanwhile is not overwritten unseen.
  const [began] = useState(row);
  const [entry, setEntry] = useState<DeploymentEntry>(row?.entry ?? fresh);
  const change = (said: Partial<DeploymentEntry>) => setEntry({ ...entry, ...said });
  const fixed = row?.source === "file";
  const name = row?.name ?? `${fresh.provider}/${fresh.model}`;
  const done = (said: string) => { notify(said); close(); };
  const save = useChange(() => put<DeploymentRow>(path(name), entry, began ? { "if-match": began.etag ?? "*" } : { "if-none-match": "*" }), () => done(`${name} is changed.`));
  const drop = useChange(() => remove(path(name)), () => done(`${name} is as its provider has it.`));
  return (
    <form onSubmit={(event) => { event.preventDefault(); save.mutate(); }}>
      <Stack>
        {fixed && <Text size="sm" c="dimmed">This deployment is in the settings file: change it there, and it is in force a moment later.</Text>}
        {save.isError && <Failure error={save.error} />}
        {drop.isError && <Failure error={drop.error} />}
        {LIMITS.map(([field, label, about]) => (
          <NumberInput key={field} label={label} description={about} min={field.startsWith("cache") ? 0 : 1} allowDecimal={false} thousandSeparator=" " hideControls disabled={fixed}
            placeholder={field === "max_parallel" ? "no end" : "as its kind usually does"} value={entry[field] ?? ""} onChange={(value) => change({ [field]: value === "" ? null : Number(value) })} />
        ))}
        <Group grow align="flex-start">
          <TextInput label="Region" description="Where it is" disabled={fixed} value={entry.region ?? ""} onChange={(event) => change({ region: event.currentTarget.value || null })} />
          <TextInput label="Data stays in" description="As eu; requests may ask for it" disabled={fixed} value={entry.residency ?? ""} onChange={(event) => change({ residency: event.currentTarget.value || null })} />
        </Group>
        <MultiSelect label="It can" description="Leave empty for all that its provider can" placeholder={entry.capabilities?.length ? "" : "everything"} disabled={fixed} data={CAPABILITIES} value={entry.capabilities ?? []}
          onChange={(value) => change({ capabilities: value.length ? (value as NonNullable<DeploymentEntry["capabilities"]>) : null })} />
        <TextInput label="Priced as" description="PROVIDER/MODEL of the price book, for a deployment with a name of its own" disabled={fixed} value={entry.price_as ?? ""} onChange={(event) => change({ price_as: event.currentTarget.value || null })} />
        <Switch label="Nothing is kept there" description="You have it in writing (zero data retention); requests may ask for such deployments alone" disabled={fixed} checked={entry.zdr ?? false} onChange={(event) => change({ zdr: event.currentTarget.checked })} />
        <Group justify="space-between">
          <div>{row && !fixed && <Anchor component="button" type="button" size="sm" c="red" disabled={drop.isPending || save.isPending} onClick={() => drop.mutate()}>Forget all this</Anchor>}</div>
          {fixed ? <Button variant="default" onClick={close}>Close</Button> : <Ends leave={close} busy={save.isPending} disabled={drop.isPending}>Save</Ends>}
        </Group>
      </Stack>
    </form>
  );
}
