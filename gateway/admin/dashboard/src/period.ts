/** Periods live in the URL as "24h", "7d", ... and are turned into instants once a minute, so that queries are kept. */
export const PERIODS = { "1h": "Hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days" } as const;
export type Period = keyof typeof PERIODS;
const HOURS: Record<Period, number> = { "1h": 1, "24h": 24, "7d": 168, "30d": 720, "90d": 2160 };

export const asPeriod = (value: unknown, otherwise: Period = "24h"): Period =>
  typeof value === "string" && value in PERIODS ? (value as Period) : otherwise;

/** A stretch that somebody zoomed into stands in the URL as two instants, and goes before the period. */
export interface Zoom { from?: string | undefined; to?: string | undefined }
export const zoomed = ({ from, to }: Zoom): { from: string; to: string } | null =>
  from && to && Number.isFinite(Date.parse(from)) && Date.parse(from) < Date.parse(to) ? { from, to } : null;

const DAY = 86_400_000;

/** Several days are today and the ones before it, whole: the first bar of a chart is a day like the others, and what is
 * kept by the day answers for all but today. */
export function bounds(period: Period): { from: string; to: string } {
  const end = Math.ceil(Date.now() / 60_000) * 60_000;
  const back = HOURS[period] * 3_600_000;
  const from = back > DAY ? Math.ceil((end - back) / DAY) * DAY : end - back;
  return { from: new Date(from).toISOString(), to: new Date(end).toISOString() };
}
