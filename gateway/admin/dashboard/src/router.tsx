import { createRootRoute, createRoute, createRouter, lazyRouteComponent, Outlet, redirect } from "@tanstack/react-router";
import { Box } from "@mantine/core";
import { Failure } from "./parts/states";
import { asPeriod, type Period } from "./period";
import { Shell } from "./shell";

const text = (value: unknown): string | undefined => (typeof value === "string" && value !== "" ? value : typeof value === "number" ? String(value) : undefined);

const root = createRootRoute({ component: Outlet });
const shell = createRoute({ getParentRoute: () => root, id: "shell", component: Shell });

const signIn = createRoute({
  getParentRoute: () => root,
  path: "/sign-in",
  validateSearch: (search): { next?: string; problem?: string } => ({ next: text(search["next"]), problem: text(search["problem"]) }),
  component: lazyRouteComponent(() => import("./pages/sign-in")),
});
const home = createRoute({ getParentRoute: () => shell, path: "/", beforeLoad: () => { throw redirect({ to: "/overview" }); } });
const start = createRoute({ getParentRoute: () => shell, path: "/start", component: lazyRouteComponent(() => import("./pages/start")) });
const overview = createRoute({
  getParentRoute: () => shell,
  path: "/overview",
  validateSearch: (search): { period?: Period } => (search["period"] ? { period: asPeriod(search["period"]) } : {}),
  component: lazyRouteComponent(() => import("./pages/overview")),
});
export interface UsageSearch { period?: Period; from?: string; to?: string; by?: string; metric?: string; bucket?: string; [filter: string]: string | undefined }
const strings = (search: Record<string, unknown>): Record<string, string | undefined> =>
  Object.fromEntries(Object.entries(search).flatMap(([name, value]) => (text(value) ? [[name, text(value)]] : [])));
const usage = createRoute({
  getParentRoute: () => shell,
  path: "/usage",
  validateSearch: (search): UsageSearch => strings(search) as UsageSearch,
  component: lazyRouteComponent(() => import("./pages/usage")),
});
const requests = createRoute({
  getParentRoute: () => shell,
  path: "/requests",
  validateSearch: (search): UsageSearch => strings(search) as UsageSearch,
  component: lazyRouteComponent(() => import("./pages/requests")),
});
const keys = createRoute({
  getParentRoute: () => shell,
  path: "/keys",
  validateSearch: (search): Record<string, string | undefined> => strings(search),
  component: lazyRouteComponent(() => import("./pages/keys")),
});
const models = createRoute({
  getParentRoute: () => shell,
  path: "/models",
  validateSearch: (search): { search?: string; price?: string; provider?: string; add?: string; limits?: string } => strings(search),
  component: lazyRouteComponent(() => import("./pages/models")),
});
const routing = createRoute({
  getParentRoute: () => shell,
  path: "/routing",
  validateSearch: (search): { alias?: string; new?: string } => strings(search),
  component: lazyRouteComponent(() => import("./pages/routing")),
});
const money = createRoute({
  getParentRoute: () => shell,
  path: "/money",
  validateSearch: (search): Record<string, string | undefined> => strings(search),
  component: lazyRouteComponent(() => import("./pages/money")),
});
const playground = createRoute({
  getParentRoute: () => shell,
  path: "/playground",
  validateSearch: (search): { model?: string; beside?: string } => strings(search),
  component: lazyRouteComponent(() => import("./pages/playground")),
});
const engine = createRoute({
  getParentRoute: () => shell,
  path: "/engine",
  validateSearch: (search): { of?: string } => strings(search),
  component: lazyRouteComponent(() => import("./pages/engine")),
});
const audit = createRoute({
  getParentRoute: () => shell,
  path: "/audit",
  validateSearch: (search): Record<string, string | undefined> => strings(search),
  component: lazyRouteComponent(() => import("./pages/audit")),
});
const alerts = createRoute({
  getParentRoute: () => shell,
  path: "/alerts",
  validateSearch: (search): { new?: string } => strings(search),
  component: lazyRouteComponent(() => import("./pages/alerts")),
});
const guardrails = createRoute({
  getParentRoute: () => shell,
  path: "/guardrails",
  validateSearch: (search): { edit?: string } => strings(search),
  component: lazyRouteComponent(() => import("./pages/guardrails")),
});
const reference = createRoute({ getParentRoute: () => shell, path: "/reference", component: lazyRouteComponent(() => import("./pages/reference")) });
const settings = createRoute({
  getParentRoute: () => shell,
  path: "/settings",
  validateSearch: (search): { tab?: string } => strings(search),
  component: lazyRouteComponent(() => import("./pages/settings")),
});

const organisation = createRoute({
  getParentRoute: () => shell,
  path: "/organisation",
  validateSearch: (search): { tab?: string } => strings(search),
  component: lazyRouteComponent(() => import("./pages/organisation")),
});

export const router = createRouter({
  routeTree: root.addChildren([
    signIn,
    shell.addChildren([home, start, overview, usage, requests, keys, models, routing, money, playground, engine, alerts, guardrails, audit, organisation, reference, settings]),
  ]),
  basepath: "/ui",
  defaultPreload: "intent",
  defaultErrorComponent: ({ error, reset }) => <Box p="lg"><Failure error={error} again={reset} /></Box>,
  defaultNotFoundComponent: lazyRouteComponent(() => import("./pages/nowhere")),
  // Values are plain words: ?by=key, not ?by=%22key%22.
  parseSearch: (search) => Object.fromEntries(new URLSearchParams(search)),
  stringifySearch: (search) => {
    const said = new URLSearchParams(Object.entries(search).filter(([, value]) => value !== undefined && value !== "") as [string, string][]).toString();
    return said ? `?${said}` : "";
  },
});

declare module "@tanstack/react-router" {
  interface Register { router: typeof router }
}
