// The record of a compile as docs/record.md describes it (the page has `head` and `tail` of a stage's text, not all of
// it), and what follows from it: who shares which place, and what became of a node in another stage.

export interface Param { param: string; shape: number[]; dtype: string; digest: string }
export type Attribute = Param | number | string | boolean | null | number[];
export interface Spread { min: number | string; max: number | string; zeros: number; histogram: number[] }
/** `of`: the traced value that it stands for. */
export interface Measured extends Spread { rms: number | string; of?: string; error?: number | string }
export interface Type { shape: number[]; dtype: string; domain: string; unit: number | string | Param }

export interface Node {
  name: string;
  op: string;
  attributes: Record<string, Attribute>;
  args: string[];
  type: Type;
  places: number[];
  passes: string[];
  text: string;
  place?: string;
  numbers?: Measured;
}

export interface Place { module: string; file: string; line: number }

export interface Diagnostic {
  code: string;
  title: string;
  severity: "error" | "warning" | "note";
  message: string;
  locations: Place[];
  hint: string;
  limit?: number;
  found?: number;
  quantity?: string;
}

export interface Stage {
  index: number;
  label: string;
  pass: string;
  stage: string;
  seconds: number;
  memory: number;
  changed: boolean;
  failed: boolean;
  nodes_changed: number;
  nodes_removed: number;
  diagnostics: Diagnostic[];
  outputs: string[];
  nodes: Node[];
  head: string[];
  tail: string[];
}

export interface Memory { name: string; used: number; size: number; unit: string }
export interface Room { name: string; place: string; cores: number; memories: Memory[] }
export interface Row {
  layer: string;
  op: string;
  shape: number[];
  weights: number;
  neurons: number;
  neuron?: string;
  threshold?: number;
  rate?: number;
  synops?: number;
  error?: number;
}
export interface Figures { error: number; changed: number | null }
/** What one layer loses alone, relative to the size of its activation. */
export interface Loss { name: string; clipping: number; rounding: number; time: number; reset: number; error: number; rate: number | null }
export interface SelfCheck {
  timesteps: number;
  samples: number;
  layer_samples: number;
  prepared: Figures;
  network: Figures | null;
  simulated: Figures;
  cause: "clipping" | "rounding" | "time" | "reset";
  layers: Loss[];
}
export interface Fit { layer: string; channels: number; kernel: number; neuron: number; bias: number; holds: number[]; cores: number[]; change: unknown }

export interface CompileRecord {
  schema: string;
  network: string;
  snncc?: string;
  target?: string;
  options?: Record<string, unknown>;
  ok?: boolean;
  diagnostics: Diagnostic[];
  places: Place[];
  sources: Record<string, string>;
  params: Record<string, Spread & { mean: number | string }>;
  stages: Stage[];
  report?: Row[];
  chip?: { name?: string; note?: string; rooms?: Room[] };
  fits?: Fit[];
  selfcheck?: SelfCheck | Record<string, never>;
}

export function isParam(value: unknown): value is Param {
  return typeof value === "object" && value !== null && "digest" in value;
}

// Names as keys are the user's: a Map, since `__proto__` is a name like any other.
export class Index {
  readonly byName: Map<string, Node>[];
  readonly users: Map<string, string[]>[];
  readonly byPlace: Map<number, string[]>[];
  readonly byLine = new Map<string, number[]>();
  private readonly said = new Map<string, "error" | "warning">(); // the worst, by place

  constructor(readonly record: CompileRecord) {
    this.byName = record.stages.map((stage) => new Map(stage.nodes.map((node) => [node.name, node])));
    this.users = record.stages.map((stage) => {
      const users = new Map<string, string[]>();
      for (const node of stage.nodes) for (const arg of new Set(node.args)) push(users, arg, node.name);
      return users;
    });
    this.byPlace = record.stages.map((stage) => {
      const found = new Map<number, string[]>();
      for (const node of stage.nodes) for (const place of node.places) push(found, place, node.name);
      return found;
    });
    record.places.forEach((place, i) => {
      if (place.file) push(this.byLine, lineKey(place.file, place.line), i);
    });
    for (const d of record.diagnostics) {
      if (d.severity === "note") continue;
      for (const at of d.locations) if (this.said.get(placeKey(at)) !== "error") this.said.set(placeKey(at), d.severity);
    }
  }

  /** The worst that was said of where a node comes from, notes aside. */
  worst(node: Node): "error" | "warning" | undefined {
    const found = node.places.map((i) => {
      const place = this.record.places[i];
      return place && this.said.get(placeKey(place));
    });
    return found.includes("error") ? "error" : found.includes("warning") ? "warning" : undefined;
  }

  /** What was said of where a node comes from. */
  saidOf(node: Node): Diagnostic[] {
    const here = new Set(node.places.map((i) => placeKey(this.record.places[i] as Place)));
    return this.record.diagnostics.filter((d) => d.locations.some((l) => here.has(placeKey(l))));
  }

  node(stage: number, name: string): Node | undefined {
    return this.byName[stage]?.get(name);
  }

  /** The nodes of a stage that share a place with these, in order, and any of that name. */
  forms(stage: number, places: Iterable<number>, name?: string): string[] {
    const found = new Set<string>();
    for (const place of places) for (const other of this.byPlace[stage]?.get(place) ?? []) found.add(other);
    if (name !== undefined && this.byName[stage]?.has(name)) found.add(name);
    return [...found];
  }

  /** The same node in another stage: by its name, else the last of those that came of the same places. */
  same(stage: number, node: Node): string | undefined {
    if (this.byName[stage]?.has(node.name)) return node.name;
    return this.forms(stage, node.places).at(-1);
  }
}

function placeKey(place: Place): string {
  return `${place.line}:${place.file}:${place.module}`;
}

export function lineKey(file: string, line: number): string {
  return `${line}:${file}`;
}

export function push<K, V>(map: Map<K, V[]>, key: K, value: V): void {
  const list = map.get(key);
  if (list) list.push(value);
  else map.set(key, [value]);
}

/** How a node differs from the one of its name in an earlier stage. */
export function change(index: Index, a: number, node: Node): "new" | "changed" | "same" {
  const before = index.node(a, node.name);
  if (!before) return "new";
  return before.text === node.text && before.place === node.place ? "same" : "changed";
}

/** The mean of a unit, a threshold or the like: one number, or one for each channel. */
export function mean(record: CompileRecord, value: Attribute | string | undefined): number | undefined {
  if (typeof value === "number") return value;
  if (isParam(value)) return num(record.params[value.digest]?.mean);
  return undefined;
}

/** A number as JSON has it; those that it has not come as text. */
export function num(value: number | string | undefined): number | undefined {
  return typeof value === "number" ? value : undefined;
}
