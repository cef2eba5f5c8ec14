import { Group, SegmentedControl, Stack, Text, Title } from "@mantine/core";
import { useDocumentTitle } from "@mantine/hooks";
import type { ReactNode } from "react";
import { PERIODS, type Period } from "../period";

export function Page({ title, about, actions, children }: { title: string; about?: ReactNode; actions?: ReactNode; children: ReactNode }) {
  useDocumentTitle(`${title} · Farebox`);
  return (
    <Stack gap="lg">
      <Group justify="space-between" align="flex-end" gap="md">
        <div>
          <Title order={1}>{title}</Title>
          {about && <Text c="dimmed" size="sm" mt={2}>{about}</Text>}
        </div>
        {actions && <Group gap="sm">{actions}</Group>}
      </Group>
      {children}
    </Stack>
  );
}

export function PeriodPicker({ value, onChange }: { value: Period | null; onChange: (period: Period) => void }) {
  return (
    <SegmentedControl size="xs" aria-label="Period" value={value ?? ""} onChange={(next) => onChange(next as Period)}
      data={Object.entries(PERIODS).map(([name, label]) => ({ value: name, label }))} />
  );
}
