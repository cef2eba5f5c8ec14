import { Button, Tabs } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { get, type Balances } from "../../api";
import { Undo, Wallet } from "../../parts/icons";
import { Page } from "../../parts/page";
import { Loaded } from "../../parts/states";
import { useMay, useTab } from "../../session";
import { BalancesTab } from "./balances";
import { InvoicesTab, type InvoiceSearch } from "./invoices";
import { LedgerTab, type LedgerSearch } from "./ledger";
import { MoveForm, type Move } from "./move";
import { PriceListTab } from "./price-list";
import { ReconcileTab } from "./reconcile";

const route = getRouteApi("/shell/money");
export interface MoneySearch extends LedgerSearch, InvoiceSearch { tab?: string; do?: string; request?: string }

export default function MoneyPage() {
  const search = route.useSearch() as MoneySearch;
  const navigate = route.useNavigate();
  const may = useMay();
  const balances = useQuery({ queryKey: ["balances"], queryFn: () => get<Balances>("/ledger/balances"), refetchInterval: 15_000 });
  const change = (said: Partial<Record<keyof MoneySearch, string | undefined>>) => void navigate({ search: ((now: object) => ({ ...now, ...said })) as never });
  // What an account's postings are is asked for with the account alone; so an old address still leads to them.
  const tab = useTab(search.tab, search.account || search.kind ? "ledger" : "balances", { prices: "prices.compare", reconcile: "reconcile.read" });
  const doing: Move | null = search.do === "topup" && may("ledger.top_up") ? "topup" : search.do === "refund" && may("ledger.refund") ? "refund" : null;
  return (
    <Page title="Money" about="Double entry: every amount left one account and entered another."
      actions={<>
        {may("ledger.refund") && <Button variant="default" leftSection={<Undo size={16} aria-hidden />} onClick={() => change({ do: "refund" })}>Refund</Button>}
        {may("ledger.top_up") && <Button leftSection={<Wallet size={16} aria-hidden />} onClick={() => change({ do: "topup" })}>Top up</Button>}
      </>}>
      <Tabs value={tab} onChange={(next) => void navigate({ search: { tab: next ?? undefined } as never })} keepMounted={false}>
        <Tabs.List mb="md" aria-label="Money">
          <Tabs.Tab value="balances">Balances</Tabs.Tab>
          <Tabs.Tab value="ledger">Ledger</Tabs.Tab>
          <Tabs.Tab value="invoices">Invoices</Tabs.Tab>
          {may("prices.compare") && <Tabs.Tab value="prices">Price list</Tabs.Tab>}
          {may("reconcile.read") && <Tabs.Tab value="reconcile">Reconcile</Tabs.Tab>}
        </Tabs.List>
        <Tabs.Panel value="balances"><Loaded query={balances}>{(data) => <BalancesTab data={data} open={(account) => change({ tab: "ledger", account })} />}</Loaded></Tabs.Panel>
        <Tabs.Panel value="ledger"><LedgerTab search={search} change={change} balances={balances.data} /></Tabs.Panel>
        <Tabs.Panel value="invoices"><InvoicesTab search={search} change={change} balances={balances.data} /></Tabs.Panel>
        <Tabs.Panel value="prices"><PriceListTab may={may("prices.import")} /></Tabs.Panel>
        <Tabs.Panel value="reconcile"><ReconcileTab /></Tabs.Panel>
      </Tabs>
      <MoveForm key={`${doing}${search.request ?? ""}`} what={doing} close={() => change({ do: undefined, request: undefined })} balances={balances.data} request={search.request} />
    </Page>
  );
}
