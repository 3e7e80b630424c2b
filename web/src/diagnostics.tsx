// Everything that was said, the worst first, with the way to where it is about.

import { cut } from "./details";
import type { Diagnostic } from "./record";
import { shortNames } from "./source";
import { record, select, showStage, stages, view } from "./state";

const ORDER = ["error", "warning", "note"] as const;

export function DiagnosticsView() {
  const all = record.value.diagnostics;
  if (!all.length) return <p class="empty">Nothing was said: no error, no warning, no note.</p>;
  return (
    <div class="diagnostics">
      {ORDER.map((severity) => {
        const here = all.filter((d) => d.severity === severity);
        return here.length > 0 && (
          <section key={severity}>
            <h3 class={severity}>{here.length} {severity}{here.length > 1 ? "s" : ""}</h3>
            {here.map((d, i) => <One key={i} diagnostic={d} />)}
          </section>
        );
      })}
    </div>
  );
}

function One({ diagnostic: d }: { diagnostic: Diagnostic }) {
  const by = stages.value.find((s) => s.diagnostics.some((o) => o.code === d.code && o.message === d.message));
  const over = d.limit !== undefined && d.found !== undefined ? d.found - d.limit : 0;
  return (
    <article class={`said ${d.severity}`}>
      <p><b>{d.severity}[{d.code}]</b> <span class="message">{cut(d.message, 2000)}</span></p>
      {d.locations.slice(0, 12).map((l, i) => {
        const text = record.value.sources[l.file]?.split("\n")[l.line - 1];
        return (
          <p key={i} class="where">
            <button type="button" class="link" disabled={!l.file} onClick={() => select({ kind: "line", file: l.file, line: l.line })}>
              {l.file ? `${shortNames([l.file]).get(l.file)}:${l.line}` : "no line"}{l.module && ` (${cut(l.module, 100)})`}
            </button>
            {text !== undefined && <code>{cut(text.trim(), 200)}</code>}
          </p>
        );
      })}
      {d.locations.length > 12 && <p class="dim">and {d.locations.length - 12} more places</p>}
      {d.limit !== undefined && d.found !== undefined && (
        <p>limit: {d.limit.toLocaleString("en")} {d.quantity}, found {d.found.toLocaleString("en")}{over ? ` (${Math.abs(over).toLocaleString("en")} too ${over > 0 ? "many" : "few"})` : ""}</p>
      )}
      {d.hint && <p class="help">help: {cut(d.hint, 1000)}</p>}
      {by && <p class="dim">said by <button type="button" class="link" onClick={() => { showStage(by.index); view.value = "text"; }}>{by.pass}</button></p>}
    </article>
  );
}
