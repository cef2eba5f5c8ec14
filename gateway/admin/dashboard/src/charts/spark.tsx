/** A small line without axes. Its number stands beside it, so it is hidden from screen readers. */
export function Spark({ values, width = 96, height = 30 }: { values: number[]; width?: number; height?: number }) {
  if (values.length < 2) return null;
  const top = Math.max(...values, 1e-12);
  const points = values.map((value, index) => [(index / (values.length - 1)) * width, 2 + (height - 4) * (1 - value / top)] as const);
  const line = points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  return (
    <svg width={width} height={height} aria-hidden="true" style={{ overflow: "visible" }}>
      <path d={`${line}L${width} ${height}L0 ${height}Z`} fill="var(--mantine-primary-color-filled)" opacity={0.12} />
      <path d={line} fill="none" stroke="var(--mantine-primary-color-filled)" strokeWidth={1.6} strokeLinejoin="round" strokeLinecap="round" />
    </svg>
  );
}
