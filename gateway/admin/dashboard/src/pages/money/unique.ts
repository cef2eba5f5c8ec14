/** A fresh idempotency key. randomUUID is there on HTTPS and loopback alone. */
export const unique = (): string => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
