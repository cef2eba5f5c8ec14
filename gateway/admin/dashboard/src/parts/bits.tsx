import { ActionIcon, Badge, Box, Button, Card, Code, CopyButton, Group, Stack, Text, Title } from "@mantine/core";
import { Check, Copy } from "./icons";
import type { ReactNode } from "react";
import { exactUsd, usd, words } from "../format";

/** An amount, short, with every digit on hover. */
export function Money({ exact, dim = false, full = false }: { exact: string | null | undefined; dim?: boolean; full?: boolean }) {
  return <Text span inherit className="fb-num" {...(dim ? { c: "dimmed" } : {})} title={exactUsd(exact)}>{full ? exactUsd(exact) : usd(exact)}</Text>;
}

export function Section({ title, actions, children, about }: { title: string; about?: string; actions?: ReactNode; children: ReactNode }) {
  return (
    <Card className="fb-card" component="section" aria-label={title} h="100%">
      <Group justify="space-between" mb="md" gap="xs">
        <div>
          <Title order={2}>{title}</Title>
          {about && <Text size="xs" c="dimmed">{about}</Text>}
        </div>
        {actions}
      </Group>
      {children}
    </Card>
  );
}

const COLORS: Record<string, string> = {
  completed: "teal", active: "teal", healthy: "teal", up: "teal", client_gone: "gray", idle: "gray", off: "gray", revoked: "gray",
  upstream_failed: "red", timed_out: "red", killed: "red", failing: "red", away: "red", rejected: "yellow", expired: "yellow",
  sent: "teal", waiting: "yellow", "given up": "red",
};
export function State({ name }: { name: string }) {
  return <Badge variant="light" color={COLORS[name] ?? "gray"} tt="none" radius="sm" styles={{ label: { color: "var(--mantine-color-text)" } }}>{words(name)}</Badge>;
}

export function CopyIcon({ text, label = "Copy" }: { text: string; label?: string }) {
  return (
    <CopyButton value={text}>
      {({ copied, copy }) => (
        <ActionIcon variant="subtle" color={copied ? "teal" : "gray"} onClick={copy} aria-label={copied ? "Copied" : label} title={label}>
          {copied ? <Check size={16} aria-hidden /> : <Copy size={16} aria-hidden />}
        </ActionIcon>
      )}
    </CopyButton>
  );
}

export function Snippet({ text, label }: { text: string; label: string }) {
  return (
    <Box pos="relative">
      <Code block fz={13} p="md" pr={48} tabIndex={0} aria-label={label} style={{ overflowX: "auto" }}>{text}</Code>
      <Box pos="absolute" top={8} right={8} bg="var(--mantine-color-body)" style={{ borderRadius: "var(--mantine-radius-sm)" }}><CopyIcon text={text} label={`Copy ${label}`} /></Box>
    </Box>
  );
}

/** A secret that is shown once. */
export function Once({ secret, children, done }: { secret: string; children: ReactNode; done: () => void }) {
  return (
    <Stack>
      <Text size="sm">{children}</Text>
      <Snippet text={secret} label="secret" />
      <CopyButton value={secret}>
        {({ copied, copy }) => (
          <Group justify="flex-end">
            <Button variant="default" onClick={copy} leftSection={copied ? <Check size={16} aria-hidden /> : <Copy size={16} aria-hidden />}>{copied ? "Copied" : "Copy"}</Button>
            <Button onClick={done}>Done</Button>
          </Group>
        )}
      </CopyButton>
    </Stack>
  );
}

export function Facts({ rows }: { rows: [string, ReactNode][] }) {
  return (
    <Box component="dl" m={0} style={{ display: "grid", gridTemplateColumns: "minmax(8rem, max-content) 1fr", columnGap: "1.25rem", rowGap: "0.45rem" }}>
      {rows.map(([name, value]) => [
        <Text component="dt" size="sm" c="dimmed" key={`${name}:`}>{name}</Text>,
        <Text component="dd" m={0} size="sm" className="fb-wrap" key={name}>{value ?? "–"}</Text>,
      ])}
    </Box>
  );
}

export function Share({ value, label }: { value: number; label: string }) {
  const color = value >= 1 ? "var(--mantine-color-red-6)" : value >= 0.8 ? "var(--mantine-color-yellow-6)" : "var(--mantine-primary-color-filled)";
  return (
    <div className="fb-bar" role="meter" aria-label={label} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(Math.min(1, value) * 100)}>
      <span style={{ width: `${Math.min(1, value) * 100}%`, background: color }} />
    </div>
  );
}
