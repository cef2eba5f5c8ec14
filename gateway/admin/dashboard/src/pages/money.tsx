import { Alert, Anchor, Box, Button, Grid, Group, Modal, NumberInput, Pill, Select, Stack, Switch, Table, Text, TextInput } from "@mantine/core";
import { useInfiniteQuery, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { CircleCheck, CircleX, ReceiptText, Scale } from "../parts/icons";
import { useState } from "react";
import { get, post, type Balances, type LedgerAudit, type Page as Slice, type Posting } from "../api";
import { dateTime, words } from "../format";
import { Money, Section } from "../parts/bits";
import { notify } from "../parts/notify";
import { Page } from "../parts/page";
import { Empty, Failure, Loaded } from "../parts/states";
import { useMay } from "../session";

const route = getRouteApi("/shell/money");

export default function MoneyPage() {
  const search = route.useSearch() as { account?: string; kind?: string };
  const navigate = route.useNavigate();
  const may = useMay();
  const [paying, setPaying] = useState(false);
  const balances = useQuery({ queryKey: ["balances"], queryFn: () => get<Balances>("/ledger/balances"), refetchInterval: 15_000 });
  const change = (said: Record<string, string | undefined>) => void navigate({ search: { ...search, ...said } as never });
  return (
    <Page title="Money" about="Double entry: every amount left one account and entered another."
      actions={may("ledger.top_up") && <Button onClick={() => setPaying(true)}>Top up</Button>}>
      <Loaded query={balances}>{(data) => (
        <Grid gap="md">
          <Grid.Col span={{ base: 12, md: 5 }}>
            <Stack gap="md">
              {data.organisations.map((each) => (
                <Section key={each.id} title={each.name}>
                  <Text size="xs" c="dimmed">{each.left_usd.startsWith("-") ? "Owed so far" : "Credit left"}</Text>
                  <Text fz={30} fw={650} lts="-0.02em"><Money exact={each.left_usd.replace("-", "")} /></Text>
                  <Text size="sm" c="dimmed">{each.credit_limit_usd === null ? "Billed afterwards, without a limit." : Number(each.credit_limit_usd) === 0 ? "Prepaid: spends what was paid in." : `May owe up to $${each.credit_limit_usd}.`}</Text>
                </Section>
              ))}
              <Proof />
            </Stack>
          </Grid.Col>
          <Grid.Col span={{ base: 12, md: 7 }}>
            <Section title="Accounts" about="Counted on the side where each grows">
              <Table verticalSpacing={7}>
                <Table.Thead><Table.Tr><Table.Th>Account</Table.Th><Table.Th>Kind</Table.Th><Table.Th ta="right">Balance</Table.Th></Table.Tr></Table.Thead>
                <Table.Tbody>{data.accounts.map((each) => (
                  <Table.Tr key={each.account}>
                    <Table.Td><Anchor component="button" type="button" size="sm" c="var(--mantine-color-text)" onClick={() => change({ account: each.account })}>{each.label === each.account ? words(each.account.replace(":", ": ")) : `Customer: ${each.label}`}</Anchor></Table.Td>
                    <Table.Td><Text size="sm" c="dimmed">{each.kind}</Text></Table.Td>
                    <Table.Td ta="right"><Money exact={each.balance_usd} /></Table.Td>
                  </Table.Tr>
                ))}</Table.Tbody>
              </Table>
            </Section>
          </Grid.Col>
        </Grid>
      )}</Loaded>
      <Postings account={search.account} kind={search.kind} change={change} />
      <TopUp opened={paying} close={() => setPaying(false)} balances={balances.data} />
    </Page>
  );
}

function Proof() {
  const audit = useQuery({ queryKey: ["ledger-audit"], queryFn: () => get<LedgerAudit>("/ledger/audit"), enabled: false });
  return (
    <Section title="Trial balance" actions={<Button size="xs" variant="default" leftSection={<Scale size={15} aria-hidden />} loading={audit.isFetching} onClick={() => void audit.refetch()}>Add it all up</Button>}>
      {!audit.data && !audit.isError && <Text size="sm" c="dimmed">Adds up every posting anew and compares with the balances kept.</Text>}
      {audit.isError && <Failure error={audit.error} />}
      {audit.data && (audit.data.sound
        ? <Alert color="teal" icon={<CircleCheck size={18} aria-hidden />} title="Sound">Debits equal credits, and every balance is the sum of its postings.</Alert>
        : <Alert color="red" icon={<CircleX size={18} aria-hidden />} title="Not sound">Debits minus credits: ${audit.data.debits_minus_credits_usd}. Differing: {audit.data.differing.join(", ") || "none"}.</Alert>)}
    </Section>
  );
}

function Postings({ account, kind, change }: { account: string | undefined; kind: string | undefined; change: (said: Record<string, string | undefined>) => void }) {
  const list = useInfiniteQuery({
    queryKey: ["transfers", account, kind],
    queryFn: ({ pageParam }) => get<Slice<Posting>>("/ledger/transfers", { account, kind, cursor: pageParam, limit: 25 }),
    initialPageParam: "",
    getNextPageParam: (last) => last.next,
  });
  const rows = list.data?.pages.flatMap(({ items }) => items) ?? [];
  return (
    <Section title="Postings" actions={
      <Group gap="sm">
        {account && <Pill withRemoveButton onRemove={() => change({ account: undefined })} removeButtonProps={{ "aria-label": "All accounts", tabIndex: 0, "aria-hidden": false }}>{account}</Pill>}
        <Select size="xs" w={150} aria-label="Kind" placeholder="Any kind" clearable clearButtonProps={{ "aria-label": "Any kind" }} value={kind ?? null}
          data={["charge", "overrun", "cost", "topup", "grant", "refund", "payout"].map((value) => ({ value, label: words(value) }))} onChange={(next) => change({ kind: next ?? undefined })} />
      </Group>}>
      {list.isError && <Failure error={list.error} again={() => void list.refetch()} />}
      {list.data && rows.length === 0 && <Empty icon={ReceiptText} title="Nothing posted yet">The first paid request makes two postings: what it was sold for, and what the provider will bill.</Empty>}
      {rows.length > 0 && (
        <Table.ScrollContainer minWidth={720}>
          <Table verticalSpacing={7}>
            <Table.Thead><Table.Tr><Table.Th>Time</Table.Th><Table.Th>Kind</Table.Th><Table.Th>Debit</Table.Th><Table.Th>Credit</Table.Th><Table.Th ta="right">Amount</Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>{rows.map((row) => (
              <Table.Tr key={row.id}><Table.Td className="fb-num">{dateTime(row.at)}</Table.Td><Table.Td>{words(row.kind)}</Table.Td><Table.Td>{row.debit}</Table.Td><Table.Td>{row.credit}</Table.Td><Table.Td ta="right"><Money exact={row.amount_usd} /></Table.Td></Table.Tr>
            ))}</Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
      {list.hasNextPage && <Box ta="center" mt="md"><Button size="xs" variant="default" loading={list.isFetchingNextPage} onClick={() => void list.fetchNextPage()}>Show older</Button></Box>}
    </Section>
  );
}

/** randomUUID is there on HTTPS and loopback alone. */
const unique = (): string => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function TopUp({ opened, close, balances }: { opened: boolean; close: () => void; balances: Balances | undefined }) {
  const queries = useQueryClient();
  // One key for one filled-in form: pressing twice, or again after a lost answer, moves the money once.
  const [idempotency, setIdempotency] = useState(unique);
  const send = useMutation({
    mutationFn: (said: Record<string, unknown>) => post<{ new: boolean }>("/ledger/top-ups", said, { "idempotency-key": idempotency }),
    onSuccess: () => { setIdempotency(unique()); notify("Posted."); void queries.invalidateQueries(); close(); },
  });
  return (
    <Modal opened={opened} onClose={close} title="Top up">
      <form onSubmit={(event) => {
        event.preventDefault();
        const said = new FormData(event.currentTarget);
        send.mutate({ organisation_id: said.get("organisation"), amount_usd: String(said.get("amount")).replaceAll(",", "").replace("$", ""), note: said.get("note"), granted: said.get("granted") === "on" });
      }}>
        <Stack>
          {send.isError && <Failure error={send.error} />}
          <Select name="organisation" label="Organisation" allowDeselect={false} defaultValue={balances?.organisations[0]?.id ?? null} data={(balances?.organisations ?? []).map(({ id, name }) => ({ value: id, label: name }))} />
          <NumberInput name="amount" label="Amount" prefix="$" min={0} decimalScale={12} thousandSeparator hideControls required withAsterisk={false} data-autofocus />
          <TextInput name="note" label="Note" description="For the books: payment reference, or why" required withAsterisk={false} />
          <Switch name="granted" label="A gift: nobody paid for it" />
          <Group justify="flex-end"><Button variant="default" onClick={close}>Cancel</Button><Button type="submit" loading={send.isPending}>Post</Button></Group>
        </Stack>
      </form>
    </Modal>
  );
}
