import { Anchor, Badge, Box, Button, Card, Drawer, Group, NumberInput, SimpleGrid, Stack, Table, Text, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { Boxes, Plug, Plus, Search } from "../parts/icons";
import { useState } from "react";
import { get, post, type Deployment, type Models, type Price, type Provider } from "../api";
import { useChange } from "../change";
import { compact, count, dateTime, ms, percent, words } from "../format";
import { Section, State } from "../parts/bits";
import { DeploymentPanel } from "../parts/deployment-form";
import { Page } from "../parts/page";
import { ProviderPanel } from "../parts/provider-drawer";
import { ProviderForm } from "../parts/provider-form";
import { Empty, Failure, Loaded } from "../parts/states";
import { useMay } from "../session";

const route = getRouteApi("/shell/models");

export default function ModelsPage() {
  const search = route.useSearch() as { search?: string; price?: string; provider?: string; add?: string; limits?: string };
  const may = useMay();
  const navigate = route.useNavigate();
  const [wanted] = useDebouncedValue(search.search ?? "", 200);
  const providers = useQuery({ queryKey: ["providers"], queryFn: () => get<Provider[]>("/providers"), refetchInterval: 30_000, enabled: may("providers.list") });
  const models = useQuery({ queryKey: ["models", wanted], queryFn: () => get<Models>("/models", { search: wanted }), placeholderData: keepPreviousData });
  const change = (said: Record<string, string | undefined>) => void navigate({ search: ((now: object) => ({ ...now, ...said })) as never, replace: true });
  const limited = models.data?.models.flatMap(({ deployments }) => deployments).find((each) => each.id === search.limits);
  return (
    <Page title="Models & providers" about="What clients may ask for, who serves it, and what a million tokens cost."
      actions={may("providers.put") && <Button leftSection={<Plus size={16} aria-hidden />} onClick={() => change({ add: "1" })}>Add provider</Button>}>
      {may("providers.list") && <Loaded query={providers}>{(data) => data.length === 0
        ? <Empty icon={Plug} title="No providers yet">Add one here, or set its key in the environment (OPENAI_API_KEY, GROQ_API_KEY, …) or in farebox.toml.</Empty>
        : <SimpleGrid cols={{ base: 1, xs: 2, md: 4 }}>{data.map((provider) => <ProviderCard key={provider.name} provider={provider} {...(may("providers.read") ? { open: () => change({ provider: provider.name }) } : {})} />)}</SimpleGrid>}</Loaded>}
      <Section title="Models" actions={<TextInput w={260} aria-label="Find a model" placeholder="Find a model" leftSection={<Search size={15} aria-hidden />} value={search.search ?? ""} onChange={(event) => change({ search: event.currentTarget.value || undefined })} />}>
        <Loaded query={models}>{(data) => data.total === 0
          ? <Empty icon={Boxes} title="No model by that name">A model without a price is not run: set its price, and it is listed.</Empty>
          : <Table.ScrollContainer minWidth={700}>
            <Table>
              <Table.Thead><Table.Tr><Table.Th>Model</Table.Th><Table.Th>Served by</Table.Th><Table.Th ta="right">Context</Table.Th><Table.Th ta="right">Input / M</Table.Th><Table.Th ta="right">Cached / M</Table.Th><Table.Th ta="right">Output / M</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
              <Table.Tbody>{data.models.flatMap(({ alias, deployments }) => deployments.map((each, index) => (
                <Table.Tr key={alias + each.id}>
                  <Table.Td className="fb-wrap">{index === 0 && <Text size="sm" fw={550}>{alias}</Text>}</Table.Td>
                  <Table.Td>{each.provider}{each.condition !== "closed" && <Badge ml="xs" color="red" variant="light" tt="none" styles={{ label: { color: "var(--mantine-color-text)" } }}>{each.condition.replace("_", " ")}</Badge>}{deployments.length > 1 && <Text span size="xs" c="dimmed"> priority {each.priority}, weight {each.weight}</Text>}</Table.Td>
                  <Table.Td ta="right" className="fb-num">{each.context_window ? compact(each.context_window) : "–"}</Table.Td>
                  <PriceCells price={each.price} />
                  <Table.Td ta="right"><Group gap="sm" justify="flex-end" wrap="nowrap">
                    {may("deployments.put") && each.kind !== "local" && <Anchor component="button" type="button" size="sm" aria-label={`Limits of ${each.id}`} onClick={() => change({ limits: each.id })}>Limits</Anchor>}
                    {may("prices.list") && <Anchor component="button" type="button" size="sm" aria-label={`Prices of ${each.id}`} onClick={() => change({ price: each.id })}>Prices</Anchor>}
                    {index === 0 && may("playground.key") && <Anchor component={Link} size="sm" to="/playground" search={{ model: alias } as never} aria-label={`Try ${alias}`}>Try</Anchor>}
                  </Group></Table.Td>
                </Table.Tr>
              )))}</Table.Tbody>
            </Table>
            {data.total > data.models.length && <Text size="sm" c="dimmed" mt="sm">The first {data.models.length} of {count(data.total)}. Search to narrow it down.</Text>}
          </Table.ScrollContainer>}</Loaded>
      </Section>
      <ProviderForm opened={search.add === "1" && may("providers.put")} close={() => change({ add: undefined })} />
      <Drawer opened={Boolean(search.provider) && !search.price} onClose={() => change({ provider: undefined })} title={<Text fw={600}>Provider {search.provider}</Text>} size={620}>
        {providers.data?.filter((each) => each.name === search.provider).map((each) => <ProviderPanel key={each.name} provider={each} prices={(id) => change({ price: id })} gone={() => change({ provider: undefined })} />)}
      </Drawer>
      <Drawer opened={Boolean(search.limits) && may("deployments.put")} onClose={() => change({ limits: undefined })} title={<Text fw={600}>Limits of {search.limits}</Text>} size={520}>
        {limited && <DeploymentPanel id={limited.id} provider={limited.provider} model={limited.model} close={() => change({ limits: undefined })} />}
      </Drawer>
      <Drawer opened={Boolean(search.price)} onClose={() => change({ price: undefined })} title={<Text fw={600}>Prices of {search.price}</Text>} size={560}>
        {search.price && <Prices id={search.price} />}
      </Drawer>
    </Page>
  );
}

function ProviderCard({ provider, open }: { provider: Provider; open?: () => void }) {
  const ill = Object.keys(provider.ill).length;
  return (
    <Card className="fb-card" p="md">
      <Group justify="space-between" mb={6} wrap="nowrap">
        {open && provider.kind !== "local" ? <Anchor component="button" type="button" fw={600} c="var(--mantine-color-text)" onClick={open} aria-label={`Provider ${provider.name}`}>{provider.name}</Anchor> : <Text fw={600}>{provider.name}</Text>}
        <State name={ill ? "failing" : provider.state} />
      </Group>
      <Text size="xs" c="dimmed" className="fb-clip" title={provider.base_url ?? ""}>{provider.kind}{provider.region ? `, ${provider.region}` : ""} · {count(provider.models)} {provider.models === 1 ? "model" : "models"}{provider.source === "file" ? " · from file" : ""}</Text>
      {ill > 0 && <Text size="xs" c="dimmed">{ill} of its models {ill === 1 ? "is" : "are"} gone round: {Object.values(provider.ill)[0]?.replace("_", " ")}</Text>}
      <Group gap="lg" mt="sm">
        <div><Text size="xs" c="dimmed">24 h</Text><Text size="sm" className="fb-num">{compact(provider.requests)} req.</Text></div>
        <div><Text size="xs" c="dimmed">Errors</Text><Text size="sm" className="fb-num">{percent(provider.requests ? provider.failed / provider.requests : 0)}</Text></div>
        <div><Text size="xs" c="dimmed">First token p50, p95</Text><Text size="sm" className="fb-num">{ms(provider.first_token.p50_ms)}, {ms(provider.first_token.p95_ms)}</Text></div>
      </Group>
    </Card>
  );
}

function PriceCells({ price }: { price: Deployment["price"] }) {
  if (!price) return <Table.Td colSpan={3} ta="right"><Badge color="yellow" variant="light" tt="none" styles={{ label: { color: "var(--mantine-color-text)" } }}>no price, so not run</Badge></Table.Td>;
  return <>{["input_tokens", "cache_read_tokens", "output_tokens"].map((meter) => <Table.Td key={meter} ta="right" className="fb-num">{price[meter] ? `$${price[meter]}` : "–"}</Table.Td>)}</>;
}

function Prices({ id }: { id: string }) {
  const [provider = "", ...rest] = id.split("/");
  const model = rest.join("/");
  const may = useMay();
  const history = useQuery({ queryKey: ["prices", id], queryFn: () => get<Price[]>("/prices", { provider, model }) });
  const [values, setValues] = useState<Record<string, string | number>>({});
  const save = useChange(
    () => post<Price[]>("/prices", { provider, model, sale: Object.fromEntries(Object.entries(values).filter(([, value]) => value !== "").map(([meter, value]) => [meter, String(value)])) }),
    () => setValues({}),
  );
  return (
    <Stack gap="lg">
      <Loaded query={history}>{(rows) => (
        <>
          {rows.length === 0 && <Text size="sm" c="dimmed">This model is priced by its family's list. A price set here takes its place from now on.</Text>}
          {rows.map((row) => (
            <Box key={row.id} pl="md" style={{ borderLeft: `3px solid ${row.in_force ? "var(--mantine-primary-color-filled)" : "var(--fb-line)"}` }}>
              <Group gap="xs"><Text size="sm" fw={600}>{Date.parse(row.effective_from) > 0 ? `Since ${dateTime(row.effective_from)}` : "From the start"}</Text>{row.in_force && <State name="active" />}<Text size="xs" c="dimmed">by {row.source}</Text></Group>
              {Object.entries(row.sale).map(([meter, amount]) => (
                <Group key={meter} justify="space-between" maw={360}><Text size="sm" c="dimmed">{words(meter)}</Text><Text size="sm" className="fb-num">${amount}{row.cost[meter] !== undefined && row.cost[meter] !== amount ? ` (costs $${row.cost[meter]})` : ""}</Text></Group>
              ))}
              {row.tiers.map((tier) => <Text key={tier.above_input_tokens} size="xs" c="dimmed">Above {count(tier.above_input_tokens)} input tokens: {Object.entries(tier.sale).map(([meter, amount]) => `${words(meter)} $${amount}`).join(", ")}</Text>)}
            </Box>
          ))}
        </>
      )}</Loaded>
      {may("prices.set") && (
        <form onSubmit={(event) => { event.preventDefault(); save.mutate(); }}>
          <Stack gap="sm">
            <Text fw={600} size="sm">Set a price from now on</Text>
            <Text size="xs" c="dimmed">US dollars per million. What was charged before stays as it was.</Text>
            {save.isError && <Failure error={save.error} />}
            <Group grow>
              {["input_tokens", "cache_read_tokens", "output_tokens"].map((meter) => (
                <NumberInput key={meter} label={words(meter)} prefix="$" min={0} decimalScale={6} hideControls value={values[meter] ?? ""} required={meter !== "cache_read_tokens"} withAsterisk={false}
                  onChange={(value) => setValues({ ...values, [meter]: value })} />
              ))}
            </Group>
            <Group justify="flex-end"><Button type="submit" loading={save.isPending}>Set price</Button></Group>
          </Stack>
        </form>
      )}
    </Stack>
  );
}
