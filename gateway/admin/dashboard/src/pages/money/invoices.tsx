import { Alert, Anchor, Badge, Button, Drawer, Group, Select, Stack, Table, Text, TextInput, Title } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { get, path, type Balances, type Invoice, type InvoiceLine } from "../../api";
import { compact, count, dayOf, words } from "../../format";
import { Money, Section } from "../../parts/bits";
import { Download, FileText, Info } from "../../parts/icons";
import { Empty, Loaded } from "../../parts/states";

export interface InvoiceSearch { invoice?: string; org?: string }
const place = (invoice: string): string => { const [month = "", ...org] = invoice.split("/"); return `/invoices/${encodeURIComponent(org.join("/"))}/${month}`; };

export function InvoicesTab({ search, change, balances }: { search: InvoiceSearch; change: (said: InvoiceSearch) => void; balances: Balances | undefined }) {
  const list = useQuery({ queryKey: ["invoices", search.org], queryFn: () => get<InvoiceLine[]>("/invoices", { organisation_id: search.org, months: 24 }) });
  const organisations = balances?.organisations ?? [];
  return (
    <Section title="Invoices" about="Made of the ledger whenever they are opened: nothing can be forgotten, and nothing is sent.">
      <Group gap="sm" mb="md" align="flex-end">
        {organisations.length > 1 && <Select size="xs" w={220} label="Organisation" placeholder="All" clearable clearButtonProps={{ "aria-label": "All organisations" }} value={search.org ?? null}
          data={organisations.map(({ id, name }) => ({ value: id, label: name }))} onChange={(next) => change({ org: next ?? undefined } as InvoiceSearch)} />}
        <form onSubmit={(event) => {
          event.preventDefault();
          const said = new FormData(event.currentTarget);
          change({ invoice: `${String(said.get("month"))}/${search.org ?? organisations[0]?.id ?? ""}` });
        }}>
          <Group gap="xs" align="flex-end"><TextInput name="month" size="xs" w={130} label="Any other month" placeholder="2026-11" pattern="\d{4}-\d{2}" required withAsterisk={false} /><Button type="submit" size="xs" variant="default">Make invoice</Button></Group>
        </form>
      </Group>
      <Loaded query={list}>{(lines) => lines.length === 0
        ? <Empty icon={FileText} title="No invoices">An organisation has one for each month in which it used something.</Empty>
        : <Table.ScrollContainer minWidth={620}>
          <Table>
            <Table.Thead><Table.Tr><Table.Th>Month</Table.Th><Table.Th>Organisation</Table.Th><Table.Th ta="right">Requests</Table.Th><Table.Th ta="right">Usage</Table.Th><Table.Th ta="right">Download</Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>{lines.map((line) => (
              <Table.Tr key={line.number}>
                <Table.Td><Anchor component="button" type="button" size="sm" c="var(--mantine-color-text)" onClick={() => change({ invoice: line.number })} aria-label={`Invoice ${line.number}`}>{line.month}</Anchor>{line.open && <Badge ml="xs" size="xs" variant="default" tt="none">still open</Badge>}</Table.Td>
                <Table.Td>{line.organisation}</Table.Td>
                <Table.Td ta="right" className="fb-num">{count(line.requests)}</Table.Td>
                <Table.Td ta="right"><Money exact={line.usage_usd} /></Table.Td>
                <Table.Td><Files number={line.number} /></Table.Td>
              </Table.Tr>
            ))}</Table.Tbody>
          </Table>
        </Table.ScrollContainer>}</Loaded>
      <Drawer opened={Boolean(search.invoice)} onClose={() => change({ invoice: undefined } as unknown as InvoiceSearch)} size={680} title={<Text fw={600}>Invoice</Text>}>
        {search.invoice && <Whole number={search.invoice} />}
      </Drawer>
    </Section>
  );
}

function Files({ number }: { number: string }) {
  return (
    <Group gap="xs" justify="flex-end" wrap="nowrap">
      {["pdf", "csv"].map((form) => (
        <Button key={form} component="a" href={path(`${place(number)}/${form}`)} download size="compact-xs" variant="default" leftSection={<Download size={13} aria-hidden />} aria-label={`${form.toUpperCase()} of ${number}`}>{form.toUpperCase()}</Button>
      ))}
    </Group>
  );
}

function Whole({ number }: { number: string }) {
  const query = useQuery({ queryKey: ["invoice", number], queryFn: () => get<Invoice>(place(number)) });
  return <Loaded query={query}>{(bill) => (
    <Stack gap="md">
      <Group justify="space-between" align="flex-start">
        <div><Title order={3}>{bill.number}</Title><Text size="sm" c="dimmed">{bill.organisation}, {bill.month}, UTC</Text></div>
        <Files number={number} />
      </Group>
      {bill.open && <Alert color="gray" icon={<Info size={16} aria-hidden />} title="This month is not over">What is used until its end is added.</Alert>}
      {bill.differing_usd !== "0.00" && <Alert color="red" icon={<Info size={16} aria-hidden />} title={`Ledger and usage differ by $${bill.differing_usd}`}>Somebody has changed rows in the database. The trial balance says more.</Alert>}
      {bill.unpriced > 0 && <Alert color="yellow" icon={<Info size={16} aria-hidden />} title={`${count(bill.unpriced)} requests wait for a price`}>They are not in it yet.</Alert>}
      <Table.ScrollContainer minWidth={480}>
        <Table verticalSpacing={6} highlightOnHover={false}>
          <Table.Thead><Table.Tr><Table.Th>What</Table.Th><Table.Th ta="right">Requests</Table.Th><Table.Th ta="right">Input</Table.Th><Table.Th ta="right">Output</Table.Th><Table.Th ta="right">Amount</Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>
            <Table.Tr><Table.Td colSpan={4}>Credit at the beginning</Table.Td><Table.Td ta="right"><Money exact={bill.opening_usd} full /></Table.Td></Table.Tr>
            {bill.items.map((each) => (
              <Table.Tr key={each.provider + each.model}><Table.Td className="fb-wrap">{each.provider}/{each.model}</Table.Td><Table.Td ta="right" className="fb-num">{count(each.requests)}</Table.Td><Table.Td ta="right" className="fb-num">{compact(each.input_tokens)}</Table.Td><Table.Td ta="right" className="fb-num">{compact(each.output_tokens)}</Table.Td><Table.Td ta="right"><Money exact={each.charge_usd} full /></Table.Td></Table.Tr>
            ))}
            <Table.Tr><Table.Td colSpan={4} fw={600}>Usage</Table.Td><Table.Td ta="right" fw={600}><Money exact={bill.usage_usd} full /></Table.Td></Table.Tr>
            {bill.movements.map((each) => <Table.Tr key={each.at + each.amount_usd}><Table.Td colSpan={4}>{dayOf(each.at)}: {words(each.kind)}, {each.note}</Table.Td><Table.Td ta="right"><Money exact={each.amount_usd} full /></Table.Td></Table.Tr>)}
          </Table.Tbody>
          <Table.Tfoot>
            <Table.Tr><Table.Th colSpan={4}>{bill.closing_usd.startsWith("-") ? "Amount due" : "Credit left"}</Table.Th><Table.Th ta="right"><Money exact={bill.closing_usd.replace("-", "")} full /></Table.Th></Table.Tr>
            {bill.rate_day && <Table.Tr><Table.Th colSpan={4}>In {bill.currency}, 1 USD = {bill.usd_rate} of {bill.rate_day}</Table.Th><Table.Th ta="right" className="fb-num">{bill.closing.replace("-", "")}</Table.Th></Table.Tr>}
          </Table.Tfoot>
        </Table>
      </Table.ScrollContainer>
      {bill.estimated > 0 && <Text size="xs" c="dimmed">{count(bill.estimated)} requests were estimated: their answers were cut off before they were counted.</Text>}
    </Stack>
  )}</Loaded>;
}
