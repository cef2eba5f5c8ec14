import type { SeriesPoint } from "../api";
import type { Stack } from "./bars";

const WIDTH: Record<string, number> = { minute: 60_000, hour: 3_600_000, day: 86_400_000 };

export const METRICS = {
  spend: { label: "Spend", of: (point: SeriesPoint) => Number(point.charge_usd) },
  requests: { label: "Requests", of: (point: SeriesPoint) => point.requests },
  tokens: { label: "Tokens", of: (point: SeriesPoint) => point.input_tokens + point.output_tokens },
  errors: { label: "Errors", of: (point: SeriesPoint) => point.failed },
} as const;
export type Metric = keyof typeof METRICS;
export const asMetric = (value: unknown): Metric => (typeof value === "string" && value in METRICS ? (value as Metric) : "spend");

/** One stack for every step of the period, those without traffic included. */
export function stacks(points: SeriesPoint[], period: { start: string; end: string; bucket: string }, metric: Metric): Stack[] {
  const width = WIDTH[period.bucket] ?? 3_600_000;
  const found = new Map<number, Record<string, number>>();
  for (const point of points) {
    const at = Date.parse(point.at);
    const values = found.get(at) ?? {};
    values[point.name] = (values[point.name] ?? 0) + METRICS[metric].of(point);
    found.set(at, values);
  }
  const steps: Stack[] = [];
  for (let at = Math.floor(Date.parse(period.start) / width) * width; at < Date.parse(period.end); at += width) {
    steps.push({ at: new Date(at).toISOString(), values: found.get(at) ?? {} });
  }
  return steps;
}
