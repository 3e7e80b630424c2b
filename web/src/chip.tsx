// The chip: its cores as rooms with what lies in them and how full they are, and where each sends its spikes.

import { useSignal } from "@preact/signals";
import { useMemo, useRef } from "preact/hooks";
import { count } from "./charts";
import { short } from "./layout";
import { pointing, useMarks } from "./marks";
import { type Fit, type Node, push, type Room } from "./record";
import { record, stages } from "./state";
import { kindOf } from "./graph";

const WIDE = 220;
const LINE = 17;
const GAP = 40; // the corridors

interface Placed { room: Room; nodes: Node[]; x: number; y: number; width: number; height: number; row: number; column: number }
interface Plan {
  placed: Placed[];
  arrows: { path: string; values: string[]; from: string; to: string }[];
  top: number; // of the chip
  width: number;
  height: number;
  empty: number;
}

export function ChipView() {
  const { chip, fits, target } = record.value;
  const last = stages.value.at(-1);
  if (chip?.rooms?.length && last && !last.failed) return <Floor />;
  if (fits?.length) return <Fits fits={fits} />;
  return (
    <p class="empty">
      {record.value.ok === false
        ? "The compile ended before anything was placed on the chip."
        : `Target ${target ?? ""} has no chip to show: it is run on the simulator.`}
    </p>
  );
}

function Floor() {
  const root = useRef<HTMLDivElement>(null);
  useMarks(root);
  const found = record.value;
  const last = stages.value.length - 1;
  const { placed, arrows, top, width, height, empty } = useMemo(plan, [found]);
  const at = useSignal("");
  const rooms = found.chip?.rooms?.length ?? 0;
  return (
    <div class="chip" ref={root} {...pointing}>
      <header>
        <h3>{short(found.chip?.name ?? "", 200)}</h3>
        <span class="dim">{found.chip?.note} {rooms > 1 && `${rooms - empty} of ${rooms} in use`}</span>
      </header>
      <svg
        class="plan" viewBox={`-4 -4 ${width + 8} ${height + 8}`} style={{ width: `${width + 8}px` }} role="img" aria-label="plan of the chip"
        onPointerOver={(e) => (at.value = (e.target as Element).closest<SVGElement>("[data-room]")?.dataset["room"] ?? "")}
      >
        <defs>
          <marker id="chip-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L8,4 L0,8 z" /></marker>
        </defs>
        <rect class="outline" y={top} width={width} height={height - top} rx={12} />
        {placed.map((p) => <RoomBox key={p.room.name} placed={p} stage={last} />)}
        {arrows.map((a, i) => (
          <g key={i} class={`wire ${at.value && (at.value === a.from || at.value === a.to) ? "lit" : ""}`}>
            <title>{short(`${a.from} → ${a.to}: ${a.values.join(", ")}`, 300)}</title>
            <path d={a.path} marker-end="url(#chip-arrow)" />
          </g>
        ))}
      </svg>
    </div>
  );
}

function RoomBox({ placed, stage }: { placed: Placed; stage: number }) {
  const { room, nodes, x, y, width, height } = placed;
  const top = 26 + LINE * shown(nodes).length + (hidden(nodes) ? LINE : 0);
  return (
    <g class={`room ${room.cores ? "" : "host"} ${nodes.length ? "" : "free"}`} transform={`translate(${x},${y})`} data-room={room.name}>
      <rect width={width} height={height} rx={8} />
      <text class="title" x={12} y={19}>{short(room.name, 26)}</text>
      {room.cores > 1 && <text class="cores" x={width - 12} y={19} text-anchor="end">{room.cores} cores</text>}
      {shown(nodes).map((node, i) => (
        <g key={node.name} class={`tenant ${kindOf(node.op)}`} data-n={node.name} data-s={stage} transform={`translate(6,${26 + LINE * i})`} tabIndex={0} role="button">
          <title>{short(node.text, 900)}</title>
          <rect width={width - 12} height={LINE - 1} rx={3} />
          <rect class="stripe" width={4} height={LINE - 1} />
          <text x={10} y={12}>{short(node.name, 20)}</text>
          <text class="note" x={width - 18} y={12} text-anchor="end">{short(node.op, 14)}</text>
        </g>
      ))}
      {hidden(nodes) > 0 && <text class="note" x={16} y={top - 4}>and {hidden(nodes)} more</text>}
      {room.memories.map((m, i) => {
        const part = m.size ? m.used / m.size : 0;
        const level = part > 0.9 ? "full" : part > 0.6 ? "high" : "low";
        const words = m.unit === "%" ? `${m.used} %` : `${count(m.used)} / ${count(m.size)}`;
        return (
          <g key={m.name} class={`memory ${level}`} transform={`translate(12,${top + 8 + 22 * i})`}>
            <title>{`${m.name}: ${m.used.toLocaleString("en")} of ${m.size.toLocaleString("en")} ${m.unit}`}</title>
            <text y={8}>{m.name}</text>
            <text x={width - 24} y={8} text-anchor="end">{words}</text>
            <rect class="track" y={11} width={width - 24} height={6} rx={3} />
            <rect class="fill" y={11} width={Math.max(part > 0 ? 2 : 0, (width - 24) * Math.min(1, part))} height={6} rx={3} />
          </g>
        );
      })}
    </g>
  );
}

const MOST = 14;
const shown = (nodes: Node[]) => (nodes.length > MOST ? nodes.slice(0, MOST - 1) : nodes);
const hidden = (nodes: Node[]) => nodes.length - shown(nodes).length;

/**
 * The floor: what is outside the chip above it, the rooms in the chip's own order in rows. Ways go through the corridors
 * between the rooms, each in a lane of its own.
 */
function plan(): Plan {
  const nodes = stages.value.at(-1)?.nodes ?? [];
  const rooms = record.value.chip?.rooms ?? [];
  const whole = rooms.find((r) => r.place === "");
  const byPlace = new Map(rooms.map((r) => [r.place, r]));
  const home = new Map<string, Room>();
  const inside = new Map<Room, Node[]>();
  const byName = new Map(nodes.map((n) => [n.name, n]));
  const outside: Room = { name: "outside the chip", place: "", cores: 0, memories: [] };
  for (const node of nodes) {
    const fed = /^(input|encode)$/.test(node.op);
    const room = fed ? outside : (whole ?? (node.place ? byPlace.get(node.place) : undefined));
    if (!room) continue; // a wire: what comes out of it is what goes in
    home.set(node.name, room);
    push(inside, room, node);
  }
  // Of a chip with many cores those that are empty are only counted.
  const shownRooms = rooms.length <= 32 ? rooms : rooms.filter((r) => inside.has(r));
  const columns = Math.max(1, Math.min(Math.ceil(Math.sqrt(shownRooms.length)), Math.floor((0.6 * innerWidth) / (WIDE + GAP)) || 1));
  const placed = new Map<Room, Placed>();
  let y = 0;
  if (inside.has(outside)) {
    const own = inside.get(outside) ?? [];
    placed.set(outside, { room: outside, nodes: own, x: GAP, y: 0, width: WIDE, height: heightOf(outside, own), row: -1, column: 0 });
    y = heightOf(outside, own) + GAP;
  }
  const top = y;
  y += GAP;
  for (let at = 0; at < shownRooms.length; at += columns) {
    const row = shownRooms.slice(at, at + columns);
    const height = Math.max(...row.map((r) => heightOf(r, inside.get(r) ?? [])));
    row.forEach((room, i) => placed.set(room, {
      room, nodes: inside.get(room) ?? [], x: GAP + i * (WIDE + GAP), y, width: WIDE, height, row: at / columns, column: i,
    }));
    y += height + GAP;
  }
  const ways = new Map<string, { from: Placed; to: Placed; values: Set<string> }>();
  const senders = (name: string): string[] => (home.has(name) ? [name] : (byName.get(name)?.args ?? []).flatMap(senders));
  for (const node of nodes) {
    const to = placed.get(home.get(node.name) as Room);
    if (!to) continue;
    for (const arg of node.args.flatMap(senders)) {
      const from = placed.get(home.get(arg) as Room);
      if (!from || from === to) continue;
      const key = JSON.stringify([from.room.name, to.room.name]);
      const way = ways.get(key) ?? { from, to, values: new Set<string>() };
      way.values.add(arg);
      ways.set(key, way);
    }
  }
  const arrows = [...ways.values()].map(({ from, to, values }, i) => ({ path: wire(from, to, ((i % 7) - 3) * 4), values: [...values], from: from.room.name, to: to.room.name }));
  const width = GAP + Math.min(columns, Math.max(1, shownRooms.length)) * (WIDE + GAP);
  return { placed: [...placed.values()], arrows, top, width, height: y, empty: rooms.length - rooms.filter((r) => inside.has(r)).length };
}

/** From one room to another through the corridors, `lane` beside their middle. */
function wire(from: Placed, to: Placed, lane: number): string {
  const middle = (p: Placed) => p.y + p.height / 2;
  if (from.row === to.row && to.column === from.column + 1) {
    return `M${from.x + WIDE},${middle(from) + lane}L${to.x - 2},${middle(to) + lane}`;
  }
  if (from.row + 1 === to.row && from.column === to.column) {
    return `M${from.x + WIDE / 2 + lane},${from.y + from.height}L${to.x + WIDE / 2 + lane},${to.y - 2}`;
  }
  const corridor = from.y + from.height + GAP / 2 + lane; // below the room, to the left of the other one
  const beside = to.x - GAP / 2 + lane;
  const corners = [
    [from.x + WIDE / 2 + lane, from.y + from.height], [from.x + WIDE / 2 + lane, corridor], [beside, corridor],
    [beside, middle(to) + lane], [to.x - 2, middle(to) + lane],
  ] as [number, number][];
  return rounded(corners);
}

function rounded(corners: [number, number][], radius = 7): string {
  let path = `M${corners[0]?.join()}`;
  for (let i = 1; i < corners.length - 1; i++) {
    const [a, b, c] = corners.slice(i - 1, i + 2) as [[number, number], [number, number], [number, number]];
    const short = (p: [number, number], q: [number, number]): [number, number] => {
      const length = Math.hypot(p[0] - q[0], p[1] - q[1]) || 1;
      const part = Math.min(radius, length / 2) / length;
      return [q[0] + (p[0] - q[0]) * part, q[1] + (p[1] - q[1]) * part];
    };
    path += `L${short(a, b).join()}Q${b.join()} ${short(c, b).join()}`;
  }
  return `${path}L${corners.at(-1)?.join()}`;
}

function heightOf(room: Room, nodes: Node[]): number {
  return 26 + LINE * shown(nodes).length + (hidden(nodes) ? LINE : 0) + 22 * room.memories.length + 14;
}

/** Of a network that is not on the chip: what each layer needs, and which cores could hold it. */
function Fits({ fits }: { fits: Fit[] }) {
  const root = useRef<HTMLDivElement>(null);
  useMarks(root);
  const folded = stages.value.findLastIndex((s) => s.stage === "folded");
  const cores = fits[0]?.holds.length ?? 0;
  return (
    <div class="chip" ref={root} {...pointing}>
      <header>
        <h3>What each layer needs</h3>
        <span class="dim">memories in words; of each core, how many of the layer's channels it can hold</span>
      </header>
      <table class="layers fits">
        <thead>
          <tr><th>layer</th><th class="r">channels</th><th class="r">kernel</th><th class="r">neuron</th><th class="r">bias</th>{Array.from({ length: cores }, (_, i) => <th key={i} class="r">{i}</th>)}</tr>
        </thead>
        <tbody>
          {fits.map((row) => (
            <tr key={row.layer} data-n={row.layer} data-s={folded} tabIndex={0}>
              <td class="name" title={row.layer}>{row.layer}</td>
              <td class="r">{row.channels}</td>
              {[row.kernel, row.neuron, row.bias].map((n, i) => <td key={i} class="r">{n.toLocaleString("en")}</td>)}
              {row.holds.map((n, i) => (
                <td key={i} class={`r ${n >= row.channels ? "good" : n > 0 ? "part" : "bad"} ${row.cores.includes(i) ? "here" : ""}`}>{n}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
