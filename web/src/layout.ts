// Where the nodes of a graph stand: modules as boxes in boxes, each laid out by dagre with what is in it. A value that
// goes into or out of a box goes through a port in its border, so that every edge can be followed.

import { graphlib, layout as dagre } from "@dagrejs/dagre";

export interface Item { name: string; title: string; note: string; args: string[] }
export interface Box {
  id: string;
  name: string | null; // of the node; null: a group
  title: string;
  note: string;
  members: string[]; // the nodes in it
  open: boolean;
  x: number; // the left upper corner, in the page's units
  y: number;
  width: number;
  height: number;
  depth: number;
}
export interface Edge { value: string; to: string; points: { x: number; y: number }[] }
export interface Drawing { boxes: Box[]; edges: Edge[]; width: number; height: number }

interface Group { id: string; title: string; items: Map<string, Group | Item> }
interface Laid {
  width: number;
  height: number;
  boxes: Box[]; // with the left upper corner of this group as their origin
  edges: Edge[];
  into: Map<string, number>; // by value: the x of the port in the upper border
  out: Map<string, number>;
}

const ROW = 40;
const PAD = 14;
const HEAD = 22;

const isGroup = (item: Group | Item): item is Group => "items" in item;

/** Nodes by their modules: the parts of their names. A module that holds one thing only is no box. */
export function grouped(items: Item[]): Group {
  const root: Group = { id: "", title: "", items: new Map() };
  const modules = new Set<string>();
  for (const { name } of items) for (let at = name.indexOf("."); at > 0; at = name.indexOf(".", at + 1)) modules.add(name.slice(0, at));
  for (const item of items) {
    const inside = modules.has(item.name) ? item.name : item.name.slice(0, Math.max(0, item.name.lastIndexOf(".")));
    let group = root;
    const parts = inside ? inside.split(".") : [];
    for (let i = 0; i < parts.length; i++) {
      const id = parts.slice(0, i + 1).join(".");
      let next = group.items.get(`module ${id}`) as Group | undefined;
      if (!next) group.items.set(`module ${id}`, (next = { id, title: parts[i] as string, items: new Map() }));
      group = next;
    }
    group.items.set(`node ${item.name}`, item);
  }
  return flat(root);
}

function flat(group: Group): Group {
  const items = new Map<string, Group | Item>();
  for (const [id, item] of group.items) {
    const inner = isGroup(item) ? flat(item) : item;
    const [only] = isGroup(inner) && inner.items.size === 1 ? inner.items : [];
    if (isGroup(inner) && only) {
      const [key, child] = only;
      items.set(key, isGroup(child) ? { ...child, title: `${inner.title}.${child.title}` } : child);
    } else items.set(id, inner);
  }
  return { ...group, items };
}

export function members(item: Group | Item): string[] {
  return isGroup(item) ? [...item.items.values()].flatMap(members) : [item.name];
}

/** The groups that a node is in, the outermost first. */
export function groupsOf(name: string, group: Group): string[] | undefined {
  for (const item of group.items.values()) {
    if (!isGroup(item)) {
      if (item.name === name) return [];
    } else {
      const inner = groupsOf(name, item);
      if (inner) return [item.id, ...inner];
    }
  }
  return undefined;
}

/** The groups that are shut at first: the innermost ones, where all nodes at once would be too many to see. */
export function shutAtFirst(root: Group, most = 70): Set<string> {
  const shut = new Set<string>();
  const visible = (group: Group): number => {
    let n = 0;
    for (const item of group.items.values()) n += isGroup(item) && !shut.has(item.id) ? 1 + visible(item) : 1;
    return n;
  };
  const height = (group: Group): number => Math.max(0, ...[...group.items.values()].map((i) => (isGroup(i) ? 1 + height(i) : 0)));
  const all = (group: Group): Group[] => [...group.items.values()].filter(isGroup).flatMap((g) => [g, ...all(g)]);
  for (let level = 0; visible(root) > most && level < 12; level++) {
    for (const group of all(root)) if (height(group) === level) shut.add(group.id);
  }
  return shut;
}

export function draw(root: Group, shut: ReadonlySet<string>): Drawing {
  const edges: [string, string][] = [];
  const collect = (group: Group): void => {
    for (const item of group.items.values()) {
      if (isGroup(item)) collect(item);
      else for (const arg of new Set(item.args)) edges.push([arg, item.name]);
    }
  };
  collect(root);
  const laid = lay(root, edges, shut, 0);
  return { boxes: laid.boxes, edges: laid.edges, width: laid.width, height: laid.height };
}

function lay(group: Group, edges: [string, string][], shut: ReadonlySet<string>, depth: number): Laid {
  const home = new Map<string, string>(); // which of this group's items a node is in
  const inner = new Map<string, Laid>();
  const sizes = new Map<string, { width: number; height: number }>();
  for (const [id, item] of group.items) for (const name of members(item)) home.set(name, id);
  for (const [id, item] of group.items) {
    if (isGroup(item) && !shut.has(item.id)) {
      const names = new Set(members(item));
      const laid = lay(item, edges.filter(([a, b]) => names.has(a) || names.has(b)), shut, depth + 1);
      inner.set(id, laid);
      sizes.set(id, { width: Math.max(laid.width + 2 * PAD, letters(item.title) + 60), height: laid.height + HEAD + 2 * PAD });
    } else {
      const width = isGroup(item) ? letters(`▸ ${item.title}`) + 70 : Math.max(letters(item.title) + 14, 0.85 * letters(item.note)) + 26;
      sizes.set(id, { width: Math.max(84, width), height: ROW });
    }
  }
  const graph = new graphlib.Graph({ multigraph: true });
  graph.setGraph({ rankdir: "TB", nodesep: 22, ranksep: 30, edgesep: 14, marginx: 0, marginy: 0 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const [id, size] of sizes) graph.setNode(id, { ...size });
  const known: { v: string; w: string; value: string }[] = [];
  const seen = new Set<string>();
  const add = (v: string, w: string, value: string): void => {
    const key = JSON.stringify([v, w, value]);
    if (v === w || seen.has(key)) return;
    seen.add(key);
    known.push({ v, w, value });
    graph.setEdge(v, w, { weight: 1 }, value);
  };
  for (const [value, user] of edges) {
    const from = home.get(value);
    const to = home.get(user);
    if (from === undefined && to === undefined) continue;
    if (from === undefined) {
      graph.setNode(`in ${value}`, { width: 1, height: 1 });
      add(`in ${value}`, to as string, value);
    } else if (to === undefined) {
      graph.setNode(`out ${value}`, { width: 1, height: 1 });
      add(from, `out ${value}`, value);
    } else add(from, to, value);
  }
  // Ports stand in one row: what a node above them (below them) holds by short lines.
  for (const [what, all] of [["in ", graph.nodes().filter((v: string) => v.startsWith("in "))], ["out ", graph.nodes().filter((v: string) => v.startsWith("out "))]] as const) {
    if (all.length < 2) continue;
    graph.setNode(`all ${what}`, { width: 1, height: 1 });
    for (const port of all) {
      if (what === "in ") graph.setEdge(`all ${what}`, port, { weight: 100 }, "all");
      else graph.setEdge(port, `all ${what}`, { weight: 100 }, "all");
    }
  }
  dagre(graph);
  const { width = 0, height = 0 } = graph.graph() as { width?: number; height?: number };
  const result: Laid = { width: Math.max(0, width), height: Math.max(0, height), boxes: [], edges: [], into: new Map(), out: new Map() };
  const corner = new Map<string, { x: number; y: number }>();
  for (const [id, item] of group.items) {
    const at = graph.node(id) as { x: number; y: number; width: number; height: number };
    const x = at.x - at.width / 2;
    const y = at.y - at.height / 2;
    corner.set(id, { x, y });
    const laid = inner.get(id);
    result.boxes.push({
      id: isGroup(item) ? item.id : id, name: isGroup(item) ? null : item.name, title: item.title, note: isGroup(item) ? "" : item.note,
      members: members(item), open: laid !== undefined, x, y, width: at.width, height: at.height, depth,
    });
    if (!laid) continue;
    const dx = x + (at.width - laid.width) / 2;
    const dy = y + HEAD + PAD;
    for (const box of laid.boxes) result.boxes.push({ ...box, x: box.x + dx, y: box.y + dy });
    for (const edge of laid.edges) result.edges.push({ ...edge, points: edge.points.map((p) => ({ x: p.x + dx, y: p.y + dy })) });
    // The way from the box's border to the port.
    for (const [value, px] of laid.into) result.edges.push({ value, to: "", points: [{ x: px + dx, y }, { x: px + dx, y: dy }] });
    for (const [value, px] of laid.out) {
      const bottom = y + at.height;
      result.edges.push({ value, to: "", points: [{ x: px + dx, y: dy + laid.height }, { x: px + dx, y: bottom }] });
    }
  }
  const offset = (id: string) => {
    const laid = inner.get(id);
    const at = graph.node(id) as { width: number };
    return laid ? (corner.get(id)?.x ?? 0) + (at.width - laid.width) / 2 : 0;
  };
  for (const { v, w, value } of known) {
    const { points } = graph.edge(v, w, value) as { points: { x: number; y: number }[] };
    const path = points.map((p) => ({ ...p }));
    const first = path[0];
    const last = path.at(-1);
    if (!first || !last) continue;
    const source = graph.node(v) as { x: number; y: number; height: number };
    const goal = graph.node(w) as { x: number; y: number; height: number };
    const down = source.y <= goal.y; // an edge that closes a circle among modules goes up
    first.y = down ? source.y + source.height / 2 : source.y - source.height / 2;
    last.y = down ? goal.y - goal.height / 2 : goal.y + goal.height / 2;
    if (v.startsWith("in ")) path.unshift({ x: first.x, y: 0 });
    if (w.startsWith("out ")) path.push({ x: last.x, y: result.height });
    const leaves = inner.get(v)?.out.get(value);
    const enters = inner.get(w)?.into.get(value);
    if (leaves !== undefined && down) first.x = leaves + offset(v);
    if (enters !== undefined && down) last.x = enters + offset(w);
    result.edges.push({ value, to: w.startsWith("node ") ? w.slice(5) : "", points: path });
    if (v.startsWith("in ")) result.into.set(value, first.x);
    if (w.startsWith("out ")) result.out.set(value, last.x);
  }
  return result;
}

/** Roughly how wide a text is in the graph's font. */
function letters(text: string): number {
  return 7.3 * Math.min(text.length, LONGEST);
}

export const LONGEST = 26;

export function short(text: string, most = LONGEST): string {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** A smooth line through points. */
export function curve(points: { x: number; y: number }[]): string {
  const f = (n: number) => n.toFixed(1);
  let path = "";
  points.forEach((p, i) => {
    const q = points[i - 1];
    if (!q) path = `M${f(p.x)},${f(p.y)}`;
    else {
      const half = (p.y - q.y) / 2;
      path += `C${f(q.x)},${f(q.y + half)} ${f(p.x)},${f(p.y - half)} ${f(p.x)},${f(p.y)}`;
    }
  });
  return path;
}
