import { Accordion, Anchor, Badge, Code, Group, Stack, Table, Text, TextInput } from "@mantine/core";
import { useState } from "react";
import document from "../../openapi.json";
import { Section, Snippet } from "../parts/bits";
import { Search } from "../parts/icons";
import { Page } from "../parts/page";

interface Shape { $ref?: string; type?: string | string[]; format?: string; enum?: unknown[]; items?: Shape; oneOf?: Shape[]; anyOf?: Shape[]; properties?: Record<string, Shape>; required?: string[]; description?: string; additionalProperties?: Shape | boolean }
interface Parameter { name: string; in: string; required?: boolean; description?: string; schema?: Shape }
interface Operation { summary?: string; description?: string; operationId: string; parameters?: Parameter[]; requestBody?: { content: Record<string, { schema: Shape }> }; responses: Record<string, { content?: Record<string, { schema: Shape }> }> }

const schemas = document.components.schemas as unknown as Record<string, Shape>;
const operations = Object.entries(document.paths as unknown as Record<string, Record<string, Operation>>).flatMap(([path, methods]) =>
  Object.entries(methods).filter(([method]) => ["get", "post", "put", "patch", "delete"].includes(method)).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })));
const noun = (path: string): string => path.split("/")[3]?.split(".")[0] ?? "";
const COLORS: Record<string, string> = { GET: "teal", POST: "blue", PUT: "grape", PATCH: "orange", DELETE: "red" };
const last = (name: string): string => name.replace(/^.*\./, "").replace(/_$/, "");

/** A type as people write it. */
function typeOf(shape: Shape | undefined): string {
  if (!shape) return "";
  if (shape.$ref) return last(shape.$ref.split("/").pop() ?? "");
  if (shape.enum) return shape.enum.map((value) => JSON.stringify(value)).join(" | ");
  const either = shape.oneOf ?? shape.anyOf;
  if (either) return [...new Set(either.map(typeOf))].join(" | ");
  if (shape.type === "array") return `${typeOf(shape.items)}[]`;
  if (shape.type === "object" && typeof shape.additionalProperties === "object") return `{ name: ${typeOf(shape.additionalProperties)} }`;
  return [shape.type].flat().filter(Boolean).join(" | ") + (shape.format ? ` (${shape.format})` : "");
}
const resolve = (shape: Shape | undefined): { name: string; shape: Shape } | null => {
  const inner = shape?.$ref ? shape : shape?.items?.$ref ? shape.items : shape?.oneOf?.find(({ $ref }) => $ref);
  const name = inner?.$ref?.split("/").pop();
  const found = name ? schemas[name] : undefined;
  return name && found ? { name: last(name), shape: found } : null;
};

export default function Reference() {
  const [wanted, setWanted] = useState("");
  const shown = operations.filter(({ path, method, operation }) => `${method} ${path} ${operation.description ?? ""}`.toLowerCase().includes(wanted.toLowerCase()));
  const nouns = [...new Set(shown.map(({ path }) => noun(path)))];
  return (
    <Page title="API reference" about={<>Everything that this dashboard does, for programs. <Anchor size="sm" underline="always" href="/openapi.json">OpenAPI document</Anchor></>}
      actions={<TextInput aria-label="Find an endpoint" placeholder="Find an endpoint" leftSection={<Search size={15} aria-hidden />} value={wanted} onChange={(event) => setWanted(event.currentTarget.value)} />}>
      <Section title="Signing in">
        <Stack gap="sm">
          <Text size="sm">{document.info.description}</Text>
          <Snippet label="curl with a token" text={`curl ${location.origin}/admin/v1/usage?by=key -H 'Authorization: Bearer fba-…'`} />
        </Stack>
      </Section>
      {nouns.map((each) => (
        <Section key={each} title={each.charAt(0).toUpperCase() + each.slice(1)}>
          <Accordion variant="default" chevronPosition="left" multiple keepMounted={false}>
            {shown.filter(({ path }) => noun(path) === each).map(({ path, method, operation }) => (
              <Accordion.Item key={method + path} value={method + path}>
                <Accordion.Control>
                  <Group gap="sm" wrap="nowrap"><Badge w={70} radius="sm" variant="light" color={COLORS[method] ?? "gray"} styles={{ label: { color: "var(--mantine-color-text)" } }}>{method}</Badge><Text size="sm" className="fb-mono fb-wrap">{path.replace("/admin/v1", "")}</Text></Group>
                </Accordion.Control>
                <Accordion.Panel><Whole operation={operation} /></Accordion.Panel>
              </Accordion.Item>
            ))}
          </Accordion>
        </Section>
      ))}
    </Page>
  );
}

function Whole({ operation }: { operation: Operation }) {
  const sent = resolve(operation.requestBody?.content["application/json"]?.schema);
  const good = Object.entries(operation.responses).find(([status]) => status.startsWith("2"));
  const answer = good?.[1].content?.["application/json"]?.schema;
  const got = resolve(answer);
  return (
    <Stack gap="md">
      {operation.description && <Text size="sm" style={{ whiteSpace: "pre-wrap" }}>{operation.description}</Text>}
      {(operation.parameters ?? []).length > 0 && <Fields title="Parameters" rows={(operation.parameters ?? []).map((each) => [each.name, `${typeOf(each.schema)}, ${each.in}`, Boolean(each.required), each.description ?? ""])} />}
      {sent && <Fields title={`Body: ${sent.name}`} about={sent.shape.description} rows={Object.entries(sent.shape.properties ?? {}).map(([name, shape]) => [name, typeOf(shape), (sent.shape.required ?? []).includes(name), shape.description ?? ""])} />}
      <div>
        <Text size="sm" fw={600}>Answer {good?.[0]}{answer ? <>: <Code>{typeOf(answer)}</Code></> : ""}</Text>
        {got && <Fields about={got.shape.description} rows={Object.entries(got.shape.properties ?? {}).map(([name, shape]) => [name, typeOf(shape), true, shape.description ?? ""])} />}
      </div>
    </Stack>
  );
}

function Fields({ title, about, rows }: { title?: string; about?: string | undefined; rows: [string, string, boolean, string][] }) {
  return (
    <div>
      {title && <Text size="sm" fw={600}>{title}</Text>}
      {about && <Text size="xs" c="dimmed">{about}</Text>}
      <Table.ScrollContainer minWidth={420}>
        <Table verticalSpacing={4} highlightOnHover={false}>
          <Table.Tbody>{rows.map(([name, type, required, said]) => (
            <Table.Tr key={name}><Table.Td w={220}><Text size="sm" className="fb-mono">{name}{required ? "" : "?"}</Text></Table.Td><Table.Td><Text size="sm" className="fb-mono fb-wrap" c="dimmed">{type}</Text>{said && <Text size="xs">{said}</Text>}</Table.Td></Table.Tr>
          ))}</Table.Tbody>
        </Table>
      </Table.ScrollContainer>
    </div>
  );
}
