import { Anchor, Group, Stack, Text } from "@mantine/core";
import type { ReactNode } from "react";

export interface Line { name: string; label: string; value: number; shown: ReactNode; aside?: ReactNode; go?: () => void }

/** Names by size, the biggest first. */
export function BarList({ lines, label }: { lines: Line[]; label: string }) {
  const top = Math.max(...lines.map(({ value }) => value), 1e-15);
  return (
    <Stack gap="sm" component="ul" m={0} p={0} aria-label={label} style={{ listStyle: "none" }}>
      {lines.map(({ name, label: text, value, shown, aside, go }) => (
        <li key={name}>
          <Group justify="space-between" gap="sm" wrap="nowrap" mb={4}>
            {go ? <Anchor component="button" type="button" size="sm" c="var(--mantine-color-text)" onClick={go} className="fb-clip" ta="left">{text}</Anchor> : <Text size="sm" className="fb-clip">{text}</Text>}
            <Group gap="sm" wrap="nowrap">{aside}<Text size="sm" fw={550} className="fb-num">{shown}</Text></Group>
          </Group>
          <div className="fb-bar" aria-hidden="true"><span style={{ width: `${(value / top) * 100}%` }} /></div>
        </li>
      ))}
    </Stack>
  );
}
