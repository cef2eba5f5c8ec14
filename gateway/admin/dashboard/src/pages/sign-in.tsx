import { Anchor, Box, Button, Card, Center, Divider, PasswordInput, Stack, Text, TextInput, Title } from "@mantine/core";
import { useDocumentTitle } from "@mantine/hooks";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { getRouteApi, useRouter } from "@tanstack/react-router";
import { useEffect, useState } from "react";
import { begun, get, post, put, Problem, type Session, type WaysIn } from "../api";
import { Logo } from "../parts/logo";
import { Failure, Loading } from "../parts/states";
import { sessionQuery } from "../session";

const route = getRouteApi("/sign-in");

/** The token of a one-time link stands behind `#`, where no server log can see it; it is taken out of the address at once. */
function takeToken(): string | null {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) history.replaceState(null, "", location.pathname + location.search);
  return token;
}
let pending = takeToken();

export default function SignIn() {
  useDocumentTitle("Sign in · Farebox");
  const queries = useQueryClient();
  const { next, problem } = route.useSearch();
  const ways = useQuery({ queryKey: ["ways"], queryFn: () => get<WaysIn>("/auth/ways"), staleTime: 60_000 }).data;
  const router = useRouter();
  const session = useQuery(sessionQuery);
  const [welcome, setWelcome] = useState<Session | null>(null);
  const go = () => {
    // Only to pages of ours: an address from outside must not become a way out.
    if (next && /^\/(ui\/)?[a-z]/.test(next) && !next.includes("//")) router.history.push(next.startsWith("/ui/") ? next : `/ui${next}`);
    else void router.navigate({ to: "/overview" });
  };
  const enter = (said: Session) => {
    begun(said);
    if (said.has_password) { queries.setQueryData(["session"], said); go(); } else setWelcome(said);
  };
  const byLink = useMutation({ mutationFn: (token: string) => post<Session>("/auth/link", { token }), onSuccess: enter });
  const byPassword = useMutation({ mutationFn: (said: { name: string; password: string }) => post<Session>("/auth/password", said), onSuccess: enter });
  // Loaded with the first click: most people never need it on this page.
  const byPasskey = useMutation({
    mutationFn: async () => (await import("../parts/passkeys")).signInByPasskey(),
    onSuccess: (said) => { begun(said); queries.setQueryData(["session"], said); go(); },
  });
  const { mutate } = byLink;
  useEffect(() => {
    if (pending) { mutate(pending); pending = null; }
  }, [mutate]);
  const done = () => { if (welcome) queries.setQueryData(["session"], { ...welcome, has_password: true }); void queries.invalidateQueries({ queryKey: ["session"] }); go(); };
  const already = !welcome && session.data;
  useEffect(() => { if (already && !byLink.isPending && !byPassword.isPending) go(); });

  return (
    <Center component="main" mih="100vh" p="md">
      <Stack w={380} gap="xl">
        <Center><Logo size={34} /></Center>
        <Card className="fb-card" shadow="sm" p="xl">
          {byLink.isPending ? <Loading label="Signing in" /> : welcome ? <FirstPassword session={welcome} done={done} /> : (
            <form onSubmit={(event) => {
              event.preventDefault();
              const said = new FormData(event.currentTarget);
              byPassword.mutate({ name: String(said.get("name")), password: String(said.get("password")) });
            }}>
              <Stack>
                <Title order={1} fz="lg">Sign in</Title>
                {byLink.isError && <Failure error={byLink.error} />}
                {byPassword.isError && <Failure error={byPassword.error} />}
                {byPasskey.isError && <Failure error={byPasskey.error} />}
                {problem && !byPassword.isError && !byPasskey.isError && <Failure error={troubled(problem)} />}
                {ways?.providers.map(({ name, label }) => (
                  <Button key={name} component="a" href={`/admin/v1/auth/oidc/${name}/begin?next=${encodeURIComponent(onward(next))}`} variant={ways.passwords ? "default" : "filled"} fullWidth>Sign in with {label}</Button>
                ))}
                {ways?.passkeys && <Button variant="default" fullWidth loading={byPasskey.isPending} onClick={() => byPasskey.mutate()}>Sign in with a passkey</Button>}
                {ways?.passwords !== false && <>
                {ways && (ways.passkeys || ways.providers.length > 0) && <Divider label="or" />}
                <TextInput name="name" label="Name" autoComplete="username" required withAsterisk={false} autoFocus />
                <PasswordInput name="password" label="Password" autoComplete="current-password" required withAsterisk={false} visibilityToggleButtonProps={{ "aria-label": "Show the password" }} />
                <Button type="submit" loading={byPassword.isPending} fullWidth>Sign in</Button>
                </>}
                <Text size="xs" c="dimmed">The first time, use the link that <b>farebox up</b> prints. Lost your password? An admin can give you a new link.</Text>
              </Stack>
            </form>
          )}
        </Card>
        <Box ta="center"><Text size="xs" c="dimmed">Any SDK in, any provider out, every token paid for exactly once.</Text></Box>
      </Stack>
    </Center>
  );
}

/** A page of ours, as it stands behind /ui. */
const onward = (next: string | undefined): string => (next && /^\/(ui\/)?[a-z]/.test(next) && !next.includes("//") ? next.replace(/^\/ui/, "") : "/overview");

/** What went wrong on the way to a provider and back: the server says which, the words are here. */
const PROBLEMS: Record<string, [string, string]> = {
  "away": ["The sign-on provider does not answer.", "Try again in a moment. An owner can still get in by a link that farebox users link prints."],
  "misconfigured": ["Single sign-on is not set up right.", "Tell an owner: the gateway's log names what does not fit."],
  "unknown-provider": ["There is no such provider here.", "Choose one of those below."],
  "stale": ["This sign-in was begun elsewhere, or took too long.", "Begin again from here."],
  "denied": ["The provider says that you declined.", "Begin again, and allow it."],
  "not-admitted": ["You are signed in there, but may not enter here.", "Ask an owner to add you, or your group."],
  "not-known": ["Nobody here goes by this identity.", "Ask an owner to invite you first."],
  "disabled": ["You are disabled here.", "Ask an owner or admin."],
  "too-many-attempts": ["Too many failed sign-ins.", "Wait a quarter of an hour."],
};
const troubled = (kind: string): Problem => {
  const [what, todo] = PROBLEMS[kind] ?? ["The provider's answer was not accepted.", "Begin again. If it stays, tell an owner: the gateway's log says why."];
  return new Problem(0, kind, what, todo);
};

function FirstPassword({ session, done }: { session: Session; done: () => void }) {
  const save = useMutation({ mutationFn: (password: string) => put("/auth/password", { password }), onSuccess: done });
  return (
    <form onSubmit={(event) => { event.preventDefault(); save.mutate(String(new FormData(event.currentTarget).get("password"))); }}>
      <Stack>
        <div>
          <Title order={1} fz="lg">Welcome, {session.name}</Title>
          <Text size="sm" c="dimmed">The link worked, and works only once. Set a password to come back with.</Text>
        </div>
        {save.isError && <Failure error={save.error} />}
        <TextInput label="Name" value={session.name} readOnly autoComplete="username" />
        <PasswordInput name="password" label="New password" description="At least ten characters" autoComplete="new-password" required withAsterisk={false} minLength={10} autoFocus visibilityToggleButtonProps={{ "aria-label": "Show the password" }} />
        <Button type="submit" loading={save.isPending} fullWidth>Set password</Button>
        <Anchor component="button" type="button" size="sm" onClick={done}>Not now</Anchor>
      </Stack>
    </form>
  );
}
