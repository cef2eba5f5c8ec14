import { Anchor, Badge, Button, Code, Group, Modal, Select, Stack, Table, Tabs, Text, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";
import { get, post, put, remove, type Invited, type IssuedScimToken, type Member, type Organisation, type Project, type Provisioning, type Role, type Team } from "../api";
import { useChange } from "../change";
import { ago, dateTime, words } from "../format";
import { CopyIcon, Facts, Once, Section, State } from "../parts/bits";
import { Dialog, Ends } from "../parts/dialog";
import { Bot, Boxes, KeyRound, UserPlus, Users } from "../parts/icons";
import { notify } from "../parts/notify";
import { Page } from "../parts/page";
import { Passkeys } from "../parts/passkeys";
import { ProjectRoutingForm } from "../parts/project-routing";
import { Empty, Failure, Loaded } from "../parts/states";
import { useMay, useSession, useTab } from "../session";

const route = getRouteApi("/shell/organisation");
const ROLES: { value: Role; label: string }[] = [
  { value: "viewer", label: "Viewer: sees usage" }, { value: "developer", label: "Developer: makes keys" },
  { value: "team_lead", label: "Team lead: people, keys and budgets below" }, { value: "finance", label: "Finance: money and budgets" },
  { value: "admin", label: "Admin: people and everything above" }, { value: "owner", label: "Owner: everything" },
];
const SOURCES: Record<string, string> = { manual: "by hand", scim: "SCIM" };
const source = (name: string): string => SOURCES[name] ?? name.replace("oidc:", "sign-on ");

export default function OrganisationPage() {
  const { tab: asked } = route.useSearch() as { tab?: string };
  const tab = useTab(asked, "members", { "sign-on": "provisioning.read" });
  const navigate = route.useNavigate();
  const may = useMay();
  return (
    <Page title="Organisation" about="Who belongs where, and how they get in.">
      <Tabs value={tab} onChange={(next) => void navigate({ search: { tab: next ?? undefined } as never })} keepMounted={false}>
        <Tabs.List mb="md" aria-label="Organisation">
          <Tabs.Tab value="members">Members</Tabs.Tab>
          <Tabs.Tab value="teams">Teams & projects</Tabs.Tab>
          {may("provisioning.read") && <Tabs.Tab value="sign-on">Sign-on & SCIM</Tabs.Tab>}
          <Tabs.Tab value="passkeys">Your passkeys</Tabs.Tab>
        </Tabs.List>
        <Tabs.Panel value="members"><Members /></Tabs.Panel>
        <Tabs.Panel value="teams"><Teams /></Tabs.Panel>
        <Tabs.Panel value="sign-on"><SignOn /></Tabs.Panel>
        <Tabs.Panel value="passkeys"><Passkeys /></Tabs.Panel>
      </Tabs>
    </Page>
  );
}

/** Everything that one can be a member of, as choices of a Select. */
function usePlaces() {
  const organisations = useQuery({ queryKey: ["organisations"], queryFn: () => get<Organisation[]>("/organisations") });
  const teams = useQuery({ queryKey: ["teams"], queryFn: () => get<Team[]>("/teams") });
  const projects = useQuery({ queryKey: ["projects"], queryFn: () => get<Project[]>("/projects") });
  const choices = [
    { group: "Organisations", items: (organisations.data ?? []).map(({ id, name }) => ({ value: `organisation/${id}`, label: name })) },
    { group: "Teams", items: (teams.data ?? []).map(({ id, name }) => ({ value: `team/${id}`, label: name })) },
    { group: "Projects", items: (projects.data ?? []).map(({ id, name }) => ({ value: `project/${id}`, label: name })) },
  ].filter(({ items }) => items.length > 0);
  return { organisations, teams, projects, choices, known: organisations.isFetched && teams.isFetched && projects.isFetched };
}

function Members() {
  const may = useMay();
  const session = useSession();
  const { choices, known } = usePlaces();
  const members = useQuery({ queryKey: ["members"], queryFn: () => get<Member[]>("/members") });
  const [adding, setAdding] = useState(false);
  const [invited, setInvited] = useState<Invited | null>(null);
  const path = (member: Member) => `/members/${member.scope}/${member.scope_id}/${member.user_id}`;
  const add = useChange(
    ({ place, ...said }: { place: string; name: string; role: string }) => post<Invited>(`/members/${place}`, said),
    (made, { name }) => { setAdding(false); if (made.url) setInvited(made); else notify(`${name} is a member.`); },
  );
  const change = useChange(({ member, role }: { member: Member; role: string | null }) => role ? put<void>(path(member), { role, models: member.models }) : remove<void>(path(member)));
  const leave = () => { add.reset(); setAdding(false); };
  const button = may("members.invite") && <Button size="xs" leftSection={<UserPlus size={15} aria-hidden />} onClick={() => setAdding(true)}>Add member</Button>;
  return (
    <Section title="Members" about="A role in an organisation holds in all its teams and projects. Roles over the whole installation are under Settings, People." actions={button}>
      {change.isError && <Failure error={change.error} />}
      <Loaded query={members}>{(rows) => rows.length === 0
        ? <Empty icon={Users} title="No members yet" action={button}>Give people a role in an organisation, a team or a project, and they see and change that, nothing else.</Empty>
        : <Table.ScrollContainer minWidth={720}><Table>
          <Table.Thead><Table.Tr><Table.Th>Name</Table.Th><Table.Th>Of</Table.Th><Table.Th>Role</Table.Th><Table.Th>Models</Table.Th><Table.Th>Given by</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>{rows.map((member) => {
            const fixed = member.source !== "manual" || !may("members.set");
            return (
              <Table.Tr key={`${member.user_id} ${member.scope_id} ${member.source}`}>
                <Table.Td>{member.name}{member.user_id === session?.user_id && <Badge ml="xs" size="xs" variant="default" tt="none">you</Badge>}{member.disabled && <Badge ml="xs" size="xs" color="gray" variant="light" tt="none" styles={{ label: { color: "var(--mantine-color-text)" } }}>disabled</Badge>}</Table.Td>
                <Table.Td>{member.label} <Text span size="xs" c="dimmed">{member.scope}</Text></Table.Td>
                <Table.Td>{fixed ? words(member.role) : <Select size="xs" w={140} aria-label={`Role of ${member.name} in ${member.label}`} value={member.role} allowDeselect={false} disabled={change.isPending} data={ROLES.map(({ value }) => ({ value, label: words(value) }))} onChange={(role) => role && change.mutate({ member, role })} />}</Table.Td>
                <Table.Td>{member.models ? <Code>{member.models.join(", ")}</Code> : <Text span size="sm" c="dimmed">all</Text>}</Table.Td>
                <Table.Td>{source(member.source)}</Table.Td>
                <Table.Td ta="right">{!fixed && <Button size="compact-xs" variant="default" aria-label={`Remove ${member.name} from ${member.label}`} disabled={change.isPending} onClick={() => change.mutate({ member, role: null })}>Remove</Button>}</Table.Td>
              </Table.Tr>
            );
          })}</Table.Tbody>
        </Table></Table.ScrollContainer>}</Loaded>
      <Dialog opened={adding} onClose={leave} title="Add member">
        <form onSubmit={(event) => { event.preventDefault(); const said = new FormData(event.currentTarget); add.mutate({ place: String(said.get("place")), name: String(said.get("name")), role: String(said.get("role")) }); }}>
          <Stack>
            {add.isError && <Failure error={add.error} />}
            <TextInput name="name" label="Name" description="Of somebody new, or who is known here" required withAsterisk={false} data-autofocus />
            <Select key={known ? "known" : "awaited"} name="place" label="Of" searchable data={choices} defaultValue={choices[0]?.items[0]?.value ?? null} allowDeselect={false} required withAsterisk={false} />
            <Select name="role" label="Role" description="No more than your own there" defaultValue="viewer" allowDeselect={false} data={ROLES} />
            <Ends leave={leave} busy={add.isPending} disabled={!known}>Add</Ends>
          </Stack>
        </form>
      </Dialog>
      <Modal opened={invited !== null} onClose={() => setInvited(null)} title="Sign-in link" size="lg">{invited?.url && invited.expires_at && <Once secret={invited.url} done={() => setInvited(null)}>Works once, until {dateTime(invited.expires_at)}. Send it over a channel you trust.</Once>}</Modal>
    </Section>
  );
}

type Making = "organisation" | "team" | "project" | null;

function Teams() {
  const may = useMay();
  const { organisations, teams, projects } = usePlaces();
  const [making, setMaking] = useState<Making>(null);
  const [routed, setRouted] = useState<Project>();
  const make = useChange(
    ({ what, ...said }: { what: Making; name: string; organisation_id?: string }) => post(`/${what}s`, said),
    (_, { what }) => { notify(`The ${what} is there.`); leave(); },
  );
  const leave = () => { make.reset(); setMaking(null); };
  const join = useChange(({ id, team }: { id: string; team: string | null }) => put(`/projects/${id}/team`, { team_id: team }));
  const homes = (organisations.data ?? []).map(({ id, name }) => ({ value: id, label: name }));
  const actions = (
    <Group gap="xs">
      {may("organisations.create") && <Button size="xs" variant="default" onClick={() => setMaking("organisation")}>New organisation</Button>}
      {may("teams.create") && <Button size="xs" variant="default" onClick={() => setMaking("team")}>New team</Button>}
      {may("projects.create") && <Button size="xs" onClick={() => setMaking("project")}>New project</Button>}
    </Group>
  );
  return (
    <Section title="Teams & projects" about="A project has keys and a bill; a team is several projects under one budget." actions={actions}>
      {join.isError && <Failure error={join.error} />}
      <Loaded query={projects}>{(rows) => rows.length === 0
        ? <Empty icon={Boxes} title="No projects">Make one, and give it keys.</Empty>
        : <Table.ScrollContainer minWidth={640}><Table>
          <Table.Thead><Table.Tr><Table.Th>Project</Table.Th><Table.Th>Organisation</Table.Th><Table.Th>Team</Table.Th><Table.Th ta="right">Keys</Table.Th><Table.Th>Since</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>{rows.map((project) => {
            const inside = (teams.data ?? []).filter(({ organisation_id }) => organisation_id === project.organisation_id);
            const team = inside.find(({ project_ids }) => project_ids.includes(project.id));
            return (
              <Table.Tr key={project.id}>
                <Table.Td>{project.name} <Text span size="xs" c="dimmed" className="fb-mono">{project.id}</Text></Table.Td>
                <Table.Td>{project.organisation}</Table.Td>
                <Table.Td>{may("projects.join") && inside.length > 0
                  ? <Select size="xs" w={170} aria-label={`Team of ${project.name}`} placeholder="none" clearable clearButtonProps={{ "aria-label": `No team for ${project.name}` }} value={team?.id ?? null} disabled={join.isPending} data={inside.map(({ id, name }) => ({ value: id, label: name }))} onChange={(next) => join.mutate({ id: project.id, team: next })} />
                  : team?.name ?? <Text span size="sm" c="dimmed">none</Text>}</Table.Td>
                <Table.Td ta="right" className="fb-num">{project.keys}</Table.Td><Table.Td>{ago(project.created_at)}</Table.Td>
                <Table.Td ta="right"><Anchor component="button" type="button" size="sm" aria-label={`Routing of ${project.name}`} onClick={() => setRouted(project)}>Routing</Anchor></Table.Td>
              </Table.Tr>
            );
          })}</Table.Tbody>
        </Table></Table.ScrollContainer>}</Loaded>
      <ProjectRoutingForm project={routed} close={() => setRouted(undefined)} fixed={!may("project_routing.set")} />
      <Dialog opened={making !== null} onClose={leave} title={`New ${making ?? ""}`}>
        <form onSubmit={(event) => { event.preventDefault(); const said = new FormData(event.currentTarget); const home = said.get("organisation"); make.mutate({ what: making, name: String(said.get("name")), ...(home ? { organisation_id: String(home) } : {}) }); }}>
          <Stack>
            {make.isError && <Failure error={make.error} />}
            <TextInput name="name" label="Name" required withAsterisk={false} data-autofocus />
            {making !== "organisation" && homes.length > 1 && <Select name="organisation" label="Organisation" defaultValue={homes[0]?.value ?? null} allowDeselect={false} data={homes} />}
            <Ends leave={leave} busy={make.isPending} disabled={making !== "organisation" && !organisations.isFetched}>Create</Ends>
          </Stack>
        </form>
      </Dialog>
    </Section>
  );
}

function SignOn() {
  const provisioning = useQuery({ queryKey: ["provisioning"], queryFn: () => get<Provisioning>("/provisioning") });
  return <Loaded query={provisioning}>{(data) => (
    <Stack>
      <Section title="Single sign-on" about="Providers and what their groups grant are set in the configuration file, under [[admin.oidc]] and [[admin.grants]].">
        {data.providers.length === 0
          ? <Empty icon={KeyRound} title="No provider of identities">People sign in with {data.passwords ? "passwords, " : ""}passkeys and links. With OpenID Connect they come by your company's sign-on, and their groups say what they may do.</Empty>
          : <Stack>{data.providers.map((each) => (
            <Facts key={each.name} rows={[
              ["Provider", each.label], ["Issuer", each.issuer], ["Redirect address", <Group gap={4} key="to"><Code>{each.redirect_uri}</Code><CopyIcon text={each.redirect_uri} label={`Copy the redirect address of ${each.label}`} /></Group>],
              ["Newcomers", each.create ? "become people here" : "are refused"], ["Domains", each.domains.join(", ") || "any"], ["People who came by it", String(each.people)],
            ]} />
          ))}</Stack>}
      </Section>
      {data.grants.length > 0 && (
        <Section title="What groups grant" about="Looked at anew with each sign-in, and at once with SCIM.">
          <Table.ScrollContainer minWidth={520}><Table>
            <Table.Thead><Table.Tr><Table.Th>Group</Table.Th><Table.Th>From</Table.Th><Table.Th>Role</Table.Th><Table.Th>In</Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>{data.grants.map((each) => (
              <Table.Tr key={`${each.group} ${each.scope} ${each.scope_id} ${each.role} ${each.source}`}><Table.Td>{each.group}</Table.Td><Table.Td>{each.source === "*" ? "any source" : each.source}</Table.Td><Table.Td>{words(each.role)}</Table.Td><Table.Td>{each.scope} <Text span size="xs" c="dimmed" className="fb-mono">{each.scope_id}</Text></Table.Td></Table.Tr>
            ))}</Table.Tbody>
          </Table></Table.ScrollContainer>
        </Section>
      )}
      <Scim data={data} />
    </Stack>
  )}</Loaded>;
}

function Scim({ data }: { data: Provisioning }) {
  const [naming, setNaming] = useState(false);
  const [issued, setIssued] = useState<IssuedScimToken | null>(null);
  const add = useChange((name: string) => post<IssuedScimToken>("/scim-tokens", { name }), (made) => { setNaming(false); setIssued(made); });
  const leave = () => { add.reset(); setNaming(false); };
  const revoke = useChange((id: string) => remove(`/scim-tokens/${id}`));
  const button = <Button size="xs" leftSection={<Bot size={15} aria-hidden />} onClick={() => setNaming(true)}>Create SCIM token</Button>;
  return (
    <Section title="Provisioning (SCIM 2.0)" about={`${data.scim_people} people and ${data.scim_groups} groups come from outside. Who is switched off there is out here at once.`} actions={button}>
      {revoke.isError && <Failure error={revoke.error} />}
      <Facts rows={[["Address", <Group gap={4} key="at"><Code>{data.scim_url}</Code><CopyIcon text={data.scim_url} label="Copy the SCIM address" /></Group>]]} />
      {data.scim_tokens.length === 0
        ? <Empty icon={Bot} title="No SCIM token">Entra, Okta and others keep people and groups here up to date by themselves, once they have a token.</Empty>
        : <Table.ScrollContainer minWidth={520}><Table>
          <Table.Thead><Table.Tr><Table.Th>Token</Table.Th><Table.Th>Made</Table.Th><Table.Th>Last used</Table.Th><Table.Th>State</Table.Th><Table.Th><span className="fb-skip">Actions</span></Table.Th></Table.Tr></Table.Thead>
          <Table.Tbody>{data.scim_tokens.map((each) => (
            <Table.Tr key={each.id}><Table.Td>{each.name}</Table.Td><Table.Td>{ago(each.created_at)} by {each.created_by}</Table.Td><Table.Td>{each.last_used_at ? ago(each.last_used_at) : "never"}</Table.Td><Table.Td><State name={each.revoked ? "revoked" : "active"} /></Table.Td>
              <Table.Td ta="right">{!each.revoked && <Button size="compact-xs" variant="default" aria-label={`Revoke ${each.name}`} disabled={revoke.isPending} onClick={() => revoke.mutate(each.id)}>Revoke</Button>}</Table.Td></Table.Tr>
          ))}</Table.Tbody>
        </Table></Table.ScrollContainer>}
      <Dialog opened={naming} onClose={leave} title="Create SCIM token">
        <form onSubmit={(event) => { event.preventDefault(); add.mutate(String(new FormData(event.currentTarget).get("name"))); }}>
          <Stack>
            {add.isError && <Failure error={add.error} />}
            <TextInput name="name" label="Name" description="Of what will use it" placeholder="Entra" required withAsterisk={false} data-autofocus />
            <Ends leave={leave} busy={add.isPending}>Create</Ends>
          </Stack>
        </form>
      </Dialog>
      <Modal opened={issued !== null} onClose={() => setIssued(null)} title="Your new SCIM token" size="lg">{issued && <Once secret={issued.secret} done={() => setIssued(null)}>Copy it now: it is stored only as a hash and cannot be shown again.</Once>}</Modal>
    </Section>
  );
}
