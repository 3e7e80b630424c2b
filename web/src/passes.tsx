// The passes in order: what each took, what it changed, what it said.

import { useSignalEffect } from "@preact/signals";
import { useRef } from "preact/hooks";
import { left, onlyChanged, right, showStage, stages } from "./state";
import type { Stage } from "./record";

export function PassList() {
  const all = stages.value;
  const longest = Math.max(1e-9, ...all.map((s) => s.seconds));
  const list = useRef<HTMLOListElement>(null);
  useSignalEffect(() => {
    void right.value;
    requestAnimationFrame(() => list.current?.querySelector(".right")?.scrollIntoView({ block: "nearest" }));
  });
  const total = all.reduce((sum, s) => sum + s.seconds, 0);
  return (
    <nav class="pane passes" aria-label="passes">
      <header>
        <h2>Passes</h2>
        {all.length > 0 && <span class="dim">{all.length} · {seconds(total)}</span>}
        <label class="toggle" title="leave out passes that changed nothing (h)">
          <input type="checkbox" checked={onlyChanged.value} onChange={(e) => (onlyChanged.value = e.currentTarget.checked)} />
          changed only
        </label>
      </header>
      <ol ref={list}>
        {all.map((s) => (onlyChanged.value && !s.changed && !s.failed && s.index !== right.value ? null : (
          <Entry key={s.index} stage={s} longest={longest} />
        )))}
      </ol>
    </nav>
  );
}

function Entry({ stage, longest }: { stage: Stage; longest: number }) {
  const options = /\{(.*)\}$/s.exec(stage.label)?.[1];
  const shown = stage.index === right.value ? "right" : stage.index === left.value ? "left" : "";
  const counts = (["error", "warning", "note"] as const).map((s) => [s, stage.diagnostics.filter((d) => d.severity === s).length] as const);
  const state = stage.failed ? "failed" : stage.changed || stage.diagnostics.some((d) => d.severity === "error") ? "" : "unchanged";
  return (
    <li class={`${shown} ${state}`}>
      <button
        type="button"
        aria-current={shown === "right" ? "step" : undefined}
        title={`${stage.label}\n${seconds(stage.seconds)}${stage.memory ? `, ${bytes(stage.memory)} more memory` : ""}\nShift+click: on the left side`}
        onClick={(e) => {
          if (e.shiftKey) left.value = stage.index;
          else showStage(stage.index);
        }}
      >
        <span class="n">{String(stage.index).padStart(2, "0")}</span>
        <span class="name">{stage.failed ? "✗ " : ""}{stage.pass}</span>
        <span class={`stage ${stage.stage}`}>{stage.stage}</span>
        <span class="what">
          {stage.failed ? <b class="bad">could not finish</b> : !stage.index ? `${stage.nodes.length} nodes` : stage.changed ? (
            <>
              {stage.nodes_changed > 0 && <b class="plus">±{stage.nodes_changed}</b>}
              {stage.nodes_removed > 0 && <b class="minus">−{stage.nodes_removed}</b>}
            </>
          ) : "no change"}
          {counts.map(([s, n]) => n > 0 && <span key={s} class={`badge ${s}`} title={`${n} ${s}${n > 1 ? "s" : ""}`}>{n}</span>)}
        </span>
        <span class="time">{seconds(stage.seconds)}</span>
        <span class="bar" style={{ width: `${(100 * stage.seconds) / longest}%` }} />
        {options && <span class="options-given">{options}</span>}
      </button>
    </li>
  );
}

export function seconds(s: number): string {
  if (s <= 0) return "";
  if (s < 1e-3) return `${(1e6 * s).toFixed(0)} µs`;
  return s < 1 ? `${(1e3 * s).toPrecision(s < 0.01 ? 2 : 3)} ms` : `${s.toFixed(2)} s`;
}

export function bytes(n: number): string {
  const units = ["B", "kB", "MB", "GB"];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) {
    n /= 1000;
    i++;
  }
  return `${n < 10 && i ? n.toFixed(1) : n.toFixed(0)} ${units[i]}`;
}
