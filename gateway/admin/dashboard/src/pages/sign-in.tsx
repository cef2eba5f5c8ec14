import { Anchor, Box, Button, Card, Center, PasswordInput, Stack, Text, TextInput, Title } from "@mantine/core";
import { useDocumentTitle } from "@mantine/hooks";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { getRouteApi, useRouter } from "@tanstack/react-router";
import { useEffect, useState } from "react";
import { begun, post, put, type Session } from "../api";
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
  const { next } = route.useSearch();
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
                <TextInput name="name" label="Name" autoComplete="username" required withAsterisk={false} autoFocus />
                <PasswordInput name="password" label="Password" autoComplete="current-password" required withAsterisk={false} visibilityToggleButtonProps={{ "aria-label": "Show the password" }} />
                <Button type="submit" loading={byPassword.isPending} fullWidth>Sign in</Button>
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
