import { Badge, Button, Code, Group, Modal, NumberInput, PasswordInput, Select, Stack, Table, Tabs, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { Bot, UserPlus } from "../parts/icons";
import { useState } from "react";
import { get, patch, post, put, remove, type IssuedToken, type Link as SignInLink, type Role, type Settings, type Token, type User } from "../api";
import { useChange } from "../change";
import { ago, dateTime, words } from "../format";
import { Facts, Once, Section, State } from "../parts/bits";
import { Dialog, Ends } from "../parts/dialog";
import { notify } from "../parts/notify";
import { Page } from "../parts/page";
import { Empty, Failure, Loaded } from "../parts/states";
import { useMay, useSession, useTab } from "../session";

const route = getRouteApi("/shell/settings");
const ROLES: { value: Role; label: string }[] = [
  { value: "viewer", label: "Viewer: sees usage" }, { value: "developer", label: "Developer: makes keys" }, { value: "finance", label: "Finance: money, prices, budgets" },
  { value: "member", label: "Member: only what Organisation says" }, { value: "team_lead", label: "Team lead: people, keys and budgets" },
  { value: "admin", label: "Admin: people and everything above" }, { value: "owner", label: "Owner: everything" },
];

export default function SettingsPage() {
  const { tab: asked } = route.useSearch() as { tab?: string };
  const tab = useTab(asked, "you", { people: "users.list", tokens: "tokens.list", system: "settings.read" });
  const navigate = route.useNavigate();
  const may = useMay();
  return (
    <Page title="Settings">
      <Tabs value={tab} onChange={(next) => void navigate({ search: { tab: next ?? undefined } as never })} keepMounted={false}>
        <Tabs.List mb="md" aria-label="Settings">
          <Tabs.Tab value="you">You</Tabs.Tab>
          {may("users.list") && <Tabs.Tab value="people">People</Tabs.Tab>}
          {may("tokens.list") && <Tabs.Tab value="tokens">API tokens</Tabs.Tab>}
          {may("settings.read") && <Tabs.Tab value="system">System</Tabs.Tab>}
        </Tabs.List>
        <Tabs.Panel value="you"><You /></Tabs.Panel>
        <Tabs.Panel value="people"><People /></Tabs.Panel>
        <Tabs.Panel value="tokens"><Tokens /></Tabs.Panel>
        <Tabs.Panel value="system"><System /></Tabs.Panel>
      </Tabs>
    </Page>
  );
}

function You() {
  const session = useSession();
  const save = useChange((said: { password: string; current?: string }) => put("/auth/password", said), () => notify("Your password is set. Other sessions of yours have ended."));
  return (
    <Section title="Your password" about={`Signed in as ${session?.name}, ${words(session?.role ?? "").toLowerCase()}`}>
      <form onSubmit={(event) => {
        event.preventDefault();
        const said = new FormData(event.currentTarget);
        save.mutate({ password: String(said.get("password")), ...(session?.has_password ? { current: String(said.get("current")) } : {}) });
        event.currentTarget.reset();
      }}>
        <Stack maw={380}>
          {save.isError && <Failure error={save.error} />}
          {session?.has_password && <PasswordInput name="current" label="Current password" autoComplete="current-password" required withAsterisk={false} visibilityToggleButtonProps={{ "aria-label": "Show the password" }} />}
          <PasswordInput name="password" label="New password" description="At least ten characters" autoComplete="new-password" minLength={10} required withAsterisk={false} visibilityToggleButtonProps={{ "aria-label": "Show the password" }} />
          <Button type="submit" loading={save.isPending} w="fit-content">{session?.has_password ? "Change password" : "Set password"}</Button>
        </Stack>
      </form>
    </Section>
  );
}

function People() {
  const session = useSession();
  const people = useQuery({ queryKey: ["users"], queryFn: () => get<User[]>("/users") });
  const [adding, setAdding] = useState(false);
  const [link, setLink] = useState<SignInLink | null>(null);
  const add = useChange((said: { name: string; role: string }) => post<SignInLink>("/users", said), (made) => { setAdding(false); setLink(made); });
  const leave = () => { add.reset(); setAdding(false); };
  const change = useChange(({ id, ...said }: { id: string; role?: string; disabled?: boolean }) => patch(`/users/${id}`, said));
  const invite = useChange((id: string) => post<SignInLink>(`/users/${id}/link`, {}), setLink);
  const failed = change.error ?? invite.error;
  return (
    <Section title="People" actions={<Button size="xs" leftSection={<UserPlus size={15} aria-hidden />} onClick={() => setAdding(true)}>Add person</Button>}>
      {failed && <Failure error={failed} />}
      <Loaded query={people}>{(rows) => (
        <Table.ScrollContainer minWidth={640}>
          <Table>
            <Table.Thead><Table.Tr><Table.Th>Name</Table.Th><Table.Th>Role</Table.Th><Table.Th>Signs in by</Table.Th><Table.Th>Since</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>{rows.map((user) => (
              <Table.Tr key={user.id}>
                <Table.Td>{user.name}{user.id === session?.user_id && <Badge ml="xs" size="xs" variant="default" tt="none">you</Badge>}{user.disabled && <Badge ml="xs" size="xs" color="gray" variant="light" tt="none" styles={{ label: { color: "var(--mantine-color-text)" } }}>disabled</Badge>}</Table.Td>
                <Table.Td><Select size="xs" w={130} aria-label={`Role of ${user.name}`} value={user.role} allowDeselect={false} disabled={user.id === session?.user_id || change.isPending} data={ROLES.map(({ value }) => ({ value, label: words(value) }))} onChange={(role) => role && change.mutate({ id: user.id, role })} /></Table.Td>
                <Table.Td>{user.has_password ? "password" : "link"}</Table.Td>
                <Table.Td>{ago(user.created_at)}</Table.Td>
                <Table.Td><Group gap="xs" justify="flex-end" wrap="nowrap">
                  <Button size="compact-xs" variant="default" disabled={user.disabled || invite.isPending} onClick={() => invite.mutate(user.id)}>New link</Button>
                  {user.id !== session?.user_id && <Button size="compact-xs" variant="default" disabled={change.isPending} onClick={() => change.mutate({ id: user.id, disabled: !user.disabled })}>{user.disabled ? "Enable" : "Disable"}</Button>}
                </Group></Table.Td>
              </Table.Tr>
            ))}</Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}</Loaded>
      <Dialog opened={adding} onClose={leave} title="Add person">
        <form onSubmit={(event) => { event.preventDefault(); const said = new FormData(event.currentTarget); add.mutate({ name: String(said.get("name")), role: String(said.get("role")) }); }}>
          <Stack>
            {add.isError && <Failure error={add.error} />}
            <TextInput name="name" label="Name" required withAsterisk={false} data-autofocus />
            <Select name="role" label="Role" defaultValue="viewer" allowDeselect={false} data={ROLES} />
            <Ends leave={leave} busy={add.isPending}>Add</Ends>
          </Stack>
        </form>
      </Dialog>
      <Modal opened={link !== null} onClose={() => setLink(null)} title="Sign-in link" size="lg">{link && <Once secret={link.url} done={() => setLink(null)}>Works once, until {dateTime(link.expires_at)}. Send it over a channel you trust.</Once>}</Modal>
    </Section>
  );
}

function Tokens() {
  const session = useSession();
  const tokens = useQuery({ queryKey: ["tokens"], queryFn: () => get<Token[]>("/tokens") });
  const [adding, setAdding] = useState(false);
  const [issued, setIssued] = useState<IssuedToken | null>(null);
  const add = useChange((said: { name: string; role: string; days: number | null }) => post<IssuedToken>("/tokens", said), (made) => { setAdding(false); setIssued(made); });
  const leave = () => { add.reset(); setAdding(false); };
  const revoke = useChange((id: string) => remove(`/tokens/${id}`));
  const button = <Button size="xs" leftSection={<Bot size={15} aria-hidden />} onClick={() => setAdding(true)}>Create token</Button>;
  return (
    <Section title="API tokens" about="For programs that use the admin API. Send it as Bearer." actions={button}>
      {revoke.isError && <Failure error={revoke.error} />}
      <Loaded query={tokens}>{(rows) => rows.length === 0
        ? <Empty icon={Bot} title="No tokens">Terraform, scripts and CI sign in with a token instead of a password.</Empty>
        : <Table><Table.Thead><Table.Tr><Table.Th>Name</Table.Th><Table.Th>Role</Table.Th><Table.Th>Made</Table.Th><Table.Th>Expires</Table.Th><Table.Th>State</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>{rows.map((token) => (
            <Table.Tr key={token.id}><Table.Td>{token.name}</Table.Td><Table.Td>{words(token.role)}</Table.Td><Table.Td>{ago(token.created_at)}</Table.Td><Table.Td>{token.expires_at ? dateTime(token.expires_at) : "never"}</Table.Td><Table.Td><State name={token.revoked ? "revoked" : "active"} /></Table.Td>
              <Table.Td ta="right">{!token.revoked && <Button size="compact-xs" variant="default" aria-label={`Revoke ${token.name}`} disabled={revoke.isPending} onClick={() => revoke.mutate(token.id)}>Revoke</Button>}</Table.Td></Table.Tr>
          ))}</Table.Tbody></Table>}</Loaded>
      <Dialog opened={adding} onClose={leave} title="Create token">
        <form onSubmit={(event) => { event.preventDefault(); const said = new FormData(event.currentTarget); add.mutate({ name: String(said.get("name")), role: String(said.get("role")), days: said.get("days") ? Number(said.get("days")) : null }); }}>
          <Stack>
            {add.isError && <Failure error={add.error} />}
            <TextInput name="name" label="Name" required withAsterisk={false} data-autofocus />
            <Select name="role" label="Role" description="No more than your own" defaultValue={session?.role ?? "viewer"} allowDeselect={false} data={ROLES} />
            <NumberInput name="days" label="Expires after days" placeholder="never" min={1} allowDecimal={false} hideControls />
            <Ends leave={leave} busy={add.isPending}>Create</Ends>
          </Stack>
        </form>
      </Dialog>
      <Modal opened={issued !== null} onClose={() => setIssued(null)} title="Your new token" size="lg">{issued && <Once secret={issued.secret} done={() => setIssued(null)}>Copy it now: it is stored only as a hash and cannot be shown again.</Once>}</Modal>
    </Section>
  );
}

function System() {
  const settings = useQuery({ queryKey: ["settings"], queryFn: () => get<Settings>("/settings") });
  return (
    <Loaded query={settings}>{(data) => (
      <Stack>
        <Section title="This installation"><Facts rows={[["Version", data.version], ["Address", data.base_url], ["Database", data.database]]} /></Section>
        <Section title="Settings" about="As loaded; secrets are shown as references. They change in the file or the environment.">
          <Code block fz={12} tabIndex={0} aria-label="Settings as JSON" mah={460} style={{ overflow: "auto" }}>{JSON.stringify(data.settings, null, 2)}</Code>
        </Section>
      </Stack>
    )}</Loaded>
  );
}
