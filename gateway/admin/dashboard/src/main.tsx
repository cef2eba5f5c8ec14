import "@fontsource-variable/inter/wght.css";
import "@mantine/core/styles.css";
import "./app.css";
import { MantineProvider } from "@mantine/core";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { lazy, StrictMode, Suspense, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { onSignedOut, Problem } from "./api";
import { onFirstNotice } from "./parts/notify";
import { router } from "./router";
import { theme, variables } from "./theme";

const queries = new QueryClient({
  defaultOptions: {
    // What this asks may be on this very machine: a browser that takes itself for offline asks all the same, and a change
    // fails now, in sight, rather than being sent when the network is back.
    mutations: { networkMode: "always" },
    queries: {
      networkMode: "always",
      staleTime: 10_000,
      // What the server refused it will refuse again; what did not arrive may.
      retry: (times, error) => times < 3 && error instanceof Problem && (error.status === 0 || error.status >= 502),
    },
  },
});
onSignedOut(() => queries.setQueryData(["session"], null));

// A page that was open while another version was installed asks for parts that are gone: loaded anew, it has the new
// ones. Once in a while, since what is missing then is missing for another reason.
addEventListener("vite:preloadError", () => {
  const last = Number(sessionStorage.getItem("fb-reloaded") ?? 0);
  if (Date.now() - last < 30_000) return;
  sessionStorage.setItem("fb-reloaded", String(Date.now()));
  location.reload();
});

const Toasts = lazy(() => import("./parts/toasts"));

function Notices() {
  const [wanted, setWanted] = useState(false);
  useEffect(() => onFirstNotice(() => setWanted(true)), []);
  return wanted && <Suspense><Toasts /></Suspense>;
}

const nonce = document.querySelector<HTMLMetaElement>('meta[name="csp-nonce"]')?.content ?? "";
// What keeps the page from scrolling behind a dialog asks for the nonce under this name.
(globalThis as { __webpack_nonce__?: string }).__webpack_nonce__ = nonce;
const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <MantineProvider theme={theme} cssVariablesResolver={variables} defaultColorScheme="auto" getStyleNonce={() => nonce}>
        <QueryClientProvider client={queries}>
          <Notices />
          <RouterProvider router={router} />
        </QueryClientProvider>
      </MantineProvider>
    </StrictMode>,
  );
}
