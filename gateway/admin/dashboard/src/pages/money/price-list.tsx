import { Alert, Badge, Button, FileButton, Group, Select, SimpleGrid, Stack, Switch, Table, Text } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { get, post, type PriceComparison, type PricesImported, type Provider } from "../../api";
import { useChange } from "../../change";
import { count, some, words } from "../../format";
import { Section } from "../../parts/bits";
import { CircleCheck, Scale, Upload } from "../../parts/icons";
import { Empty, Failure } from "../../parts/states";

/** A list of prices is read against the book before anything of it is taken over. */
export function PriceListTab({ may }: { may: boolean }) {
  const providers = useQuery({ queryKey: ["providers"], queryFn: () => get<Provider[]>("/providers") });
  const [file, setFile] = useState<{ name: string; text: string } | null>(null);
  const [provider, setProvider] = useState<string | null>(null);
  const [replace, setReplace] = useState(false);
  const compare = useMutation({ mutationFn: (body: { list: string; provider: string | null }) => post<PriceComparison>("/prices/compare", body) });
  const take = useChange(
    () => post<PricesImported>("/prices/import", { list: file?.text, name: file?.name.slice(0, 60), provider, replace }),
    () => { if (file) compare.mutate({ list: file.text, provider }); },
  );
  const read = async (chosen: File | null) => {
    if (!chosen) return;
    const text = await chosen.text();
    setFile({ name: chosen.name, text });
    take.reset();
    compare.mutate({ list: text, provider });
  };
  const found = compare.data;
  return (
    <Stack gap="md">
      <Section title="Compare a price list" about="A file in the format of LiteLLM's model_prices_and_context_window.json. Nothing changes until you say so."
        actions={<Link to="/models" style={{ color: "inherit", fontSize: 14 }}>Prices of each model</Link>}>
        <Group align="flex-end" gap="sm">
          <Select size="sm" w={200} label="Only of provider" placeholder="any" clearable clearButtonProps={{ "aria-label": "Any provider" }} value={provider} data={(providers.data ?? []).map(({ name }) => name)}
            onChange={(next) => { setProvider(next); if (file) compare.mutate({ list: file.text, provider: next }); }} />
          <FileButton accept="application/json,.json" onChange={(chosen) => void read(chosen)} inputProps={{ "aria-label": "Price list file" }}>
            {(props) => <Button {...props} variant="default" loading={compare.isPending} leftSection={<Upload size={15} aria-hidden />}>Choose a file</Button>}
          </FileButton>
          {file && <Text size="sm" c="dimmed">{file.name}</Text>}
        </Group>
      </Section>
      {compare.isError && <Failure error={compare.error} />}
      {!found && !compare.isError && <Empty icon={Scale} title="No list yet">Its prices are held against the book, cost against cost: what would be new, and what says otherwise.</Empty>}
      {take.data && <Alert color="teal" icon={<CircleCheck size={18} aria-hidden />} title={`${some(take.data.imported, "price")} taken over`}>They hold from now on. {take.data.kept > 0 && `${count(take.data.kept)} disagree and stay as they are. `}{take.data.posted > 0 && `${count(take.data.posted)} requests that had waited for a price are charged.`}</Alert>}
      {found && (
        <>
          <SimpleGrid cols={{ base: 1, xs: 3 }}>
            {([["Prices in the list", found.listed], ["New here", found.missing], ["Otherwise than the book", found.differing]] as const).map(([name, value]) => (
              <div key={name} className="fb-tile"><Text size="sm" c="dimmed">{name}</Text><Text fz={24} fw={640} className="fb-num">{count(value)}</Text></div>
            ))}
          </SimpleGrid>
          {may && (found.missing > 0 || found.differing > 0) && (
            <Section title="Take it over">
              {take.isError && <Failure error={take.error} />}
              <Group justify="space-between">
                <Switch label="Also where the book says otherwise" description="Never over prices that were set here by hand" checked={replace} onChange={(event) => setReplace(event.currentTarget.checked)} />
                <Button loading={take.isPending} disabled={found.missing === 0 && !replace} onClick={() => take.mutate()}>Take over {some(found.missing + (replace ? found.differing : 0), "price")}</Button>
              </Group>
            </Section>
          )}
          <Section title="Differences" about="US dollars per million units">
            {found.differences.length === 0
              ? <Text size="sm" c="dimmed">None: the book says the same.</Text>
              : <Table.ScrollContainer minWidth={640}>
                <Table verticalSpacing={6}>
                  <Table.Thead><Table.Tr><Table.Th>Model</Table.Th><Table.Th>Meter</Table.Th><Table.Th ta="right">Book</Table.Th><Table.Th ta="right">List</Table.Th><Table.Th ta="right">Change</Table.Th></Table.Tr></Table.Thead>
                  <Table.Tbody>{found.differences.slice(0, 500).map((each) => (
                    <Table.Tr key={[each.provider, each.model, each.variant, each.meter, each.above_input_tokens].join(" ")}>
                      <Table.Td className="fb-wrap"><Text size="sm" span>{each.provider}/{each.model}</Text>{each.variant && <Badge ml="xs" size="xs" variant="default" tt="none">{each.variant}</Badge>}</Table.Td>
                      <Table.Td>{words(each.meter)}{each.above_input_tokens > 0 && <Text size="xs" c="dimmed">above {count(each.above_input_tokens)} input tokens</Text>}</Table.Td>
                      <Table.Td ta="right" className="fb-num">{each.ours === null ? <Text span size="sm" c="dimmed">none</Text> : `$${each.ours}`}</Table.Td>
                      <Table.Td ta="right" className="fb-num">${each.theirs}</Table.Td>
                      <Table.Td ta="right" className="fb-num">{change(each.ours, each.theirs)}</Table.Td>
                    </Table.Tr>
                  ))}</Table.Tbody>
                </Table>
              </Table.ScrollContainer>}
          </Section>
        </>
      )}
    </Stack>
  );
}

function change(ours: string | null, theirs: string): string {
  if (ours === null) return "new";
  const [from, to] = [Number(ours), Number(theirs)];
  if (from === 0) return to === 0 ? "±0%" : "from nothing";
  const share = (to - from) / from;
  return `${share > 0 ? "+" : "−"}${Math.abs(share * 100).toFixed(Math.abs(share) < 0.1 ? 1 : 0)}%`;
}
