import { Text } from "@mantine/core";
import { useElementSize } from "@mantine/hooks";
import { useId } from "react";
import type { Forecast } from "../api";
import { dateTime, dayOf, hourOf, usd } from "../format";
import { ticks } from "./scale";

const LEFT = 56;
const BOTTOM = 22;
const DAY = 86_400_000;

/** What was spent of a budget, its limit, and the straight line that leads on from here. */
export function Burn({ data, height = 200 }: { data: Forecast; height?: number }) {
  const { ref, width } = useElementSize();
  const id = useId();
  const steps = data.points.map((point) => [Date.parse(point.at), Number(point.spent_usd)] as const);
  const now = Date.now();
  const [limit, spent, daily] = [Number(data.limit_usd), Number(data.spent_usd), Number(data.a_day_usd)];
  const from = Date.parse(data.starts_at);
  const to = data.ends_at ? Date.parse(data.ends_at) : Math.max(now + 7 * DAY, Math.min(data.used_up_at ? Date.parse(data.used_up_at) : 0, now + 30 * DAY));
  const later = spent + (daily * (to - now)) / DAY;
  const marks = ticks(Math.max(limit, spent, Math.min(later, limit * 1.5)) || 1, 3);
  const top = marks[marks.length - 1] ?? 1;
  const x = (at: number) => LEFT + (Math.max(0, width - LEFT - 8) * (at - from)) / Math.max(1, to - from);
  const y = (value: number) => 8 + (height - BOTTOM - 8) * (1 - Math.min(value, top) / top);
  // A step's total stands at its end.
  const step = steps.length > 1 ? (steps[1]?.[0] ?? 0) - (steps[0]?.[0] ?? 0) : DAY;
  const line = steps.map(([at, value]) => [Math.max(from, Math.min(at + step, now)), value] as const);
  const reach = later > top && daily > 0 ? now + ((top - spent) / daily) * DAY : to;
  const when = data.bucket === "day" ? dayOf : hourOf;
  const label = `${usd(spent)} of ${usd(limit)} spent. ${data.used_up_at ? `At this rate it is used up ${dateTime(data.used_up_at)}.` : "At this rate it lasts."}`;
  return (
    <div className="fb-chart" ref={ref} style={{ height }}>
      {width > 0 && (
        <svg height={height} viewBox={`0 0 ${width} ${height}`} role="img" aria-labelledby={id}>
          <title id={id}>{label}</title>
          {marks.map((mark) => (
            <g key={mark}><line x1={LEFT} x2={width} y1={y(mark)} y2={y(mark)} stroke="var(--fb-grid)" /><text className="fb-axis" x={LEFT - 8} y={y(mark) + 4} textAnchor="end">{usd(mark)}</text></g>
          ))}
          {[from, (from + to) / 2, to].map((at, index) => <text key={at} className="fb-axis" x={x(at)} y={height - 5} textAnchor={index === 0 ? "start" : index === 1 ? "middle" : "end"}>{when(new Date(at).toISOString())}</text>)}
          <line x1={LEFT} x2={width - 8} y1={y(limit)} y2={y(limit)} stroke="var(--mantine-color-red-6)" strokeWidth={1.5} />
          {steps.length > 0 && <path d={line.map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("")} fill="none" stroke="var(--fb-series-0)" strokeWidth={2} strokeLinejoin="round" />}
          <path d={`M${x(now)} ${y(spent)}L${x(reach)} ${y(Math.min(later, top))}`} stroke="var(--fb-series-0)" strokeWidth={2} strokeDasharray="4 4" />
          <circle cx={x(now)} cy={y(spent)} r={4} fill="var(--fb-series-0)" />
        </svg>
      )}
      {width > 0 && steps.length === 0 && <Text size="xs" c="dimmed">Step by step, this kind of budget is not kept.</Text>}
    </div>
  );
}
