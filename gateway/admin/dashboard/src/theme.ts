import { createTheme, type CSSVariablesResolver, type MantineColorsTuple } from "@mantine/core";

// Two hues carry meaning: teal is ours, amber is attention. Shade 7 on white and 4 on dark keep 4.5:1.
const teal: MantineColorsTuple = [
  "#effaf8", "#d5f2ed", "#abe4db", "#79d1c5", "#43b8aa", "#1f9c8f", "#128478", "#0f766e", "#0d5f59", "#0a4743",
];

// Greys with a breath of the same hue, so that cards and page belong together.
const dark: MantineColorsTuple = [
  "#dfe5e6", "#c3ccce", "#94a0a3", "#6b777a", "#364043", "#2b3436", "#1a2022", "#14191a", "#101415", "#0b0e0f",
];

export const theme = createTheme({
  primaryColor: "teal",
  primaryShade: { light: 7, dark: 6 },
  colors: { teal, dark },
  fontFamily: '"Inter Variable", system-ui, sans-serif',
  fontFamilyMonospace: 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace',
  defaultRadius: "md",
  // Who wants no motion gets none: a dialog is where it will be from its first frame, also for whoever clicks at once.
  respectReducedMotion: true,
  headings: { fontWeight: "620", sizes: { h1: { fontSize: "1.5rem", lineHeight: "1.3" }, h2: { fontSize: "1.05rem", lineHeight: "1.4" } } },
  cursorType: "pointer",
  components: {
    Card: { defaultProps: { withBorder: true, padding: "lg", radius: "lg" } },
    // Of its own colour on its own tint, a title falls short of 4.5:1.
    Alert: { styles: { title: { color: "var(--mantine-color-text)" } } },
    Notification: { defaultProps: { closeButtonProps: { "aria-label": "Close" } } },
    // A keyboard has to reach what is scrolled, also where nothing in the table can be focused.
    TableScrollContainer: { defaultProps: { scrollAreaProps: { viewportProps: { tabIndex: 0 } } } },
    Table: { defaultProps: { verticalSpacing: "sm", highlightOnHover: true } },
    Modal: { defaultProps: { centered: true, radius: "lg", closeButtonProps: { "aria-label": "Close" } }, styles: { title: { fontWeight: 600 } } },
    Drawer: { defaultProps: { position: "right", size: "lg", closeButtonProps: { "aria-label": "Close" } } },
  },
});

/** Mantine's grey text falls short of 4.5:1; these do not. */
export const variables: CSSVariablesResolver = () => ({
  variables: {},
  light: {
    "--mantine-color-body": "#ffffff",
    "--mantine-color-dimmed": "#55606b",
    "--mantine-color-placeholder": "#66717c",
    "--fb-page": "#f6f8f8",
    "--fb-line": "#e3e8e8",
    "--fb-grid": "#e9eeee",
  },
  dark: {
    "--mantine-color-body": "#14191a",
    "--mantine-color-dimmed": "#a4aeb2",
    "--mantine-color-placeholder": "#98a2a7",
    "--fb-page": "#0e1213",
    "--fb-line": "#2a3133",
    "--fb-grid": "#242b2d",
  },
});

/** For series in charts, in this order; apart for colour-blind eyes in lightness too. Both themes' CSS is in app.css. */
export const series = (index: number): string => `var(--fb-series-${index % 8})`;
