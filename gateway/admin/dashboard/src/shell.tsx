import { ActionIcon, AppShell, Avatar, Box, Burger, Group, Kbd, NavLink, ScrollArea, Text, UnstyledButton, useComputedColorScheme, useMantineColorScheme } from "@mantine/core";
import { useDisclosure, useHotkeys } from "@mantine/hooks";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, Outlet, useLocation, useNavigate } from "@tanstack/react-router";
import { Activity, Bell, BookOpen, Boxes, ChartColumn, Cpu, Gauge, KeyRound, MessageSquare, Moon, Rocket, Route, ScrollText, Search, Settings, Shield, Sun, Users, Wallet, type Icon } from "./parts/icons";
import { lazy, Suspense, useEffect } from "react";
import { remove, type SignedOut } from "./api";
import { Logo } from "./parts/logo";
import { Page } from "./parts/page";
import { Empty, Failure, Loading } from "./parts/states";
import { sessionQuery } from "./session";

const PersonMenu = lazy(() => import("./parts/person"));
const Palette = lazy(() => import("./parts/palette"));

interface Place { to: string; label: string; icon: Icon; needs?: string; about: string }
export const PLACES: { title: string; places: Place[] }[] = [
  {
    title: "Traffic",
    places: [
      { to: "/overview", label: "Overview", icon: Gauge, about: "Spend, requests, errors and speed at a glance" },
      { to: "/usage", label: "Usage", icon: ChartColumn, about: "Explore by key, project, model, provider" },
      { to: "/requests", label: "Requests", icon: Activity, about: "Each request, down to the price of each line" },
    ],
  },
  {
    title: "Build",
    places: [
      { to: "/start", label: "Get started", icon: Rocket, about: "Snippets for your SDK and a test request" },
      { to: "/playground", label: "Playground", icon: MessageSquare, needs: "playground.key", about: "Talk to any model and see what it costs" },
      { to: "/keys", label: "Keys & quotas", icon: KeyRound, about: "Virtual keys, limits, budgets and where they lead" },
      { to: "/models", label: "Models & providers", icon: Boxes, about: "What can be asked for, and what it costs" },
      { to: "/routing", label: "Routing", icon: Route, needs: "aliases.list", about: "Aliases, fallbacks, and where a request would go" },
    ],
  },
  {
    title: "Run",
    places: [
      { to: "/money", label: "Money", icon: Wallet, needs: "ledger.balances", about: "Balances, ledger, invoices, price lists, bills" },
      { to: "/alerts", label: "Alerts", icon: Bell, needs: "alerts.list", about: "Who is told of budgets, balances, unusual days" },
      { to: "/guardrails", label: "Guardrails", icon: Shield, needs: "guardrails.list", about: "What may not go in or come out" },
      { to: "/engine", label: "Local engine", icon: Cpu, needs: "engines.list", about: "Batch, cache and speed of our own engine" },
      { to: "/audit", label: "Audit", icon: ScrollText, needs: "audit.list", about: "Who changed what, provably" },
      { to: "/organisation", label: "Organisation", icon: Users, about: "Members, teams, single sign-on, SCIM, your passkeys" },
      { to: "/settings", label: "Settings", icon: Settings, about: "People, tokens, your password" },
    ],
  },
];

export function Shell() {
  const session = useQuery(sessionQuery);
  const navigate = useNavigate();
  const location = useLocation();
  const signedOut = session.data === null;
  useEffect(() => {
    // Once: on its way there the address changes, and this would run again for each change.
    if (signedOut && !location.pathname.endsWith("/sign-in")) void navigate({ to: "/sign-in", search: { next: location.href } });
  }, [signedOut, navigate, location]);
  if (session.isError) return <Box p="xl"><Failure error={session.error} again={() => void session.refetch()} /></Box>;
  if (!session.data) return <Loading label="Signing in" />;
  return <Frame name={session.data.name} role={session.data.role} may={session.data.may} />;
}

function Frame({ name, role, may }: { name: string; role: string; may: string[] }) {
  const [open, { toggle, close }] = useDisclosure();
  // Loaded when first asked for; the keys work from the first moment.
  const [asked, { open: ask }] = useDisclosure();
  const search = () => {
    ask();
    void import("./parts/palette").then(({ openPalette }) => openPalette());
  };
  useHotkeys([["mod+K", search], ["/", search]]);
  const location = useLocation();
  const here = PLACES.flatMap(({ places }) => places).find(({ to }) => location.pathname.startsWith(to));
  useEffect(close, [location.pathname, close]);
  return (
    <AppShell header={{ height: 56 }} navbar={{ width: 232, breakpoint: "sm", collapsed: { mobile: !open } }} padding="lg">
      <a className="fb-skip" href="#content">Skip to content</a>
      <AppShell.Header px="md">
        <Group h="100%" justify="space-between" wrap="nowrap">
          <Group gap="sm" wrap="nowrap">
            <Burger opened={open} onClick={toggle} hiddenFrom="sm" size="sm" aria-label="Navigation" />
            <UnstyledButton component={Link} to="/overview" aria-label="Farebox: overview"><Logo /></UnstyledButton>
          </Group>
          <Group gap="xs" wrap="nowrap">
            <PaletteButton open={search} />
            <Scheme />
            <Person name={name} role={role} />
          </Group>
        </Group>
      </AppShell.Header>
      <AppShell.Navbar p="sm" aria-label="Main">
        <AppShell.Section grow component={ScrollArea}>
          {PLACES.map(({ title, places }) => (
            <Box key={title} mb="md">
              <Text size="xs" fw={600} c="dimmed" px="sm" pb={4}>{title}</Text>
              {places.filter((place) => !place.needs || may.includes(place.needs)).map(({ to, label, icon: Icon }) => (
                <NavLink key={to} component={Link} to={to} label={label} className="fb-nav" active={location.pathname.startsWith(to)}
                  leftSection={<Icon size={17} strokeWidth={1.8} aria-hidden />} {...(location.pathname.startsWith(to) ? { "aria-current": "page" as const } : {})} />
              ))}
            </Box>
          ))}
        </AppShell.Section>
        <AppShell.Section>
          <NavLink component={Link} to="/reference" active={location.pathname.startsWith("/reference")} label="API reference" className="fb-nav" leftSection={<BookOpen size={17} strokeWidth={1.8} aria-hidden />} />
        </AppShell.Section>
      </AppShell.Navbar>
      <AppShell.Main id="content" tabIndex={-1}>
        <Box maw={1280} mx="auto"><Suspense fallback={<Loading />}>{!here?.needs || may.includes(here.needs) ? <Outlet /> : (
          <Page title={here.label}><Empty icon={here.icon} title="Not for your role">{here.about}: others here look after that. Owners and admins say who, under Organisation and Settings.</Empty></Page>
        )}</Suspense></Box>
      </AppShell.Main>
      {asked && <Suspense><Palette may={may} /></Suspense>}
    </AppShell>
  );
}

function PaletteButton({ open }: { open: () => void }) {
  return (
    <>
      <UnstyledButton visibleFrom="xs" onClick={open} px="sm" py={6} aria-label="Search and commands"
        style={{ border: "1px solid var(--fb-line)", borderRadius: "var(--mantine-radius-md)" }}>
        <Group gap="xs"><Search size={15} aria-hidden /><Text size="sm" c="dimmed">Go to …</Text><Kbd size="xs">Ctrl K</Kbd></Group>
      </UnstyledButton>
      <ActionIcon hiddenFrom="xs" variant="subtle" color="gray" size="lg" onClick={open} aria-label="Search and commands"><Search size={18} aria-hidden /></ActionIcon>
    </>
  );
}

function Scheme() {
  const { setColorScheme } = useMantineColorScheme();
  const dark = useComputedColorScheme("light") === "dark";
  const label = dark ? "Light theme" : "Dark theme";
  return (
    <ActionIcon variant="subtle" color="gray" size="lg" aria-label={label} title={label} onClick={() => setColorScheme(dark ? "light" : "dark")}>
      {dark ? <Sun size={18} aria-hidden /> : <Moon size={18} aria-hidden />}
    </ActionIcon>
  );
}

function Person({ name, role }: { name: string; role: string }) {
  const queries = useQueryClient();
  const [asked, { open }] = useDisclosure();
  const leave = async () => {
    const { url } = await remove<SignedOut>("/auth/session");
    // Out of the provider as well, which sends the browser back to our sign-in page.
    if (url) { location.assign(url); return; }
    queries.setQueryData(["session"], null);
    queries.removeQueries({ predicate: ({ queryKey }) => queryKey[0] !== "session" });
  };
  const face = <Avatar size={32} radius="xl" color="teal" variant="filled" name={name} alt="" />;
  const label = `Account of ${name}`;
  if (!asked) return <UnstyledButton aria-label={label} aria-haspopup="menu" onClick={open}>{face}</UnstyledButton>;
  return (
    <Suspense fallback={<UnstyledButton aria-label={label}>{face}</UnstyledButton>}>
      <PersonMenu name={name} role={role} leave={() => void leave()}><UnstyledButton aria-label={label}>{face}</UnstyledButton></PersonMenu>
    </Suspense>
  );
}
