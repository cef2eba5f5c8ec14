import { Menu, Text } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { LogOut, Settings } from "./icons";

/** The account's menu, loaded when it is opened for the first time. */
export default function PersonMenu({ name, role, leave, children }: { name: string; role: string; leave: () => void; children: ReactNode }) {
  return (
    <Menu position="bottom-end" width={220} defaultOpened>
      <Menu.Target>{children}</Menu.Target>
      <Menu.Dropdown>
        <Menu.Label><Text size="sm" fw={600} c="var(--mantine-color-text)">{name}</Text>{role}</Menu.Label>
        <Menu.Item leftSection={<Settings size={15} aria-hidden />} component={Link} to="/settings">Settings</Menu.Item>
        <Menu.Item leftSection={<LogOut size={15} aria-hidden />} onClick={leave}>Sign out</Menu.Item>
      </Menu.Dropdown>
    </Menu>
  );
}
