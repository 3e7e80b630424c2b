// Small plots: SVG that takes its colours from the page.

import type { Spread } from "./record";
import { num } from "./record";

const W = 420;
const H = 150;
const LEFT = 8;
const BOTTOM = 22;
const FINEST = 130; // bars or lines: more are a comb, not a shape

export interface Series { spread: Spread; scale: number; label: string; kind: string }
export interface Line { at: number; label: string; kind: string }

/** Histograms over one axis in real units, each as high as the plot; lines across, and ticks of a grid. */
export function Histogram({ series, lines = [], grid, label }: { series: Series[]; lines?: Line[]; grid?: number | undefined; label: string }) {
  const ranges = series.map(extent);
  const low = Math.min(...ranges.map((r) => r[0]), ...lines.map((l) => l.at));
  const high = Math.max(...ranges.map((r) => r[1]), ...lines.map((l) => l.at));
  const margin = high > low ? 0.03 * (high - low) : 1;
  const [from, to] = [low - margin, high + margin];
  const x = (value: number) => LEFT + ((W - 2 * LEFT) * (value - from)) / (to - from);
  const ticks = nice(from, to);
  const steps = grid ? Math.floor((to - from) / grid) : 0;
  return (
    <figure class="chart">
      <svg viewBox={`0 0 ${W} ${H}`} role="img" aria-label={label}>
        {grid !== undefined && steps > 0 && steps <= FINEST && (
          <g class="grid">
            {Array.from({ length: steps + 1 }, (_, i) => (Math.ceil(from / grid) + i) * grid).filter((v) => v <= to).map((v) => (
              <line key={v} x1={x(v)} x2={x(v)} y1={8} y2={H - BOTTOM} />
            ))}
          </g>
        )}
        {series.map((s, i) => <Bars key={s.label} series={s} range={ranges[i] as [number, number]} x={x} />)}
        <line class="axis" x1={LEFT} x2={W - LEFT} y1={H - BOTTOM} y2={H - BOTTOM} />
        {ticks.map((t) => (
          <g key={t} class="tick">
            <line x1={x(t)} x2={x(t)} y1={H - BOTTOM} y2={H - BOTTOM + 4} />
            <text x={x(t)} y={H - 6} text-anchor="middle">{format(t)}</text>
          </g>
        ))}
        {lines.map((l, i) => (
          <g key={l.label} class={`rule ${l.kind}`}>
            <line x1={x(l.at)} x2={x(l.at)} y1={4} y2={H - BOTTOM} />
            <text x={x(l.at) + (l.at > (from + to) / 2 ? -4 : 4)} y={14 + 12 * i} text-anchor={l.at > (from + to) / 2 ? "end" : "start"}>{l.label}</text>
          </g>
        ))}
      </svg>
      <figcaption>
        {series.map((s) => <span key={s.label} class={`key ${s.kind}`}>{s.label}</span>)}
        {grid !== undefined && <span class="key gridkey">{steps > FINEST ? `grid of ${format(grid)} (too fine to draw)` : `grid of ${format(grid)}`}</span>}
      </figcaption>
    </figure>
  );
}

function extent({ spread, scale }: Series): [number, number] {
  const low = (num(spread.min) ?? 0) * scale;
  const high = (num(spread.max) ?? 0) * scale;
  return low <= high ? [low, high] : [high, low];
}

function Bars({ series, range: [low, high], x }: { series: Series; range: [number, number]; x: (v: number) => number }) {
  const counts = merged(series.spread.histogram, FINEST)
  if (!counts.length || high <= low) {
    return <line class={`bars ${series.kind}`} x1={x(low)} x2={x(low)} y1={14} y2={H - BOTTOM} stroke-width={3} />;
  }
  // The square root: a peak at zero, as activations have it, must not hide the rest.
  const top = Math.sqrt(Math.max(...counts));
  const ordered = series.scale < 0 ? [...counts].reverse() : counts;
  const step = (high - low) / counts.length;
  let path = `M${x(low).toFixed(1)},${H - BOTTOM}`;
  ordered.forEach((n, i) => {
    const y = H - BOTTOM - (H - BOTTOM - 14) * (Math.sqrt(n) / top);
    path += `L${x(low + i * step).toFixed(1)},${y.toFixed(1)}L${x(low + (i + 1) * step).toFixed(1)},${y.toFixed(1)}`;
  });
  return <path class={`bars ${series.kind}`} d={`${path}L${x(high).toFixed(1)},${H - BOTTOM}z`} />;
}

export function Spark({ spread, label }: { spread: Spread; label: string }) {
  const counts = merged(spread.histogram, 32);
  const top = Math.sqrt(Math.max(1, ...counts));
  return (
    <svg class="spark" viewBox={`0 0 ${Math.max(1, counts.length) * 3} 20`} preserveAspectRatio="none" role="img" aria-label={label}>
      {counts.map((n, i) => {
        const height = (19 * Math.sqrt(n)) / top;
        return <rect key={i} x={3 * i} y={20 - height} width={2.6} height={height} />;
      })}
    </svg>
  );
}

function merged(counts: number[], most: number): number[] {
  const each = Math.ceil(counts.length / most);
  if (each <= 1) return counts;
  const found: number[] = [];
  counts.forEach((n, i) => (found[Math.floor(i / each)] = (found[Math.floor(i / each)] ?? 0) + n));
  return found;
}

/** A bar for each name. */
export function BarList({ rows, label, unit = "" }: { rows: { name: string; value: number; lit?: boolean; act?: () => void }[]; label: string; unit?: string }) {
  const top = Math.max(1e-12, ...rows.map((r) => r.value));
  return (
    <ul class="barlist" aria-label={label}>
      {rows.map((r) => (
        <li key={r.name} class={r.lit ? "here" : ""}>
          <button type="button" onClick={r.act} disabled={!r.act}>
            <span>{r.name}</span>
            <span class="track"><i style={{ width: `${(100 * r.value) / top}%` }} /></span>
            <span class="value">{format(r.value)}{unit}</span>
          </button>
        </li>
      ))}
    </ul>
  );
}

function nice(from: number, to: number): number[] {
  const rough = (to - from) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) ?? 10);
  const found: number[] = [];
  for (let i = Math.ceil(from / step); i * step <= to; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

export function format(value: number): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });
}

export function count(value: number): string {
  for (const [size, unit] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]] as const) {
    if (value >= 0.9995 * size) return `${(value / size).toPrecision(3)}${unit}`;
  }
  return String(Number(value.toPrecision(3)));
}
