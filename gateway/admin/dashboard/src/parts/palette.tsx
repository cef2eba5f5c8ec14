import "@mantine/spotlight/styles.css";
import { useMantineColorScheme } from "@mantine/core";
import { Spotlight, spotlight } from "@mantine/spotlight";
import { useNavigate } from "@tanstack/react-router";
import { useState } from "react";
import { Activity, Bell, BookOpen, Bot, ChartColumn, FileText, KeyRound, Moon, Radio, Scale, Search, Undo, Upload, Wallet, type Icon } from "./icons";
import { PLACES } from "../shell";

export const openPalette = (): void => spotlight.open();

interface Deed { label: string; about: string; icon: Icon; needs?: string; to: string; search: Record<string, string> }
/** What can be begun from anywhere. An address each: the forms open by it. */
const DEEDS: Deed[] = [
  { label: "Create key", about: "A virtual key with limits and a budget", icon: KeyRound, needs: "keys.create", to: "/keys", search: { new: "1" } },
  { label: "Budgets and forecasts", about: "Burn-down, raise for a time", icon: Wallet, to: "/keys", search: { tab: "budgets" } },
  { label: "Watch requests live", about: "Each as it ends", icon: Radio, to: "/requests", search: { live: "1" } },
  { label: "Failed requests", about: "What no provider answered, last 7 days", icon: Activity, to: "/requests", search: { outcome: "upstream_failed" } },
  { label: "Spend by key", about: "Last 7 days", icon: ChartColumn, to: "/usage", search: { by: "key" } },
  { label: "Spend by end user", about: "Last 7 days", icon: ChartColumn, to: "/usage", search: { by: "end_user" } },
  { label: "Top up", about: "Book what an organisation paid in", icon: Wallet, needs: "ledger.top_up", to: "/money", search: { do: "topup" } },
  { label: "Refund", about: "Take a sale back", icon: Undo, needs: "ledger.refund", to: "/money", search: { do: "refund" } },
  { label: "Invoices", about: "By month, as PDF and CSV", icon: FileText, needs: "invoices.list", to: "/money", search: { tab: "invoices" } },
  { label: "Compare a price list", about: "Before any of it is taken over", icon: Upload, needs: "prices.compare", to: "/money", search: { tab: "prices" } },
  { label: "Reconcile a bill", about: "What a provider counted otherwise", icon: Scale, needs: "reconcile.read", to: "/money", search: { tab: "reconcile" } },
  { label: "New alert", about: "Be told of a budget, a balance, an unusual day", icon: Bell, needs: "alerts.create", to: "/alerts", search: { new: "1" } },
  { label: "API tokens", about: "For scripts and Terraform", icon: Bot, needs: "tokens.list", to: "/settings", search: { tab: "tokens" } },
  { label: "API reference", about: "Everything that this dashboard does, for programs", icon: BookOpen, to: "/reference", search: {} },
];

/** Everything by keyboard: places, deeds, a request by its id. */
export default function Palette({ may }: { may: string[] }) {
  const navigate = useNavigate();
  const { toggleColorScheme } = useMantineColorScheme();
  const [query, setQuery] = useState("");
  const permitted = ({ needs }: { needs?: string }) => !needs || may.includes(needs);
  const entry = (id: string, label: string, description: string, Icon: Icon, onClick: () => void) => ({ id, label, description, leftSection: <Icon size={18} aria-hidden />, onClick });
  const pages = PLACES.flatMap(({ places }) => places).filter(permitted).map(({ to, label, about, icon }) => entry(to, label, about, icon, () => void navigate({ to })));
  const deeds = DEEDS.filter(permitted).map(({ label, about, icon, to, search }) => entry(label, label, about, icon, () => void navigate({ to, search: search as never })));
  const id = query.trim();
  const found = id.startsWith("req_") ? [entry("request", `Open ${id}`, "The request with this id, as it stands here", Activity, () => void navigate({ to: "/requests", search: { id } as never }))] : [];
  return (
    <Spotlight shortcut={null} highlightQuery scrollable maxHeight={440} nothingFound="Nothing by that name" query={query} onQueryChange={setQuery}
      actions={[...found.map((each) => ({ ...each, keywords: id })), { group: "Pages", actions: pages }, { group: "Do", actions: [...deeds, entry("theme", "Light or dark", "Change the theme", Moon, toggleColorScheme)] }]}
      searchProps={{ leftSection: <Search size={18} aria-hidden />, placeholder: "Go to a page, start something, or paste a request id", "aria-label": "Search pages and commands" }} />
  );
}
