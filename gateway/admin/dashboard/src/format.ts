const plain = new Intl.NumberFormat("en-US");
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

/** Amounts come as exact decimals. Shown short; the exact text belongs into a title. */
export function usd(exact: string | number | null | undefined): string {
  if (exact === null || exact === undefined || exact === "") return "–";
  const value = typeof exact === "number" ? exact : Number(exact);
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  if (size === 0) return "$0.00";
  if (size >= 100_000) return `${sign}$${short.format(size)}`;
  if (size >= 1) return `${sign}$${size.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  // Four digits that count: a request may cost a thousandth of a cent, and is never "$0.00".
  const digits = Math.min(12, Math.max(2, 3 - Math.floor(Math.log10(size))));
  return `${sign}$${size.toFixed(digits).replace(/(\.\d\d\d*?)0+$/, "$1")}`;
}
export const exactUsd = (exact: string | null | undefined): string => (exact ? `$${exact}` : "–");
export const count = (value: number): string => plain.format(value);
export const some = (value: number, one: string): string => `${plain.format(value)} ${one}${value === 1 ? "" : "s"}`;
export const compact = (value: number): string => (Math.abs(value) < 10_000 ? plain.format(value) : short.format(value));
export const percent = (share: number): string =>
  share === 0 ? "0%" : share < 0.001 ? "<0.1%" : `${(share * 100).toFixed(share < 0.1 ? 1 : 0)}%`;
export function ms(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  return value < 1000 ? `${value} ms` : value < 60_000 ? `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s` : `${(value / 60_000).toFixed(1)} min`;
}

const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const full = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
export const dateTime = (at: string): string => full.format(new Date(at));
export const dayOf = (at: string): string => day.format(new Date(at));
export const hourOf = (at: string): string => clock.format(new Date(at));
export function ago(at: string | null, now = Date.now()): string {
  if (!at) return "never";
  const seconds = Math.max(0, (now - Date.parse(at)) / 1000);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  if (seconds < 30 * 86_400) return `${Math.floor(seconds / 86_400)} d ago`;
  return dayOf(at);
}
/** "upstream_failed" as people write it. */
export const words = (name: string): string => {
  const text = name.replace(/[_.]/g, " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
};
