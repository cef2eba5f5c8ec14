import { Button, Group, Modal, type ModalProps } from "@mantine/core";
import { useIsMutating, useQueryClient } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { CHANGE } from "../change";

/** A dialog stays while a change is on its way: closed before, nobody would see a new secret, or what went wrong. */
export function Dialog({ onClose, ...props }: ModalProps) {
  const queries = useQueryClient();
  return <Modal {...props} onClose={() => { if (queries.isMutating({ mutationKey: CHANGE }) === 0) onClose(); }} />;
}

/** How a dialog ends: left as it was, or sent; by submitting its form where `send` does not say otherwise. */
export function Ends({ busy = false, leave, stay = "Cancel", send, color, disabled = false, children }: { busy?: boolean; leave: () => void; stay?: string; send?: () => void; color?: string | undefined; disabled?: boolean; children: ReactNode }) {
  const changing = useIsMutating({ mutationKey: CHANGE }) > 0;
  return (
    <Group justify="flex-end">
      <Button variant="default" disabled={changing} onClick={leave}>{stay}</Button>
      <Button {...(send ? { onClick: send } : { type: "submit" as const })} {...(color ? { color } : {})} loading={busy} disabled={disabled}>{children}</Button>
    </Group>
  );
}
