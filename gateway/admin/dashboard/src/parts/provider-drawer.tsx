import { Anchor, Badge, Button, Group, Stack, Table, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { get, post, remove, type OfferedModel, type Provider, type ProviderDetail, type Tried } from "../api";
import { useChange } from "../change";
import { Facts, Section } from "./bits";
import { Dialog, Ends } from "./dialog";
import { Pencil, Trash } from "./icons";
import { notify } from "./notify";
import { ProviderForm, shown, TriedNote } from "./provider-form";
import { Failure, Loaded } from "./states";

/** One provider: how it is reached, whether it answers, what it lists. */
export function ProviderPanel({ provider, prices, gone }: { provider: Provider; prices: (id: string) => void; gone: () => void }) {
  const detail = useQuery({ queryKey: ["provider", provider.name], queryFn: () => get<ProviderDetail>(`/providers/${encodeURIComponent(provider.name)}`) });
  const [changing, setChanging] = useState(false);
  const [leaving, setLeaving] = useState(false);
  const test = useMutation({ mutationFn: () => post<Tried>(`/providers/${encodeURIComponent(provider.name)}/test`, {}) });
  const drop = useChange(() => remove(`/providers/${encodeURIComponent(provider.name)}`), () => { stay(); notify(`${provider.name} is gone.`); gone(); }, "provider");
  const stay = () => { drop.reset(); setLeaving(false); };
  return (
    <Loaded query={detail}>{(said) => (
      <Stack gap="lg">
        <Facts rows={[
          ["Kind", said.kind],
          ["Endpoint", said.base_url ?? "the provider's own"],
          ["Region", said.region],
          ["Said in", said.source === "file" ? "the settings file or the environment: change it there" : "the database"],
          ...Object.entries(said.credential_fields).map(([name, field]): [string, string] => [name, shown(field)]),
          ...Object.entries(said.options).map(([name, value]): [string, string] => [name, typeof value === "string" ? value : JSON.stringify(value)]),
        ]} />
        {Object.entries(provider.ill).map(([id, condition]) => <Text key={id} size="sm"><Badge color="red" variant="light" tt="none" mr="xs" styles={{ label: { color: "var(--mantine-color-text)" } }}>{condition.replace("_", " ")}</Badge>{id}</Text>)}
        {test.isError && <Failure error={test.error} />}
        {test.data && <TriedNote tried={test.data} />}
        <Group>
          <Button variant="default" loading={test.isPending} onClick={() => test.mutate()}>Test {provider.name}</Button>
          {said.source === "database" && <Button variant="default" leftSection={<Pencil size={15} aria-hidden />} onClick={() => setChanging(true)}>Change</Button>}
          {said.source === "database" && <Button variant="subtle" color="red" leftSection={<Trash size={15} aria-hidden />} onClick={() => setLeaving(true)}>Remove</Button>}
        </Group>
        <Discovered name={provider.name} prices={prices} />
        {changing && <ProviderForm opened close={() => setChanging(false)} existing={said} />}
        <Dialog opened={leaving} onClose={stay} title={`Remove ${provider.name}?`}>
          <Stack>
            {drop.isError && <Failure error={drop.error} />}
            <Text size="sm">Requests on their way there are finished; new ones go elsewhere or are refused. Its credential stays stored.</Text>
            <Ends leave={stay} busy={drop.isPending} send={() => drop.mutate()} color="red.8">Remove provider</Ends>
          </Stack>
        </Dialog>
      </Stack>
    )}</Loaded>
  );
}

function Discovered({ name, prices }: { name: string; prices: (id: string) => void }) {
  const [search, setSearch] = useState("");
  const find = useMutation({ mutationFn: () => get<OfferedModel[]>(`/providers/${encodeURIComponent(name)}/models`) });
  const found = (find.data ?? []).filter((each) => each.model.toLowerCase().includes(search.toLowerCase()));
  return (
    <Section title="Its models" about="Asked for as NAME/model. What has no price is refused, never free." actions={<Button size="xs" variant="default" loading={find.isPending} onClick={() => find.mutate()}>List its models</Button>}>
      {find.isError && <Failure error={find.error} />}
      {find.data && (
        <Stack gap="sm">
          {find.data.length > 8 && <TextInput aria-label="Find among its models" placeholder="Find" value={search} onChange={(event) => setSearch(event.currentTarget.value)} />}
          {find.data.length === 0 && <Text size="sm" c="dimmed">It has no list. Ask for any model by its name there.</Text>}
          {found.length > 0 && (
            <Table>
              <Table.Thead><Table.Tr><Table.Th>Model</Table.Th><Table.Th ta="right">Input / M</Table.Th><Table.Th ta="right">Output / M</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
              <Table.Tbody>{found.slice(0, 100).map((each) => (
                <Table.Tr key={each.model}>
                  <Table.Td className="fb-wrap">{each.model}</Table.Td>
                  {each.priced ? <><Table.Td ta="right" className="fb-num">{each.input_usd ? `$${each.input_usd}` : "–"}</Table.Td><Table.Td ta="right" className="fb-num">{each.output_usd ? `$${each.output_usd}` : "–"}</Table.Td></> : <Table.Td colSpan={2} ta="right"><Text size="sm" c="dimmed">no price</Text></Table.Td>}
                  <Table.Td ta="right"><Anchor component="button" type="button" size="sm" aria-label={`Price of ${each.model}`} onClick={() => prices(`${name}/${each.model}`)}>{each.priced ? "Prices" : "Set price"}</Anchor></Table.Td>
                </Table.Tr>
              ))}</Table.Tbody>
            </Table>
          )}
        </Stack>
      )}
    </Section>
  );
}
