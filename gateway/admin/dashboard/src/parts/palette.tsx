import "@mantine/spotlight/styles.css";
import { Spotlight, spotlight } from "@mantine/spotlight";
import { useNavigate } from "@tanstack/react-router";
import { KeyRound, Search } from "./icons";
import { PLACES } from "../shell";

export const openPalette = (): void => spotlight.open();

/** Everything by keyboard: places, a request by its id, a new key. */
export default function Palette({ may }: { may: string[] }) {
  const navigate = useNavigate();
  const places = PLACES.flatMap(({ places }) => places)
    .filter(({ needs }) => !needs || may.includes(needs))
    .map(({ to, label, about, icon: Icon }) => ({
      id: to, label, description: about, leftSection: <Icon size={18} aria-hidden />, onClick: () => void navigate({ to }),
    }));
  const more = may.includes("keys.create")
    ? [{ id: "new-key", label: "Create key", description: "A virtual key with limits and a budget", leftSection: <KeyRound size={18} aria-hidden />,
        onClick: () => void navigate({ to: "/keys", search: { new: "1" } }) }]
    : [];
  return (
    <Spotlight actions={[...places, ...more]} shortcut={null} highlightQuery nothingFound="Nothing by that name"
      searchProps={{ leftSection: <Search size={18} aria-hidden />, placeholder: "Go to a page or start something", "aria-label": "Search pages and commands" }} />
  );
}
