const NAME = "fb-notify";

/** Tell that something worked. What shows it is loaded when there is something to show. */
export const notify = (message: string): void => {
  void import("@mantine/notifications").then(({ notifications }) => {
    notifications.show({ message, color: "teal" });
    window.dispatchEvent(new Event(NAME));
  });
};

export const onFirstNotice = (then: () => void): (() => void) => {
  window.addEventListener(NAME, then, { once: true });
  return () => window.removeEventListener(NAME, then);
};
