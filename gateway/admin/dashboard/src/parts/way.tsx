import { Badge, Group, Text, Title } from "@mantine/core";
import type { ReactNode } from "react";
import type { RequestDetail } from "../api";
import { count, dateTime, ms, words } from "../format";
import { Money } from "./bits";

/** Tries that did not fail. */
const TRIED: Record<string, string> = { ok: "Answered", lost: "Asked too, then cancelled" };

/** What happened to one request, in the order in which it happened. */
export function Way({ data }: { data: RequestDetail }) {
  const { request, way } = data;
  const kept = request.attempts === 0;
  return (
    <section aria-label="Way">
      <Title order={3} fz="sm" mb={8}>Its way</Title>
      <ol className="fb-way">
        <Step title="Admitted" aside={dateTime(request.at)}>
          Key <b>{request.key}</b> of {data.project} ({data.organisation}). <Money exact={data.hold_usd} /> were held for the worst case{data.variant ? `, at the price of tier ${data.variant}` : ""}.
        </Step>
        <Step title="Planned" aside={way ? words(way.strategy) : undefined}>
          {way ? (
            <>
              <ol className="fb-plan">{way.legs.map((leg) => <li key={leg.deployment}><b className="fb-wrap">{leg.deployment}</b>{leg.why && <Text span size="xs" c="dimmed"> {leg.why}</Text>}</li>)}</ol>
              {way.left_out.length > 0 && <Text size="xs" c="dimmed">Left out: {way.left_out.map((each) => `${each.deployment} (${each.why})`).join(", ")}</Text>}
            </>
          ) : <>For {request.alias} there was one place to go: <b className="fb-wrap">{data.deployment}</b>.</>}
        </Step>
        {way && way.tries.length > 0 ? way.tries.map((each, index) => (
          <Step key={index} title={TRIED[each.result] ?? "Failed"} bad={!(each.result in TRIED)} idle={each.result === "lost"} aside={ms(each.ms)}>
            <b className="fb-wrap">{each.deployment}</b>
            {each.result === "lost" && way.lost_usd && <Text span size="xs" c="dimmed">, whose provider may bill us about <Money exact={way.lost_usd} /> for the prompt</Text>}
            {!(each.result in TRIED) && <Badge ml="xs" size="sm" variant="default" tt="none">{words(each.result.replace(/([a-z])([A-Z])/g, "$1 $2"))}</Badge>}
          </Step>
        )) : (
          <Step title={kept ? "Answered from what was kept" : "Asked"}>{kept ? "The same question had been answered before: no provider was asked." : <><b className="fb-wrap">{data.deployment}</b>{data.upstream_id ? `, as ${data.upstream_id}` : ""}</>}</Step>
        )}
        {request.first_token_ms !== null && <Step title="First token" aside={`after ${ms(request.first_token_ms)}`} />}
        <Step title={words(request.outcome)} bad={!["completed", "client_gone"].includes(request.outcome)} aside={request.duration_ms === null ? undefined : `after ${ms(request.duration_ms)}`}>
          {count(request.input_tokens)} tokens read, {count(request.output_tokens)} written{request.finish_reason ? `; ${words(request.finish_reason).toLowerCase()}` : ""}{request.status === null ? "" : `; HTTP ${request.status}`}.
        </Step>
        <Step title={data.postings.length > 0 ? "Posted" : "Charged"} last>
          {data.postings.length > 0
            ? data.postings.map((each) => <Group key={each.id} justify="space-between" gap="xs" wrap="nowrap"><span className="fb-wrap">{words(each.kind)}: {each.debit} → {each.credit}</span><Money exact={each.amount_usd} full /></Group>)
            : request.charge_usd === null ? "Waits for a price." : <><Money exact={request.charge_usd} full />{Number(request.charge_usd) === 0 ? ": nothing is owed." : ""}</>}
        </Step>
      </ol>
    </section>
  );
}

function Step({ title, aside, children, bad = false, idle = false, last = false }: { title: string; aside?: ReactNode; children?: ReactNode; bad?: boolean; idle?: boolean; last?: boolean }) {
  return (
    <li data-bad={bad || undefined} data-idle={idle || undefined} data-last={last || undefined}>
      <Group justify="space-between" gap="xs" wrap="nowrap" align="baseline"><Text size="sm" fw={600}>{title}</Text>{aside && <Text size="xs" c="dimmed" className="fb-num">{aside}</Text>}</Group>
      {children && <Text size="sm" component="div">{children}</Text>}
    </li>
  );
}
