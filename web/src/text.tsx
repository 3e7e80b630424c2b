// Two stages as MLIR side by side: nodes stand beside what they were, and what differs is marked word by word.

import { diffArrays } from "diff";
import { memo } from "preact/compat";
import { useMemo, useRef } from "preact/hooks";
import { pointing, useInSight, useMarks } from "./marks";
import type { Stage } from "./record";
import { index, left, onlyChanged, operandTypes, right, stages } from "./state";

interface Line { key: string; name?: string; text: string; said?: "error" | "warning" | undefined }
type Kind = "same" | "changed" | "replaced" | "removed" | "added";
interface Row { a?: Line; b?: Line; kind: Kind }

export function TextView() {
  const a = stages.value[left.value];
  const b = stages.value[right.value];
  const full = operandTypes.value;
  const rows = useMemo(() => (a && b ? align(lines(a, full), lines(b, full)) : []), [a, b, full]);
  const root = useRef<HTMLDivElement>(null);
  useMarks(root);
  useInSight(root);
  if (!a || !b) return null;
  const count = (side: "a" | "b", kinds: Kind[]) => rows.filter((row) => row[side] && kinds.includes(row.kind)).length;
  return (
    <div class="text">
      <div class="heads">
        <StagePick label="left stage" side={left} />
        <span class="tally" aria-live="polite">
          <b class="plus">+{count("b", ["added", "replaced"])}</b>
          <b class="minus">−{count("a", ["removed", "replaced"])}</b>
          <b class="changed-count">~{count("b", ["changed"])}</b>
          <label class="toggle" title="what goes into a node has its type in its own line">
            <input type="checkbox" checked={full} onChange={(e) => (operandTypes.value = e.currentTarget.checked)} />
            operand types
          </label>
        </span>
        <StagePick label="right stage" side={right} />
      </div>
      <div class="sides" ref={root} {...pointing} role="region" aria-label={`${a.label} beside ${b.label}`} tabIndex={0}>
        <Rows rows={rows} few={onlyChanged.value} a={a.index} b={b.index} />
      </div>
    </div>
  );
}

function StagePick({ label, side }: { label: string; side: typeof left }) {
  return (
    <select aria-label={label} value={side.value} onChange={(e) => (side.value = Number(e.currentTarget.value))}>
      {stages.value.map((s) => (
        <option key={s.index} value={s.index}>
          {String(s.index).padStart(2, "0")} {s.label.length > 60 ? `${s.label.slice(0, 59)}…` : s.label} ({s.stage}{s.changed ? "" : ", unchanged"})
        </option>
      ))}
    </select>
  );
}

const Rows = memo(function Rows({ rows, few, a, b }: { rows: Row[]; few: boolean; a: number; b: number }) {
  const found = [];
  let before = -1;
  const gap = (i: number) => {
    if (i > before + 1) found.push(<div key={`gap ${i}`} class="gap">{i - before - 1} unchanged</div>);
  };
  for (const i of few ? near(rows) : rows.keys()) {
    const row = rows[i] as Row;
    gap(i);
    before = i;
    found.push(<Cell key={`a ${i}`} row={row} side="a" stage={a} />, <Cell key={`b ${i}`} row={row} side="b" stage={b} />);
  }
  gap(rows.length);
  return <>{found}</>;
});

function Cell({ row, side, stage }: { row: Row; side: "a" | "b"; stage: number }) {
  const line = row[side];
  if (!line) return <div class={`line ${side} none`} />;
  const other = row[side === "a" ? "b" : "a"];
  const node = line.name === undefined ? {} : { "data-n": line.name, "data-s": stage };
  return (
    <div class={`line ${side} ${row.kind}`} {...node}>
      {line.said && <b class={`flag ${line.said}`} title={`${line.said}: select the node to read it`}>{line.said === "error" ? "✗" : "!"}</b>}
      <Words text={line.text} other={row.kind === "changed" ? other?.text : undefined} />
    </div>
  );
}

const TOKEN =
  /\$[0-9a-f]{32}|"(?:[^"\\]|\\.)*"|%[A-Za-z0-9_.$]+|[a-z_]+(?= ?=)|(?:\d+x)+|-?\d+\.?\d*(?:[eE][-+]?\d+)?|[A-Za-z_][A-Za-z0-9_.]*|\s+|->|[^\w\s]/g;

function Words({ text, other }: { text: string; other: string | undefined }) {
  const tokens = text.match(TOKEN) ?? [];
  const fresh = new Set<number>();
  if (other !== undefined) {
    let at = 0;
    for (const part of diffArrays(other.match(TOKEN) ?? [], tokens)) {
      if (part.removed) continue;
      if (part.added) for (let i = 0; i < part.value.length; i++) fresh.add(at + i);
      at += part.value.length;
    }
  }
  return <>{tokens.map((token, i) => <Token key={i} token={token} fresh={fresh.has(i)} />)}</>;
}

const TYPES = /^(tensor|f32|f64|i8|i16|i32|i64|array|dense_resource|func|module|return|attributes)/;

function Token({ token, fresh }: { token: string; fresh: boolean }) {
  const kind = token.startsWith("%") ? "value"
    : token.startsWith('"snn.') ? "op"
    : token.startsWith('"') ? "string"
    : token.startsWith("$") ? "digest"
    : /^-?\d/.test(token) ? "number"
    : TYPES.test(token) ? "type"
    : /^[a-z_]+$/.test(token) ? "attribute" : "";
  const short = token.length > 400 ? `${token.slice(0, 400)}…` : kind === "digest" ? token.slice(0, 7) : token;
  if (!kind && !fresh) return <>{token}</>;
  return <span class={fresh ? `${kind} fresh` : kind} {...(short !== token && { title: token.slice(0, 2000) })}>{short}</span>;
}

function lines(stage: Stage, full: boolean): Line[] {
  const around = (texts: string[], what: string) => texts.map((text, i) => ({ key: `${what}${i}`, text }));
  return [
    ...around(stage.head, "head "),
    ...stage.nodes.map((node) => ({ said: index.value.worst(node), key: `%${node.name}`, name: node.name, text: `    ${full ? node.text : brief(node.text)}` })),
    ...around(stage.tail, "tail "),
  ];
}

/** A node's line without the types of its operands. */
function brief(text: string): string {
  const at = text.lastIndexOf(" : (");
  const end = text.indexOf(") -> ", at);
  return at < 0 || end < 0 ? text : `${text.slice(0, at)} -> ${text.slice(end + 5)}`;
}

/** The lines of two stages in rows: those of one name beside each other, what was replaced beside what replaces it. */
function align(a: Line[], b: Line[]): Row[] {
  const rows: Row[] = [];
  let i = 0;
  let j = 0;
  let gone: Line[] = [];
  const flush = (come: Line[]) => {
    for (let k = 0; k < Math.max(gone.length, come.length); k++) {
      const row: Row = { kind: gone[k] ? "removed" : "added" };
      if (gone[k]) row.a = gone[k] as Line;
      if (come[k]) row.b = come[k] as Line;
      if (row.a && row.b) row.kind = "replaced";
      rows.push(row);
    }
    gone = [];
  };
  for (const part of diffArrays(a.map((l) => l.key), b.map((l) => l.key))) {
    const n = part.value.length;
    if (part.removed) {
      flush([]);
      gone = a.slice(i, i + n);
      i += n;
    } else if (part.added) {
      flush(b.slice(j, j + n));
      j += n;
    } else {
      flush([]);
      for (let k = 0; k < n; k++) {
        const [x, y] = [a[i + k] as Line, b[j + k] as Line];
        rows.push({ a: x, b: y, kind: x.text === y.text ? "same" : "changed" });
      }
      i += n;
      j += n;
    }
  }
  flush([]);
  return rows;
}

/** The rows that changed, with two on either side. */
function near(rows: Row[]): number[] {
  const keep = new Set<number>();
  rows.forEach((row, i) => {
    if (row.kind !== "same") for (let k = i - 2; k <= i + 2; k++) if (rows[k]) keep.add(k);
  });
  return [...keep].sort((x, y) => x - y);
}
