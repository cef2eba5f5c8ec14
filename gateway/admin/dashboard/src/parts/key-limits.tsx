import { Group, NumberInput, TagsInput, TextInput } from "@mantine/core";
import { useState } from "react";
import type { Key, NewKey } from "../api";
import { useSession } from "../session";

const SPLIT = "\n";
const number = (value: FormDataEntryValue | null): number | null => (typeof value === "string" && value !== "" ? Number(value.replaceAll(",", "")) : null);
const names = (value: FormDataEntryValue | null): string[] | null => {
  const said = String(value ?? "").split(/\r?\n/).filter(Boolean);
  return said.length ? said : null;
};

/** What a key is bounded by, whether it is being made or changed. */
export function KeyLimits({ of }: { of?: Key }) {
  const role = useSession()?.role;
  const rate = { min: 0, allowDecimal: false, hideControls: true, placeholder: "no limit" } as const;
  return (
    <>
      <Group grow align="flex-end">
        <NumberInput name="rpm" label="Requests a minute" defaultValue={of?.rpm ?? ""} thousandSeparator {...rate} />
        <NumberInput name="tpm" label="Tokens a minute" defaultValue={of?.tpm ?? ""} thousandSeparator {...rate} />
        <NumberInput name="parallel" label="At once" defaultValue={of?.parallel ?? ""} {...rate} />
      </Group>
      <Names name="models" label="Models" about="Names or patterns such as gpt-*; empty permits all" none="all models" now={of?.models} />
      <Names name="addresses" label="Addresses" about="IP addresses or networks; empty permits all" none="from anywhere" now={of?.allow_ips} />
      <Group grow align="flex-end">
        <TextInput name="expires" type="date" label="Expires" description="At the end of that day, in UTC; empty is never" defaultValue={of?.expires_at?.slice(0, 10) ?? ""} />
        {/* What one key is given more of, all others are given less: the installation's administrators alone say it. */}
        {(role === "owner" || role === "admin") && (
          <NumberInput name="weight" label="Weight" description="Its share where requests wait for a deployment" placeholder="1" min={1} max={1000} allowDecimal={false} defaultValue={of && of.weight !== 1 ? of.weight : ""} />
        )}
      </Group>
    </>
  );
}

function Names({ name, label, about, none, now }: { name: string; label: string; about: string; none: string; now?: string[] | null | undefined }) {
  const [said, say] = useState(now ?? []);
  return <TagsInput name={name} label={label} description={about} value={said} onChange={say} placeholder={said.length ? "" : none} hiddenInputValuesDivider={SPLIT} />;
}

type Limits = Pick<NewKey, "rpm" | "tpm" | "parallel" | "models" | "allow_ips" | "expires_at"> & { weight?: number | null };

/** What stands in its fields; null: no limit. A weight only of whom its field was shown to. */
export function limitsIn(said: FormData): Limits {
  const expires = String(said.get("expires") ?? "");
  return {
    rpm: number(said.get("rpm")), tpm: number(said.get("tpm")), parallel: number(said.get("parallel")),
    models: names(said.get("models")), allow_ips: names(said.get("addresses")),
    expires_at: expires ? `${expires}T23:59:59Z` : null,
    ...(said.has("weight") ? { weight: number(said.get("weight")) } : {}),
  };
}
