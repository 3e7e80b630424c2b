// The page: source and passes on the left, a view in the middle, what is selected on the right.

import { effect, useSignal } from "@preact/signals";
import { render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { ChipView } from "./chip";
import { cut, Details } from "./details";
import { DiagnosticsView } from "./diagnostics";
import { GraphView } from "./graph";
import { connect, guard, isLive, LiveBar } from "./live";
import { NumbersView } from "./numbers";
import { PassList } from "./passes";
import { SourcePane } from "./source";
import {
  clamp, goTo, help, index, left, onlyChanged, record, right, select, selectedNode, showStage, stages, start, theme, type View, view, VIEWS,
} from "./state";
import { TextView } from "./text";
import "./style.css";

function App() {
  const { network, target, ok, diagnostics } = record.value;
  const errors = diagnostics.filter((d) => d.severity === "error").length;
  const warnings = diagnostics.filter((d) => d.severity === "warning").length;
  const shown = view.value;
  return (
    <>
      <header class="top">
        <h1><span class="logo">snncc</span> <b title={network}>{cut(network || "network", 60)}</b> <span class="dim">on</span> <b>{target}</b></h1>
        <span class={`verdict ${ok === false ? "bad" : "good"}`}>{ok === false ? `✗ ${errors} error${errors === 1 ? "" : "s"}` : "✓ compiled"}</span>
        <LiveBar />
        <Search />
        <button type="button" aria-label="light or dark" title="t" onClick={flipTheme}>◐</button>
        <button type="button" aria-label="keys" title="?" aria-expanded={help.value} onClick={() => (help.value = !help.value)}>?</button>
      </header>
      <main>
        <div class="column first">
          <SourcePane />
          <Splitter what="--source" axis="y" />
          <PassList />
        </div>
        <Splitter what="--left" axis="x" />
        <section class="pane view" aria-label="view">
          <div class="tabs" role="tablist">
            {VIEWS.map((name, i) => (
              <button
                type="button" role="tab" key={name} id={`tab-${name}`} aria-selected={shown === name} aria-controls="view" title={String(i + 1)}
                onClick={() => (view.value = name)}
              >
                {name}
                {name === "diagnostics" && (errors > 0 ? <span class="badge error">{errors}</span> : warnings > 0 ? <span class="badge warning">{warnings}</span> : null)}
              </button>
            ))}
          </div>
          <div class="body" id="view" role="tabpanel" aria-labelledby={`tab-${shown}`}><Shown name={shown} /></div>
        </section>
        <Splitter what="--right" axis="x" reverse />
        <Details />
      </main>
      {help.value && <Help />}
    </>
  );
}

function Shown({ name }: { name: View }) {
  if (!stages.value.length) return <DiagnosticsView />; // there is nothing else to show
  switch (name) {
    case "text": return <TextView />;
    case "graph": return <GraphView />;
    case "numbers": return <NumbersView />;
    case "chip": return <ChipView />;
    case "diagnostics": return <DiagnosticsView />;
  }
}

/** Find a node by its name or operation, in the stage on the right. */
function Search() {
  const text = useSignal("");
  const at = useSignal(0);
  const words = text.value.trim().toLowerCase();
  const stage = right.value;
  const nodes = words ? (stages.value[stage]?.nodes ?? []) : [];
  const named = nodes.filter((n) => n.name.toLowerCase().includes(words));
  const found = [...named, ...nodes.filter((n) => n.op.includes(words) && !named.includes(n))].slice(0, 40);
  const choose = (i: number) => {
    const node = found[i];
    if (!node) return;
    text.value = "";
    (document.activeElement as HTMLElement | null)?.blur();
    goTo(stage, node.name);
  };
  return (
    <div class="search">
      <input
        id="search" type="search" placeholder="find a node  /" aria-label="find a node" autocomplete="off" value={text.value}
        onInput={(e) => { text.value = e.currentTarget.value; at.value = 0; }}
        onKeyDown={(e) => {
          if (e.key === "ArrowDown") at.value = clamp(at.value + 1, found.length - 1);
          else if (e.key === "ArrowUp") at.value = clamp(at.value - 1, found.length - 1);
          else if (e.key === "Enter") choose(at.value);
          else if (e.key === "Escape") { text.value = ""; e.currentTarget.blur(); }
          else return;
          e.preventDefault();
        }}
      />
      {found.length > 0 && (
        <ul role="listbox" aria-label="found">
          {found.map((n, i) => (
            <li key={n.name} role="option" aria-selected={i === at.value} onMouseDown={(e) => { e.preventDefault(); choose(i); }}>
              <b>{n.op}</b> {cut(n.name, 80)}
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}

function Splitter({ what, axis, reverse = false }: { what: string; axis: "x" | "y"; reverse?: boolean }) {
  const root = useRef<HTMLDivElement>(null);
  const move = (by: number) => {
    const style = document.documentElement.style;
    const pane = (reverse ? root.current?.nextElementSibling : root.current?.previousElementSibling) as HTMLElement | null;
    const now = axis === "x" ? pane?.offsetWidth : pane?.offsetHeight;
    const all = axis === "x" ? innerWidth : innerHeight;
    if (now !== undefined) style.setProperty(what, `${Math.max(80, Math.min(0.7 * all, now + (reverse ? -by : by)))}px`);
  };
  return (
    <div
      ref={root} class={`splitter ${axis}`} role="separator" tabIndex={0} aria-orientation={axis === "x" ? "vertical" : "horizontal"} aria-label="resize"
      onPointerDown={(e) => e.currentTarget.setPointerCapture(e.pointerId)}
      onPointerMove={(e) => {
        if (e.currentTarget.hasPointerCapture(e.pointerId)) move(axis === "x" ? e.movementX : e.movementY);
      }}
      onKeyDown={(e) => {
        const step = { ArrowLeft: -16, ArrowUp: -16, ArrowRight: 16, ArrowDown: 16 }[e.key];
        if (step) { move(step); e.stopPropagation(); e.preventDefault(); }
      }}
    />
  );
}

const KEYS: [string, string][] = [
  ["1 … 5", "text, graph, numbers, chip, diagnostics"],
  ["j  k", "the next stage, the one before"],
  ["[  ]", "another stage on the left side"],
  ["n  N", "the selected node's form in the next stage, in the one before"],
  ["←  →", "the selected node's first operand, its first user"],
  ["↑  ↓", "the node before, the node behind"],
  ["/", "find a node"],
  ["h", "only passes and lines that changed"],
  ["f  +  −", "the whole graph, closer, farther"],
  ["t", "light or dark"],
  ["Esc", "clear the selection"],
  ["?", "this list"],
];

function Help() {
  const box = useRef<HTMLDialogElement>(null);
  useEffect(() => box.current?.showModal(), []);
  return (
    <dialog class="help" ref={box} onClose={() => (help.value = false)} onClick={(e) => e.target === box.current && box.current?.close()}>
      <h2>Keys</h2>
      <dl>{KEYS.map(([key, what]) => <><dt><kbd>{key}</kbd></dt><dd>{what}</dd></>)}</dl>
      <p class="dim">The address of the page restores what it shows{isLive() ? "; Ctrl+S saves the source and compiles" : ""}.</p>
      <button type="button" onClick={() => box.current?.close()}>close</button>
    </dialog>
  );
}

function flipTheme(): void {
  const dark = theme.value ? theme.value === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  theme.value = dark ? "light" : "dark";
}

function onKey(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input, select, textarea, .cm-editor, dialog")) return;
  const last = stages.value.length - 1;
  const at = selectedNode.value;
  const nodes = stages.value[at?.stage ?? right.value]?.nodes ?? [];
  const step = (by: number) => {
    const now = at ? nodes.findIndex((n) => n.name === at.node.name) : by > 0 ? -1 : nodes.length;
    const next = nodes[clamp(now + by, nodes.length - 1)];
    if (next) goTo(at?.stage ?? right.value, next.name);
  };
  const form = (by: number) => {
    if (!at) return;
    for (let i = at.stage + by; i >= 0 && i <= last; i += by) {
      const name = index.value.same(i, at.node);
      if (name !== undefined) return goTo(i, name);
    }
  };
  const svg = document.querySelector("svg.canvas");
  const actions: Record<string, () => void> = {
    j: () => showStage(right.value + 1),
    k: () => showStage(Math.max(0, right.value - 1)),
    "[": () => (left.value = clamp(left.value - 1, last)),
    "]": () => (left.value = clamp(left.value + 1, last)),
    n: () => form(1),
    N: () => form(-1),
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    ArrowLeft: () => {
      const operand = at?.node.args[0];
      if (at && operand !== undefined) goTo(at.stage, operand);
    },
    ArrowRight: () => {
      const user = at && index.value.users[at.stage]?.get(at.node.name)?.[0];
      if (at && user) goTo(at.stage, user);
    },
    "/": () => document.getElementById("search")?.focus(),
    h: () => (onlyChanged.value = !onlyChanged.value),
    f: () => svg?.dispatchEvent(new Event("fit")),
    "+": () => svg?.dispatchEvent(new CustomEvent("zoomby", { detail: 1.3 })),
    "-": () => svg?.dispatchEvent(new CustomEvent("zoomby", { detail: 1 / 1.3 })),
    t: flipTheme,
    "?": () => (help.value = !help.value),
    Escape: () => select(null),
  };
  VIEWS.forEach((name, i) => (actions[String(i + 1)] = () => (view.value = name)));
  const action = Object.hasOwn(actions, event.key) ? actions[event.key] : undefined;
  if (action) {
    action();
    event.preventDefault();
  }
}

start();
effect(() => {
  if (theme.value) document.documentElement.dataset["theme"] = theme.value;
  else delete document.documentElement.dataset["theme"];
});
addEventListener("keydown", onKey);
const app = document.getElementById("app") as HTMLElement;
app.textContent = "";
render(<App />, app);
connect();
guard();
document.documentElement.dataset["ready"] = String(Math.round(performance.now()));
