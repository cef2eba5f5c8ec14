import { Box, Button, Group, Select, Table, Text, TextInput } from "@mantine/core";
import { useInfiniteQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { get, type Balances, type Page as Slice, type Posting } from "../../api";
import { dateTime, words } from "../../format";
import { Money, Section } from "../../parts/bits";
import { ReceiptText } from "../../parts/icons";
import { Empty, Failure, Waiting } from "../../parts/states";
import { accountName } from "./balances";

const KINDS = ["charge", "overrun", "cost", "topup", "grant", "expiry", "refund", "payout", "adjustment"];
export interface LedgerSearch { account?: string; kind?: string; from?: string; to?: string }

const startOf = (day: string | undefined): string | undefined => (day ? `${day}T00:00:00Z` : undefined);
const endOf = (day: string | undefined): string | undefined => (day ? new Date(Date.parse(`${day}T00:00:00Z`) + 86_400_000).toISOString() : undefined);
/** "charge of req_1" is posted as req_1:charge. */
const request = (id: string): string | null => (/^req_[^:]+:(charge|overrun|cost)$/.test(id) ? (id.split(":")[0] ?? null) : id.startsWith("refund:req_") ? id.slice(7) : null);

export function LedgerTab({ search, change, balances }: { search: LedgerSearch; change: (said: LedgerSearch) => void; balances: Balances | undefined }) {
  const { account, kind, from, to } = search;
  const list = useInfiniteQuery({
    queryKey: ["transfers", account, kind, from, to],
    queryFn: ({ pageParam }) => get<Slice<Posting>>("/ledger/transfers", { account, kind, from: startOf(from), to: endOf(to), cursor: pageParam, limit: 50 }),
    initialPageParam: "",
    getNextPageParam: (last) => last.next,
  });
  const rows = list.data?.pages.flatMap(({ items }) => items) ?? [];
  const labels = new Map((balances?.accounts ?? []).map((each) => [each.account, accountName(each.account, each.label)]));
  const name = (id: string) => labels.get(id) ?? id;
  const filtered = Boolean(account || kind || from || to);
  return (
    <Section title="Postings" about="Each amount left one account and entered another. Days are of UTC.">
      <Group gap="sm" mb="md" align="flex-end">
        <Select size="xs" w={230} label="Account" placeholder="Any account" clearable searchable clearButtonProps={{ "aria-label": "Any account" }} value={account ?? null}
          data={(balances?.accounts ?? []).map((each) => ({ value: each.account, label: accountName(each.account, each.label) }))} onChange={(next) => change({ account: next ?? undefined } as LedgerSearch)} />
        <Select size="xs" w={150} label="Kind" placeholder="Any kind" clearable clearButtonProps={{ "aria-label": "Any kind" }} value={kind ?? null}
          data={KINDS.map((value) => ({ value, label: words(value) }))} onChange={(next) => change({ kind: next ?? undefined } as LedgerSearch)} />
        <TextInput size="xs" type="date" label="From" value={from ?? ""} onChange={(event) => change({ from: event.currentTarget.value || undefined } as LedgerSearch)} />
        <TextInput size="xs" type="date" label="To" value={to ?? ""} onChange={(event) => change({ to: event.currentTarget.value || undefined } as LedgerSearch)} />
        {filtered && <Button size="xs" variant="subtle" color="gray" c="var(--mantine-color-text)" onClick={() => change({ account: undefined, kind: undefined, from: undefined, to: undefined } as unknown as LedgerSearch)}>Clear</Button>}
      </Group>
      {list.isPending && <Waiting query={list} />}
      {list.isError && <Failure error={list.error} again={() => void list.refetch()} />}
      {list.data && rows.length === 0 && (filtered
        ? <Empty icon={ReceiptText} title="Nothing matches">No posting has all of these properties. Take a filter away.</Empty>
        : <Empty icon={ReceiptText} title="Nothing posted yet">The first paid request makes two postings: what it was sold for, and what the provider will bill.</Empty>)}
      {rows.length > 0 && (
        <Table.ScrollContainer minWidth={760}>
          <Table verticalSpacing={7}>
            <Table.Thead><Table.Tr><Table.Th>Time</Table.Th><Table.Th>Kind</Table.Th><Table.Th>From (debit)</Table.Th><Table.Th>To (credit)</Table.Th><Table.Th>Cause</Table.Th><Table.Th ta="right">Amount</Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>{rows.map((row) => {
              const cause = request(row.id);
              return (
                <Table.Tr key={row.id}>
                  <Table.Td className="fb-num">{dateTime(row.at)}</Table.Td><Table.Td>{words(row.kind)}</Table.Td><Table.Td>{name(row.debit)}</Table.Td><Table.Td>{name(row.credit)}</Table.Td>
                  <Table.Td maw={220}>{cause ? <Text size="sm" className="fb-clip" title={cause}><Link to="/requests" search={{ id: cause } as never} style={{ color: "inherit" }}>{cause}</Link></Text> : <Text size="sm" className="fb-clip" title={row.note ?? row.id}>{row.note ?? row.id}</Text>}</Table.Td>
                  <Table.Td ta="right"><Money exact={row.amount_usd} /></Table.Td>
                </Table.Tr>
              );
            })}</Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
      {list.hasNextPage && <Box ta="center" mt="md"><Button size="xs" variant="default" loading={list.isFetchingNextPage} onClick={() => void list.fetchNextPage()}>Show older</Button></Box>}
    </Section>
  );
}
