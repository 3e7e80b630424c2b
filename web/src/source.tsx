// The user's source: what a line became lights up elsewhere, and diagnostics stand at their lines. Where a server
// stands behind the page, it can be edited.

import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { python } from "@codemirror/lang-python";
import { bracketMatching, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { highlightSelectionMatches, search, searchKeymap } from "@codemirror/search";
import { EditorState, RangeSet, StateEffect, StateField } from "@codemirror/state";
import {
  Decoration, type DecorationSet, drawSelection, EditorView, gutter, GutterMarker, highlightSpecialChars, keymap, lineNumbers, WidgetType,
} from "@codemirror/view";
import { classHighlighter } from "@lezer/highlight";
import { useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { dirty, discard, editable, saveSource } from "./live";
import { type Diagnostic, lineKey } from "./record";
import { hovered, index, litLines, record, right, select, selected, shownFile } from "./state";

const setMarks = StateEffect.define<DecorationSet>();
const marks = StateField.define<DecorationSet>({
  create: () => Decoration.none,
  update(found, transaction) {
    let now = found.map(transaction.changes);
    for (const effect of transaction.effects) if (effect.is(setMarks)) now = effect.value;
    return now;
  },
  provide: (field) => EditorView.decorations.from(field),
});

const setCounts = StateEffect.define<RangeSet<GutterMarker>>();
const counts = StateField.define<RangeSet<GutterMarker>>({
  create: () => RangeSet.empty,
  update(found, transaction) {
    let now = found.map(transaction.changes);
    for (const effect of transaction.effects) if (effect.is(setCounts)) now = effect.value;
    return now;
  },
});

class Count extends GutterMarker {
  constructor(readonly n: number) {
    super();
  }
  override eq(other: Count): boolean {
    return other.n === this.n;
  }
  override toDOM(): Node {
    const dot = document.createElement("span");
    dot.className = "count";
    dot.textContent = String(this.n);
    dot.title = `${this.n} node${this.n > 1 ? "s" : ""} of the stage come from this line`;
    return dot;
  }
}

class Said extends WidgetType {
  constructor(readonly diagnostic: Diagnostic) {
    super();
  }
  override eq(other: Said): boolean {
    return other.diagnostic === this.diagnostic;
  }
  override toDOM(): HTMLElement {
    const { severity, code, message, hint } = this.diagnostic;
    const box = document.createElement("div");
    box.className = `said ${severity}`;
    const head = document.createElement("b");
    head.textContent = code;
    const text = document.createElement("span");
    text.textContent = ` ${message}`;
    box.append(head, text);
    if (hint) {
      const help = document.createElement("i");
      help.textContent = `help: ${hint}`;
      box.append(help);
    }
    return box;
  }
}

export function SourcePane() {
  const files = Object.keys(record.value.sources);
  const file = shownFile.value;
  const names = shortNames(files);
  return (
    <section class="pane source" aria-label="source">
      <header>
        <h2>Source</h2>
        {files.length > 1 ? (
          <select aria-label="file" value={file} title={file} onChange={(e) => (shownFile.value = e.currentTarget.value)}>
            {files.map((f) => <option key={f} value={f}>{names.get(f)}</option>)}
          </select>
        ) : (
          <span class="dim" title={file}>{names.get(file)}</span>
        )}
        {dirty.value && (
          <span class="saving">
            <button type="button" onClick={discard} title="as the last compile read it">discard</button>
            <button type="button" class="primary" onClick={saveSource} title="Ctrl+S">save</button>
          </span>
        )}
      </header>
      {files.length ? <Code /> : <p class="empty">No source file of yours could be read.</p>}
    </section>
  );
}

function Code() {
  const host = useRef<HTMLDivElement>(null);
  const view = useRef<EditorView | null>(null);
  const shown = useRef("");

  useEffect(() => {
    const lineAt = (event: MouseEvent, editor: EditorView): number | null => {
      const at = editor.posAtCoords({ x: event.clientX, y: event.clientY });
      return at === null ? null : editor.state.doc.lineAt(at).number;
    };
    const editor = new EditorView({
      parent: host.current as HTMLElement,
      state: EditorState.create({
        extensions: [
          lineNumbers(),
          gutter({ class: "counts", markers: (v) => v.state.field(counts), initialSpacer: () => new Count(888) }),
          highlightSpecialChars(), // among them those that turn the direction of text
          marks, counts, history(), drawSelection(), bracketMatching(), search({ top: true }), highlightSelectionMatches(),
          python(), indentUnit.of("    "), syntaxHighlighting(classHighlighter),
          EditorState.readOnly.of(false),
          EditorView.editable.of(true),
          EditorState.transactionFilter.of((tr) => (tr.docChanged && !allowed(tr) ? [] : tr)),
          keymap.of([
            { key: "Mod-s", run: () => (saveSource(), true), preventDefault: true },
            { key: "Escape", run: (v) => (v.contentDOM.blur(), true) },
            ...defaultKeymap, ...historyKeymap, ...searchKeymap,
          ]),
          EditorView.contentAttributes.of({ "aria-label": "source code", spellcheck: "false" }),
          EditorView.domEventHandlers({
            mousemove(event, v) {
              const line = lineAt(event, v);
              const key = line === null ? null : lineKey(shownFile.value, line);
              const now = hovered.value;
              if (key === null || !index.value.byLine.has(key)) hovered.value = null;
              else if (now?.kind !== "line" || now.line !== line) {
                hovered.value = { kind: "line", file: shownFile.value, line: line as number };
              }
            },
            mouseleave() {
              hovered.value = null;
            },
            click(event, v) {
              const line = lineAt(event, v);
              if (line !== null) select({ kind: "line", file: shownFile.value, line });
            },
          }),
          EditorView.updateListener.of((update) => {
            if (update.docChanged && shown.current) {
              const now = update.state.doc.toString();
              const base = dirty.peek()?.base ?? record.peek().sources[shown.current] ?? "";
              dirty.value = now === base ? null : { file: shown.current, text: now, base };
            }
          }),
        ],
      }),
    });
    view.current = editor;
    return () => editor.destroy();
  }, []);

  // The text: of another file, or as the last compile read it; what is being edited stays.
  useSignalEffect(() => {
    const editor = view.current;
    const file = shownFile.value;
    const text = record.value.sources[file] ?? "";
    const kept = dirty.value;
    if (!editor || (shown.current === file && kept?.file === file)) return;
    const wanted = kept?.file === file ? kept.text : text;
    const same = shown.current === file;
    shown.current = "";
    const old = editor.state.doc.toString();
    if (old !== wanted) editor.dispatch({ changes: smallest(old, wanted), effects: own.of(null) });
    if (!same) show(editor, firstUsed(file), "start");
    shown.current = file;
  });

  useSignalEffect(() => {
    const editor = view.current;
    if (!editor) return;
    void record.value;
    const file = shownFile.value;
    const doc = editor.state.doc;
    const lit = litLines.value;
    const at = selected.value;
    const found = [];
    const said = new Map<number, Diagnostic[]>();
    for (const d of record.value.diagnostics) {
      const here = d.locations.find((l) => l.file === file && l.line >= 1 && l.line <= doc.lines);
      if (here) said.set(here.line, [...(said.get(here.line) ?? []), d]);
    }
    for (let n = 1; n <= doc.lines; n++) {
      const line = doc.line(n);
      const classes = [
        lit.has(lineKey(file, n)) && "lit",
        at?.kind === "line" && at.file === file && at.line === n && "chosen",
        said.has(n) && `has-${worst(said.get(n) ?? [])}`,
      ].filter(Boolean);
      if (classes.length) found.push(Decoration.line({ class: classes.join(" ") }).range(line.from));
      // A loop says the same of many layers: the first few stand here, all of them in the list.
      const few = (said.get(n) ?? []).filter((d) => d.severity !== "note").slice(0, 2);
      few.forEach((d, i) => found.push(Decoration.widget({ widget: new Said(d), block: true, side: 1 + i }).range(line.to)));
    }
    editor.dispatch({ effects: setMarks.of(Decoration.set(found, true)) });
  });

  useSignalEffect(() => {
    const editor = view.current;
    if (!editor) return;
    const file = shownFile.value;
    const byPlace = index.value.byPlace[right.value];
    const doc = editor.state.doc;
    const found = [];
    for (let n = 1; n <= doc.lines; n++) {
      const nodes = new Set<string>();
      for (const i of index.value.byLine.get(lineKey(file, n)) ?? []) for (const name of byPlace?.get(i) ?? []) nodes.add(name);
      if (nodes.size) found.push(new Count(nodes.size).range(doc.line(n).from));
    }
    editor.dispatch({ effects: setCounts.of(RangeSet.of(found)) });
  });

  // What is selected elsewhere comes into sight here.
  useSignalEffect(() => {
    const editor = view.current;
    const at = selected.value;
    if (!editor || !at) return;
    const line = at.kind === "line" ? at.line : firstLine(at.stage, at.name);
    if (line === null || line > editor.state.doc.lines) return;
    show(editor, line, "nearest");
  });

  return <div class="code" ref={host} />;
}

function show(editor: EditorView, line: number, y: "start" | "nearest"): void {
  const from = editor.state.doc.line(Math.max(1, Math.min(line, editor.state.doc.lines))).from;
  requestAnimationFrame(() => editor.dispatch({ effects: EditorView.scrollIntoView(from, { y, yMargin: 50 }) }));
}

/** The first line that something came of; of a file without such, that of a diagnostic. */
function firstUsed(file: string): number {
  const used = record.peek().places.filter((p) => p.file === file && p.line > 0);
  const said = record.peek().diagnostics.flatMap((d) => d.locations).filter((l) => l.file === file && l.line > 0);
  return Math.min(...(used.length ? used : said).map((p) => p.line), Number.MAX_SAFE_INTEGER) % Number.MAX_SAFE_INTEGER || 1;
}

const own = StateEffect.define<null>();

/** One file at a time is edited, and only where a server can write it. */
function allowed(transaction: { effects: readonly StateEffect<unknown>[] }): boolean {
  const file = shownFile.peek();
  return (editable(file) && (dirty.peek()?.file ?? file) === file) || transaction.effects.some((e) => e.is(own));
}

function firstLine(stage: number, name: string): number | null {
  for (const i of index.value.node(stage, name)?.places ?? []) {
    const place = record.value.places[i];
    if (place && place.file === shownFile.value && place.line > 0) return place.line;
  }
  return null;
}

function worst(said: Diagnostic[]): string {
  return (["error", "warning", "note"] as const).find((s) => said.some((d) => d.severity === s)) ?? "note";
}

/** One change that makes `wanted` of `old`, so that the rest of the text keeps its place on the screen. */
function smallest(old: string, wanted: string): { from: number; to: number; insert: string } {
  let from = 0;
  const most = Math.min(old.length, wanted.length);
  while (from < most && old[from] === wanted[from]) from++;
  let tail = 0;
  while (tail < most - from && old[old.length - 1 - tail] === wanted[wanted.length - 1 - tail]) tail++;
  return { from, to: old.length - tail, insert: wanted.slice(from, wanted.length - tail) };
}

/** The last part of each path; where two are the same, with the folder. */
export function shortNames(files: string[]): Map<string, string> {
  const last = (file: string, n: number) => file.split(/[/\\]/).slice(-n).join("/");
  const found = new Map<string, string>();
  for (const file of files) {
    let n = 1;
    while (n < 9 && files.some((other) => other !== file && last(other, n) === last(file, n))) n++;
    found.set(file, last(file, n));
  }
  return found;
}
