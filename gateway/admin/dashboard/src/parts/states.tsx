import { Alert, Button, Center, List, Loader, Stack, Text } from "@mantine/core";
import type { UseQueryResult } from "@tanstack/react-query";
import { CircleAlert, type Icon } from "./icons";
import type { ReactNode } from "react";
import { Problem } from "../api";

export function Loading({ label = "Loading", about }: { label?: string; about?: string | undefined }) {
  return <Center mih={220} role="status" aria-label={label}><Stack align="center" gap="xs"><Loader size="sm" type="dots" />{about && <Text size="sm" c="dimmed">{about}</Text>}</Stack></Center>;
}

/** Of a query that has not been answered. What did not arrive is asked for again, for some seconds: the reader is told. */
export function Waiting({ query }: { query: { failureReason?: Error | null } }) {
  return <Loading about={query.failureReason ? `${query.failureReason.message} Asking again …` : undefined} />;
}

/** What went wrong and what to do about it, from the server's own words. */
export function Failure({ error, again }: { error: unknown; again?: () => void }) {
  const problem = error instanceof Problem ? error : new Problem(0, "bug", "This page broke.", `Reload it; if that does not help, tell us: ${String(error)}`);
  return (
    <Alert color={problem.status === 403 ? "gray" : "red"} icon={<CircleAlert size={18} aria-hidden />} title={problem.message} role="alert">
      {problem.faults.length > 1
        ? <List size="sm">{problem.faults.map((fault) => <List.Item key={fault.path + fault.problem}>{fault.path}: {fault.problem}; {fault.todo}</List.Item>)}</List>
        : <Text size="sm">{problem.todo}</Text>}
      {again && problem.status !== 403 && <Button mt="sm" size="xs" variant="default" onClick={again}>Try again</Button>}
    </Alert>
  );
}

/** Nothing here yet: says why, and offers the next step. */
export function Empty({ icon: Icon, title, children, action }: { icon: Icon; title: string; children: ReactNode; action?: ReactNode }) {
  return (
    <Center className="fb-empty" p="xl" mih={220}>
      <Stack align="center" gap="xs" maw={440} ta="center">
        <Icon size={30} strokeWidth={1.4} color="var(--mantine-color-dimmed)" aria-hidden />
        <Text fw={600}>{title}</Text>
        <Text size="sm" c="dimmed">{children}</Text>
        {action}
      </Stack>
    </Center>
  );
}

/** The three states of a query in one place. */
export function Loaded<T>({ query, children }: { query: Pick<UseQueryResult<T>, "data" | "isError" | "error"> & { failureReason?: Error | null; refetch: () => unknown }; children: (data: T) => ReactNode }) {
  if (query.data !== undefined) return <>{children(query.data)}</>;
  if (query.isError) return <Failure error={query.error} again={() => void query.refetch()} />;
  return <Waiting query={query} />;
}
