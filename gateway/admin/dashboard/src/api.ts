import type { components } from "./schema";

type Schemas = components["schemas"];
export type Overview = Schemas["Overview"];
export type Usage = Schemas["Usage"];
export type Totals = Schemas["TotalsView"];
export type Group = Schemas["GroupView"];
export type SeriesPoint = Schemas["SeriesPoint"];
export type Forecast = Schemas["Forecast"];
export type Savings = Schemas["Savings"];
export type Budget = Schemas["BudgetView"];
export type RequestRow = Schemas["RequestView"];
export type RequestDetail = Schemas["RequestDetail"];
export type Key = Schemas["KeyView"];
export type NewKey = Schemas["NewKeyRequest"];
export type ShownKey = Schemas["ShownKey"];
export type Project = Schemas["ProjectView"];
export type ProjectRouting = Schemas["ProjectRoutingView"];
export type Models = Schemas["Models"];
export type Model = Schemas["ModelView"];
export type Deployment = Schemas["DeploymentView"];
export type Provider = Schemas["ProviderView"];
export type ProviderKind = Schemas["ProviderKind"];
export type ProviderDetail = Schemas["ProviderDetail"];
export type ProviderChange = Schemas["ProviderChange"];
export type Tried = Schemas["Tried"];
export type OfferedModel = Schemas["OfferedModel"];
export type DeploymentEntry = Schemas["DeploymentEntry"];
export type DeploymentRow = Schemas["DeploymentRow"];
export interface AliasTarget { deployment: string; weight?: number; priority?: number }
export type AliasEntry = Partial<Omit<Schemas["AliasEntry"], "targets">> & { targets: AliasTarget[] };
export type AliasRow = Omit<Schemas["AliasRow"], "entry"> & { entry: AliasEntry };
export type Plan = Schemas["PlanView"];
export type Catalogue = Schemas["CatalogueView"];
export type Price = Schemas["PriceView"];
export type Balances = Schemas["Balances"];
export type Posting = Schemas["Posting"];
export type LedgerAudit = Schemas["LedgerAudit"];
export type Invoice = Schemas["InvoiceView"];
export type InvoiceLine = Schemas["InvoiceLine"];
export type PriceComparison = Schemas["PriceComparison"];
export type PricesImported = Schemas["PricesImported"];
export type Reconciliation = Schemas["Reconciliation"];
export type AlertRule = Schemas["AlertRule"];
export type AlertDelivery = Schemas["AlertDelivery"];
export type AlertTrial = Schemas["AlertTrial"];
export type Guardrail = Schemas["Guardrail"];
export type GuardrailTried = Schemas["GuardrailTried"];
export type GuardrailReport = Schemas["GuardrailReport"];
export type BodyLogging = Schemas["BodyLogging"];
export type RequestBodies = Schemas["RequestBodies"];
export type Replica = Schemas["ReplicaView"];
export type AuditRow = Schemas["AuditView"];
export type AuditVerdict = Schemas["AuditVerdict"];
export type User = Schemas["UserView"];
export type Link = Schemas["LinkView"];
export type Token = Schemas["TokenView"];
export type IssuedToken = Schemas["IssuedToken"];
export type Settings = Schemas["SettingsView"];
export type Session = Schemas["SessionView"];
export type SignedOut = Schemas["SignedOut"];
export type WaysIn = Schemas["WaysIn"];
export type Passkey = Schemas["PasskeyView"];
export type Member = Schemas["MemberView"];
export type Invited = Schemas["Invited"];
export type Team = Schemas["TeamView"];
export type Organisation = Schemas["OrganisationSummary"];
export type Provisioning = Schemas["Provisioning"];
export type IssuedScimToken = Schemas["IssuedScimToken"];
export type Role = Schemas["Role"];
export interface Page<T> { items: T[]; next: string | null }

/** An RFC 9457 problem. `todo` says what the reader can do about it. */
export class Problem extends Error {
  constructor(readonly status: number, readonly kind: string, detail: string, readonly todo: string, readonly field?: string, readonly faults: Schemas["Fault"][] = []) {
    super(detail);
  }
}

type Query = Record<string, string | number | undefined | null | string[]>;
interface Options { query?: Query; body?: unknown; headers?: Record<string, string> }

let csrf = "";
let signedOut: () => void = () => undefined;
/** Called whenever the server says that nobody is signed in. */
export const onSignedOut = (then: () => void): void => { signedOut = then; };

export const path = (name: string, query: Query = {}): string => {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== undefined && each !== null && each !== "") search.append(key, String(each));
    }
  }
  const text = search.toString();
  return `/admin/v1${name}${text ? `?${text}` : ""}`;
};

async function call<T>(method: string, name: string, { query, body, headers }: Options = {}): Promise<T> {
  let answer: Response;
  try {
    answer = await fetch(path(name, query), {
      method,
      headers: {
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(method === "GET" ? {} : { "x-csrf-token": csrf }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  } catch {
    throw new Problem(0, "away", "Farebox does not answer.", "Is it still running, and can this browser reach it?");
  }
  if (answer.status === 204) return undefined as T;
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said as T;
  const kind = String(said.type ?? "").replace("urn:farebox:problem:", "");
  if (answer.status === 401 && kind === "signed-out") signedOut();
  throw new Problem(answer.status, kind, said.detail ?? (answer.status >= 500 ? "Something in Farebox broke." : answer.statusText), said.todo ?? (answer.status >= 500 ? "Try again; its log says what it was." : ""), said.field, said.faults);
}

export const get = <T>(name: string, query?: Query): Promise<T> => call<T>("GET", name, query ? { query } : {});
export const post = <T>(name: string, body: unknown, headers?: Record<string, string>): Promise<T> =>
  call<T>("POST", name, { body, ...(headers ? { headers } : {}) });
export const put = <T>(name: string, body: unknown, headers?: Record<string, string>): Promise<T> =>
  call<T>("PUT", name, { body, ...(headers ? { headers } : {}) });
export const patch = <T>(name: string, body: unknown): Promise<T> => call<T>("PATCH", name, { body });
export const remove = <T>(name: string): Promise<T> => call<T>("DELETE", name);

/** Who is signed in, or null. Keeps the token that changes have to carry. */
export async function readSession(): Promise<Session | null> {
  const session = await get<Session | null>("/auth/session");
  return session && begun(session);
}
export const begun = (session: Session): Session => {
  csrf = session.csrf;
  return session;
};
