import { Alert, Anchor, Button, Grid, Stack, Table, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { get, type Balances, type LedgerAudit } from "../../api";
import { words } from "../../format";
import { Money, Section } from "../../parts/bits";
import { CircleCheck, CircleX, Scale } from "../../parts/icons";
import { Failure } from "../../parts/states";

export const accountName = (account: string, label: string): string => (label === account ? words(account.replace(":", ": ")) : `Customer: ${label}`);

export function BalancesTab({ data, open }: { data: Balances; open: (account: string) => void }) {
  return (
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
                <Table.Td><Anchor component="button" type="button" size="sm" ta="left" c="var(--mantine-color-text)" onClick={() => open(each.account)}>{accountName(each.account, each.label)}</Anchor></Table.Td>
                <Table.Td><Text size="sm" c="dimmed">{each.kind}</Text></Table.Td>
                <Table.Td ta="right"><Money exact={each.balance_usd} /></Table.Td>
              </Table.Tr>
            ))}</Table.Tbody>
          </Table>
        </Section>
      </Grid.Col>
    </Grid>
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
