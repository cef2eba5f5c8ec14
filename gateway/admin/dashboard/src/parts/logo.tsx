import { Group, Text } from "@mantine/core";

export function Logo({ size = 26 }: { size?: number }) {
  return (
    <Group gap={9} wrap="nowrap">
      <svg width={size} height={size} viewBox="0 0 32 32" aria-hidden="true">
        <rect width="32" height="32" rx="8" fill="#0f766e" />
        <rect x="9" y="7" width="14" height="3.2" rx="1.6" fill="#fff" />
        <path d="M8 14.5a2 2 0 0 1 2-2h12a2 2 0 0 1 2 2V23a2 2 0 0 1-2 2H10a2 2 0 0 1-2-2z" fill="#fff" fillOpacity=".28" />
        <circle cx="16" cy="18.7" r="3.1" fill="#fff" />
      </svg>
      <Text fw={680} size="lg" lts="-0.02em">Farebox</Text>
    </Group>
  );
}
