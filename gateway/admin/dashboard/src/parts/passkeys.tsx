import { Badge, Button, Stack, Table, Text, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { get, post, remove, Problem, type Passkey, type Session } from "../api";
import { useChange } from "../change";
import { ago } from "../format";
import { Section } from "./bits";
import { Dialog, Ends } from "./dialog";
import { Fingerprint, Plus } from "./icons";
import { notify } from "./notify";
import { Empty, Failure, Loaded } from "./states";

/** What the browser itself says when somebody cancels, or the address is no good, in words of ours. */
function plain(error: unknown): never {
  if (error instanceof Problem) throw error;
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError") throw new Problem(0, "cancelled", "The device was not asked, or said no.", "Try again, and confirm on the device.");
  if (name === "InvalidStateError") throw new Problem(0, "known", "This device has a passkey for you already.", "Use another device, or remove the one that is there.");
  if (name === "SecurityError") throw new Problem(0, "address", "Browsers make no passkeys at this address.", "Open Farebox by its https name; on this machine as http://localhost.");
  throw new Problem(0, "no-passkeys", "This browser cannot use passkeys.", "Take a newer one, or sign in another way.");
}

/** The browser knows these since 2024; what is typed here comes later than that. */
interface FromJson { parseCreationOptionsFromJSON(said: unknown): PublicKeyCredentialCreationOptions; parseRequestOptionsFromJSON(said: unknown): PublicKeyCredentialRequestOptions }
const json = () => PublicKeyCredential as unknown as FromJson;
const told = (credential: Credential | null): unknown => (credential as PublicKeyCredential & { toJSON(): unknown }).toJSON();

export async function signInByPasskey(): Promise<Session> {
  try {
    const options = json().parseRequestOptionsFromJSON(await post("/auth/passkey/options", {}));
    return await post<Session>("/auth/passkey", { credential: told(await navigator.credentials.get({ publicKey: options })) });
  } catch (error) { return plain(error); }
}

async function make(name: string): Promise<void> {
  try {
    const options = json().parseCreationOptionsFromJSON(await post("/auth/passkeys/options", {}));
    await post("/auth/passkeys", { name, credential: told(await navigator.credentials.create({ publicKey: options })) });
  } catch (error) { plain(error); }
}

export function Passkeys() {
  const passkeys = useQuery({ queryKey: ["passkeys"], queryFn: () => get<Passkey[]>("/auth/passkeys") });
  const [naming, setNaming] = useState(false);
  const add = useChange(make, () => { setNaming(false); notify("The passkey is there. Sign in with it the next time."); });
  const drop = useChange((id: string) => remove(`/auth/passkeys/${id}`), () => notify("The passkey is removed."));
  const leave = () => { add.reset(); setNaming(false); };
  return (
    <Section title="Your passkeys" about="Sign in with your device's PIN, finger or face. Nothing that we store lets anybody in."
      actions={<Button size="xs" leftSection={<Plus size={15} aria-hidden />} onClick={() => setNaming(true)}>Add passkey</Button>}>
      {drop.isError && <Failure error={drop.error} />}
      <Loaded query={passkeys}>{(rows) => rows.length === 0
        ? <Empty icon={Fingerprint} title="No passkeys">A passkey cannot be guessed, phished or leaked from here. Add one for each device, or one that your devices share.</Empty>
        : <Table.ScrollContainer minWidth={480}><Table>
          <Table.Thead><Table.Tr><Table.Th>Name</Table.Th><Table.Th>Made</Table.Th><Table.Th>Last used</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>{rows.map((each) => (
            <Table.Tr key={each.id}>
              <Table.Td>{each.name}{each.synced && <Badge ml="xs" size="xs" variant="default" tt="none">on several devices</Badge>}</Table.Td>
              <Table.Td>{ago(each.created_at)}</Table.Td><Table.Td>{each.last_used_at ? ago(each.last_used_at) : "never"}</Table.Td>
              <Table.Td ta="right"><Button size="compact-xs" variant="default" aria-label={`Remove ${each.name}`} disabled={drop.isPending} onClick={() => drop.mutate(each.id)}>Remove</Button></Table.Td>
            </Table.Tr>
          ))}</Table.Tbody>
        </Table></Table.ScrollContainer>}</Loaded>
      <Dialog opened={naming} onClose={leave} title="Add passkey">
        <form onSubmit={(event) => { event.preventDefault(); add.mutate(String(new FormData(event.currentTarget).get("name"))); }}>
          <Stack>
            {add.isError && <Failure error={add.error} />}
            <TextInput name="name" label="Name" description="By which you tell it from others" placeholder="Laptop" required withAsterisk={false} data-autofocus />
            <Text size="sm" c="dimmed">Your browser asks for the device next.</Text>
            <Ends leave={leave} busy={add.isPending}>Make passkey</Ends>
          </Stack>
        </form>
      </Dialog>
    </Section>
  );
}
