// What the page shows: a few signals, what follows from them, and the link that restores them.

import { batch, computed, effect, signal } from "@preact/signals";
import { type CompileRecord, Index, type Node, lineKey } from "./record";

export const VIEWS = ["text", "graph", "numbers", "chip", "diagnostics"] as const;
export type View = (typeof VIEWS)[number];
export type Focus = { kind: "node"; stage: number; name: string } | { kind: "line"; file: string; line: number };

export const record = signal<CompileRecord>(embedded("record"));
export const index = computed(() => new Index(record.value));
export const stages = computed(() => record.value.stages);

export const left = signal(0); // the stages that stand side by side
export const right = signal(0);
export const view = signal<View>("text");
export const selected = signal<Focus | null>(null);
export const hovered = signal<Focus | null>(null);
export const shownFile = signal("");
export const theme = signal<"" | "light" | "dark">("");
export const onlyChanged = signal(false);
export const operandTypes = signal(false); // in the text
export const help = signal(false);
export const opened = signal<ReadonlySet<string>>(new Set()); // groups of the graph that are open although it is large
export const closed = signal<ReadonlySet<string>>(new Set());

export const focus = computed(() => hovered.value ?? selected.value);
export const litPlaces = computed(() => placesOf(focus.value));
export const litLines = computed(() => {
  const lines = new Set<string>();
  for (const i of litPlaces.value) {
    const place = record.value.places[i];
    if (place) lines.add(lineKey(place.file, place.line));
  }
  const at = focus.value;
  if (at?.kind === "line") lines.add(lineKey(at.file, at.line));
  return lines;
});
export const selectedNode = computed<{ stage: number; node: Node } | null>(() => {
  const at = selected.value;
  if (at?.kind !== "node") return null;
  const node = index.value.node(at.stage, at.name);
  return node ? { stage: at.stage, node } : null;
});

export function litNodes(stage: number): Set<string> {
  const at = focus.value;
  return new Set(index.value.forms(stage, litPlaces.value, at?.kind === "node" ? at.name : undefined));
}

function placesOf(at: Focus | null): number[] {
  if (!at) return [];
  if (at.kind === "line") return index.value.byLine.get(lineKey(at.file, at.line)) ?? [];
  return index.value.node(at.stage, at.name)?.places ?? [];
}

// --- what one does ---

/** Show a stage, with the one before it at its side. */
export function showStage(i: number): void {
  const last = stages.value.length - 1;
  batch(() => {
    right.value = clamp(i, last);
    left.value = Math.max(0, right.value - 1);
  });
}

export function select(at: Focus | null): void {
  batch(() => {
    selected.value = at;
    hovered.value = null;
    const file = at?.kind === "line" ? at.file : record.value.places[placesOf(at)[0] ?? -1]?.file;
    if (file && file in record.value.sources) shownFile.value = file;
  });
}

/** Go to a node in a stage that may not be shown now. */
export function goTo(stage: number, name: string): void {
  batch(() => {
    const shown = stage === right.value || (stage === left.value && view.value !== "graph");
    if (!shown) showStage(stage);
    if (view.value === "diagnostics") view.value = "text";
    select({ kind: "node", stage, name });
  });
}

export function clamp(i: number, most: number): number {
  return Math.max(0, Math.min(i, most));
}

/** Another record of the same network: what is shown stays, as far as it is still there. */
export function replaceRecord(fresh: CompileRecord): void {
  batch(() => {
    const shown = [left.value, right.value].map((i) => stages.value[i]?.label);
    const atEnd = right.value === stages.value.length - 1;
    const at = selected.value;
    const before = at?.kind === "node" ? stages.value[at.stage]?.label : undefined;
    record.value = fresh;
    hovered.value = null;
    const find = (label: string | undefined) => {
      const exact = fresh.stages.findIndex((s) => s.label === label);
      return exact >= 0 ? exact : fresh.stages.findIndex((s) => s.pass === label?.split("{")[0]);
    };
    const [a, b] = shown.map(find) as [number, number];
    if (atEnd || b < 0) firstLook();
    else {
      right.value = b;
      left.value = a < 0 ? Math.max(0, b - 1) : Math.min(a, b);
    }
    if (at?.kind === "node") {
      const stage = find(before);
      const there = stage >= 0 && index.value.node(stage, at.name);
      selected.value = there ? { ...at, stage } : null;
    }
    if (!(shownFile.value in fresh.sources)) shownFile.value = mainFile();
  });
}

/** The last stage that a pass changed, beside the one before it; of a compile that failed, where it ended. */
function firstLook(): void {
  const all = stages.value;
  const last = all.findLastIndex((s) => s.changed || s.failed);
  right.value = Math.max(0, last);
  left.value = Math.max(0, right.value - 1);
}

/** The file with most of the network's places; that of a diagnostic, if there are none. */
function mainFile(): string {
  const counts = new Map<string, number>();
  const count = (file: string) => {
    if (file in record.value.sources) counts.set(file, (counts.get(file) ?? 0) + 1);
  };
  for (const place of record.value.places) count(place.file);
  if (!counts.size) for (const d of record.value.diagnostics) for (const at of d.locations) count(at.file);
  return [...counts].sort((x, y) => y[1] - x[1])[0]?.[0] ?? Object.keys(record.value.sources)[0] ?? "";
}

// --- the link ---

export function start(): void {
  firstLook();
  shownFile.value = mainFile();
  if (!record.value.stages.length || record.value.ok === false) view.value = "diagnostics";
  restore();
  addEventListener("hashchange", restore);
  effect(() => {
    const words = new URLSearchParams();
    words.set("view", view.value);
    words.set("stage", String(right.value));
    words.set("with", String(left.value));
    const at = selected.value;
    if (at?.kind === "node") {
      words.set("node", at.name);
      words.set("in", String(at.stage));
    } else if (at) {
      words.set("line", String(at.line));
    }
    if (shownFile.value) words.set("file", String(Object.keys(record.value.sources).indexOf(shownFile.value)));
    if (theme.value) words.set("theme", theme.value);
    if (onlyChanged.value) words.set("changed", "1");
    // Names are identifiers, so a space can stand between them; an address is no place for thousands.
    for (const [word, groups] of [["open", opened], ["shut", closed]] as const) {
      const names = [...groups.value].join(" ");
      if (names && names.length < 2000) words.set(word, names);
    }
    try {
      history.replaceState(null, "", `#${words}`);
    } catch {
      // a frame in a notebook has no address of its own
    }
  });
}

function restore(): void {
  const words = new URLSearchParams(location.hash.slice(1));
  const number = (name: string): number | null => {
    const text = words.get(name);
    return text !== null && /^\d+$/.test(text) ? Number(text) : null;
  };
  batch(() => {
    const wanted = VIEWS.find((v) => v === words.get("view"));
    if (wanted) view.value = wanted;
    const last = Math.max(0, stages.value.length - 1);
    const b = number("stage");
    const a = number("with");
    if (b !== null) right.value = clamp(b, last);
    if (a !== null) left.value = clamp(a, last);
    const file = Object.keys(record.value.sources)[number("file") ?? -1];
    if (file !== undefined) shownFile.value = file;
    const node = words.get("node");
    const line = number("line");
    if (node !== null && index.value.node(number("in") ?? -1, node)) {
      selected.value = { kind: "node", stage: number("in") ?? 0, name: node };
    } else if (line !== null && shownFile.value) selected.value = { kind: "line", file: shownFile.value, line };
    const asked = words.get("theme");
    if (asked === "light" || asked === "dark") theme.value = asked;
    onlyChanged.value = words.get("changed") === "1";
    opened.value = new Set(words.get("open")?.split(" "));
    closed.value = new Set(words.get("shut")?.split(" "));
  });
}

function embedded(id: string): CompileRecord {
  return JSON.parse(document.getElementById(id)?.textContent ?? "null") as CompileRecord;
}
