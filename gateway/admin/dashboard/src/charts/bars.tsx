import { Group, Text } from "@mantine/core";
import { useElementSize } from "@mantine/hooks";
import { useId, useState } from "react";
import { dateTime, dayOf, hourOf } from "../format";
import { series as colorOf } from "../theme";
import { ticks } from "./scale";

export interface Stack { at: string; values: Record<string, number> }
interface Props { data: Stack[]; names: string[]; labels?: Record<string, string>; format: (value: number) => string; bucket: string; label: string; height?: number; pick?: ((at: string) => void) | undefined }

const LEFT = 52;
const BOTTOM = 22;

/** Stacked bars over time. Drawn as plain SVG; the same numbers are in a table for those who cannot see it. */
export function Bars({ data, names, labels = {}, format, bucket, label, height = 240, pick }: Props) {
  const { ref, width } = useElementSize();
  const [hover, setHover] = useState<number | null>(null);
  const id = useId();
  const totals = data.map(({ values }) => names.reduce((sum, name) => sum + (values[name] ?? 0), 0));
  const marks = ticks(Math.max(0, ...totals));
  const top = marks[marks.length - 1] ?? 1;
  const plot = { width: Math.max(0, width - LEFT), height: height - BOTTOM - 8 };
  const slot = plot.width / Math.max(1, data.length);
  const bar = Math.max(1, Math.min(34, slot * 0.72));
  const y = (value: number) => 8 + plot.height * (1 - value / top);
  const when = bucket === "day" ? dayOf : hourOf;
  const each = Math.max(1, Math.ceil(data.length / Math.max(2, Math.floor(plot.width / 64))));
  const shown = hover === null ? undefined : data[hover];
  return (
    <div>
      <div className="fb-chart" ref={ref} style={{ height }} onMouseLeave={() => setHover(null)}>
        {width > 0 && (
          <svg height={height} viewBox={`0 0 ${width} ${height}`} role="img" aria-labelledby={id}>
            <title id={id}>{label}</title>
            {marks.map((mark) => (
              <g key={mark}>
                <line x1={LEFT} x2={width} y1={y(mark)} y2={y(mark)} stroke="var(--fb-grid)" />
                <text className="fb-axis" x={LEFT - 8} y={y(mark) + 4} textAnchor="end">{format(mark)}</text>
              </g>
            ))}
            {data.map(({ at, values }, index) => {
              const x = LEFT + slot * index + (slot - bar) / 2;
              let below = 0;
              return (
                <g key={at} opacity={hover === null || hover === index ? 1 : 0.45}>
                  {names.map((name, nth) => {
                    const value = values[name] ?? 0;
                    if (value <= 0) return null;
                    const from = y(below);
                    below += value;
                    return <rect key={name} x={x} width={bar} y={y(below)} height={Math.max(0.5, from - y(below))} rx={Math.min(2, bar / 4)} fill={colorOf(name === "(other)" ? 7 : nth)} />;
                  })}
                  {index % each === 0 && <text className="fb-axis" x={x + bar / 2} y={height - 5} textAnchor="middle">{when(at)}</text>}
                  <rect className="fb-hit" {...(pick ? { onClick: () => pick(at), style: { cursor: "zoom-in" } } : {})} x={LEFT + slot * index} width={slot} y={8} height={plot.height} onMouseEnter={() => setHover(index)} />
                </g>
              );
            })}
          </svg>
        )}
        {shown && hover !== null && (
          <div className="fb-tip" style={{ top: 4, ...(hover > data.length / 2 ? { right: Math.max(0, width - LEFT - slot * hover + 8) } : { left: LEFT + slot * (hover + 1) + 8 }) }}>
            <Text size="xs" c="dimmed" mb={4}>{bucket === "day" ? dayOf(shown.at) : dateTime(shown.at).replace(/:\d\d$/, "")}</Text>
            {[...names].reverse().filter((name) => (shown.values[name] ?? 0) > 0).map((name) => (
              <Group key={name} gap={8} justify="space-between" wrap="nowrap">
                <Group gap={6} wrap="nowrap" miw={0}><Dot index={name === "(other)" ? 7 : names.indexOf(name)} /><span className="fb-clip">{labels[name] ?? name}</span></Group>
                <span className="fb-num">{format(shown.values[name] ?? 0)}</span>
              </Group>
            ))}
            {names.length > 1 && <Group justify="space-between" mt={4}><Text size="xs" fw={600}>Total</Text><Text size="xs" fw={600} className="fb-num">{format(totals[hover] ?? 0)}</Text></Group>}
          </div>
        )}
      </div>
      {names.length > 1 && (
        <Group gap="md" mt="xs" pl={LEFT}>
          {names.map((name, index) => (
            <Group key={name} gap={6} wrap="nowrap"><Dot index={name === "(other)" ? 7 : index} /><Text size="xs" c="dimmed">{labels[name] ?? name}</Text></Group>
          ))}
        </Group>
      )}
    </div>
  );
}

export function Dot({ index }: { index: number }) {
  return <span className="fb-dot" style={{ background: colorOf(index) }} aria-hidden />;
}
