import { Alert, Button, Group, NumberInput, SegmentedControl, Select, Stack, Switch, Text, TextInput } from "@mantine/core";
import { useState } from "react";
import { post, type Balances } from "../../api";
import { useChange } from "../../change";
import { exactUsd } from "../../format";
import { Dialog, Ends } from "../../parts/dialog";
import { notify } from "../../parts/notify";
import { Failure } from "../../parts/states";
import { unique } from "./unique";

export type Move = "topup" | "refund";
interface Said { organisation_id?: string; amount_usd?: string; note: string; granted?: boolean; request_id?: string }

/** Money moves in two steps: what is to be posted is read once more before it is. */
export function MoveForm({ what, close, balances, request }: { what: Move | null; close: () => void; balances: Balances | undefined; request?: string | undefined }) {
  // One key for one filled-in form: pressing twice, or again after a lost answer, moves the money once.
  const [idempotency, setIdempotency] = useState(unique);
  const [said, setSaid] = useState<Said | null>(null);
  const [of, setOf] = useState<"request" | "amount">(request ? "request" : "amount");
  const send = useChange(
    (body: Said) => post<{ new: boolean }>(what === "refund" ? "/ledger/refunds" : "/ledger/top-ups", body, { "idempotency-key": idempotency }),
    ({ new: fresh }) => { notify(fresh ? "Posted." : "That was posted before: nothing moved."); leave(); },
  );
  const leave = () => { setIdempotency(unique()); setSaid(null); send.reset(); close(); };
  const names = new Map((balances?.organisations ?? []).map(({ id, name }) => [id, name]));
  const wholeRequest = what === "refund" && of === "request";
  return (
    <Dialog opened={what !== null} onClose={leave} title={what === "refund" ? "Refund" : "Top up"}>
      <form onSubmit={(event) => {
        event.preventDefault();
        if (said) { send.mutate(said); return; }
        const form = new FormData(event.currentTarget);
        const amount = String(form.get("amount") ?? "").replaceAll(",", "").replace("$", "");
        setSaid({
          note: String(form.get("note")),
          ...(amount ? { amount_usd: amount } : {}),
          ...(wholeRequest ? { request_id: String(form.get("request")).trim() } : { organisation_id: String(form.get("organisation")) }),
          ...(what === "topup" ? { granted: form.get("granted") === "on" } : {}),
        });
      }}>
        {said && (
          <Stack>
            {send.isError && <Failure error={send.error} />}
            <Alert color="teal" variant="light" title={what === "refund" ? "Give this back?" : said.granted ? "Give this away?" : "Book this payment?"}>
              <Text size="sm"><b>{said.amount_usd ? exactUsd(said.amount_usd) : "All that was charged"}</b> {said.request_id ? <>for request <span className="fb-mono fb-wrap">{said.request_id}</span></> : <>to <b>{names.get(said.organisation_id ?? "") ?? said.organisation_id}</b></>}: {said.note}</Text>
              <Text size="xs" c="dimmed" mt={4}>A posting stays for ever; another one can take it back.</Text>
            </Alert>
            <Group justify="flex-end"><Button variant="default" disabled={send.isPending} onClick={() => { setSaid(null); send.reset(); }}>Change it</Button><Button type="submit" loading={send.isPending} data-autofocus>Confirm</Button></Group>
          </Stack>
        )}
        {!said && (
          <Stack>
            {what === "refund" && <SegmentedControl size="xs" aria-label="Refund of" value={of} onChange={(next) => setOf(next as typeof of)} data={[{ value: "request", label: "A request" }, { value: "amount", label: "An amount" }]} />}
            {wholeRequest
              ? <TextInput name="request" label="Request id" defaultValue={request ?? ""} placeholder="req_…" required withAsterisk={false} data-autofocus />
              : <Select key={balances ? "known" : "awaited"} name="organisation" label="Organisation" allowDeselect={false} defaultValue={balances?.organisations[0]?.id ?? null} data={(balances?.organisations ?? []).map(({ id, name }) => ({ value: id, label: name }))} />}
            <NumberInput name="amount" label="Amount" prefix="$" min={0} decimalScale={12} thousandSeparator hideControls withAsterisk={false}
              {...(wholeRequest ? { placeholder: "all that was charged" } : { required: true, "data-autofocus": true })} />
            <TextInput name="note" label="Note" description={what === "refund" ? "For the books: why" : "For the books: payment reference, or why"} required withAsterisk={false} />
            {what === "topup" && <Switch name="granted" label="A gift: nobody paid for it" />}
            <Ends leave={leave} disabled={!wholeRequest && !balances?.organisations.length}>Review</Ends>
          </Stack>
        )}
      </form>
    </Dialog>
  );
}
