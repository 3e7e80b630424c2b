// What is selected: where it comes from, what it is, and its form in every stage. From here any of them is one click.

import { format, Histogram } from "./charts";
import { type Attribute, isParam, lineKey, mean, type Node, num } from "./record";
import { clamp, goTo, index, record, select, selected, selectedNode, stages, view } from "./state";
import { size } from "./numbers";
import { shortNames } from "./source";

export function Details() {
  const at = selected.value;
  const node = selectedNode.value;
  return (
    <aside class="pane details" aria-label="details">
      <header>
        <h2>Details</h2>
        {at && <button type="button" class="plain" title="Escape" aria-label="clear the selection" onClick={() => select(null)}>✕</button>}
      </header>
      <div class="scroll">
        {node ? <OfNode node={node.node} stage={node.stage} /> : at?.kind === "line" ? <OfLine file={at.file} line={at.line} /> : <Summary />}
      </div>
    </aside>
  );
}

function Summary() {
  const { network, target, options, stages: all, diagnostics, ok, snncc } = record.value;
  const last = all.at(-1);
  const weights = new Map<string, number>();
  for (const node of last?.nodes ?? []) {
    for (const value of Object.values(node.attributes)) if (isParam(value)) weights.set(value.digest, size(value.shape));
  }
  const errors = diagnostics.filter((d) => d.severity === "error").length;
  return (
    <>
      <p class="hint">Point at a line, a node or a layer: all that belongs to it lights up, in every pane. Click to keep it.</p>
      <dl>
        <dt>network</dt><dd>{network || "–"}</dd>
        <dt>target</dt><dd>{target}</dd>
        <dt>compile</dt><dd class={ok === false ? "bad" : "good"}>{ok === false ? `failed: ${errors} error${errors === 1 ? "" : "s"}` : "done"}</dd>
        <dt>nodes</dt><dd>{all[0]?.nodes.length ?? 0} traced, {last?.nodes.length ?? 0} in the last stage</dd>
        <dt>parameters</dt><dd>{[...weights.values()].reduce((a, b) => a + b, 0).toLocaleString("en")}</dd>
        <dt>snncc</dt><dd>{snncc}</dd>
      </dl>
      <h3>Options</h3>
      <dl>
        {Object.entries(options ?? {}).filter(([, v]) => v !== null && !(Array.isArray(v) && !v.length)).map(([name, value]) => (
          <><dt>{name}</dt><dd>{String(value)}</dd></>
        ))}
      </dl>
    </>
  );
}

function OfLine({ file, line }: { file: string; line: number }) {
  const text = record.value.sources[file]?.split("\n")[line - 1]?.trim();
  const places = index.value.byLine.get(lineKey(file, line)) ?? [];
  const modules = [...new Set(places.map((i) => record.value.places[i]?.module).filter(Boolean))] as string[];
  return (
    <>
      <h3>{shortNames([file]).get(file)}:{line}</h3>
      <pre>{text}</pre>
      {places.length ? (
        <>
          <p class="dim">{modules.length ? `modules ${modules.slice(0, 12).join(", ")}${modules.length > 12 ? ` and ${modules.length - 12} more` : ""}` : ""}</p>
          <Forms places={places} />
        </>
      ) : <p class="dim">No node comes from this line.</p>}
    </>
  );
}

function OfNode({ node, stage }: { node: Node; stage: number }) {
  const unit = mean(record.value, node.type.unit);
  const users = index.value.users[stage]?.get(node.name) ?? [];
  const said = index.value.saidOf(node);
  const numbers = node.numbers;
  return (
    <>
      <h3 class="node-name"><code>{cut(node.name, 300)}</code></h3>
      <p class="dim">{node.op} in stage {stages.value[stage]?.label && String(stage).padStart(2, "0")} {stages.value[stage]?.pass}</p>
      <Sources node={node} />
      {said.map((d, i) => (
        <p key={i} class={`said ${d.severity}`}><b>{d.code}</b> {cut(d.message, 400)}{d.hint && <i>help: {cut(d.hint, 300)}</i>}</p>
      ))}
      <h3>Forms in every stage</h3>
      <Forms places={node.places} name={node.name} />
      <h3>Value</h3>
      <dl>
        <dt>shape</dt><dd>{node.type.shape.join(" × ") || "scalar"}</dd>
        <dt>type</dt><dd>{node.type.dtype} {node.type.domain}</dd>
        <dt>unit</dt><dd>{isParam(node.type.unit) ? `per channel, ${unit !== undefined ? `mean ${format(unit)}` : "not here"}` : unit !== undefined ? format(unit) : String(node.type.unit)}</dd>
        {node.place && <><dt>place</dt><dd><button type="button" class="link" onClick={() => (view.value = "chip")}>{node.place}</button></dd></>}
        {numbers && (
          <>
            <dt>range</dt><dd>{range(numbers.min)} to {range(numbers.max)}</dd>
            <dt>rms</dt><dd>{range(numbers.rms)}</dd>
            <dt>zeros</dt><dd>{(100 * numbers.zeros).toFixed(1)} %</dd>
            {num(numbers.error) !== undefined && <><dt>error</dt><dd>{(100 * (num(numbers.error) ?? 0)).toPrecision(3)} %</dd></>}
          </>
        )}
      </dl>
      {numbers && numbers.histogram.length > 0 && (
        <Histogram series={[{ spread: numbers, scale: 1, label: "values", kind: "before" }]} label={`values of ${node.name}`} />
      )}
      <h3>Operands and users</h3>
      <Links label="from" stage={stage} names={node.args} />
      <Links label="to" stage={stage} names={users} />
      {Object.values(node.attributes).some((v) => v !== null) && (
        <>
          <h3>Attributes</h3>
          <dl>{Object.entries(node.attributes).filter(([, v]) => v !== null).map(([name, value]) => <><dt>{name}</dt><dd>{attribute(value)}</dd></>)}</dl>
        </>
      )}
      {node.passes.length > 0 && <p class="dim">made by {node.passes.join(" → ")}</p>}
    </>
  );
}

function Sources({ node }: { node: Node }) {
  const lines = new Map<string, { file: string; line: number; modules: string[] }>();
  for (const i of node.places) {
    const { file, line, module } = record.value.places[i] ?? { file: "", line: 0, module: "" };
    const at = lines.get(lineKey(file, line)) ?? { file, line, modules: [] };
    if (module) at.modules.push(module);
    lines.set(lineKey(file, line), at);
  }
  if (!lines.size) return <p class="dim">It comes from no line of yours.</p>;
  return (
    <ul class="sources-of" aria-label="source lines">
      {[...lines].map(([key, { file, line, modules }]) => {
        const text = record.value.sources[file]?.split("\n")[line - 1]?.trim();
        return (
          <li key={key}>
            <button type="button" class="link" disabled={!file} onClick={() => select({ kind: "line", file, line })}>
              <span>{file ? `${shortNames([file]).get(file)}:${line}` : "no line"}{modules.map((m) => <em key={m}> {cut(m, 80)}</em>)}</span>
              {text && <code>{cut(text, 160)}</code>}
            </button>
          </li>
        );
      })}
    </ul>
  );
}

/** The nodes of every stage that come from the same places; stages that changed none of them in one line. */
function Forms({ places, name }: { places: number[]; name?: string }) {
  const rows: { from: number; to: number; names: string[]; key: string }[] = [];
  for (const s of stages.value) {
    const names = index.value.forms(s.index, places, name);
    const key = names.map((n) => index.value.node(s.index, n)?.text).join("\n");
    const before = rows.at(-1);
    if (before && before.key === key && before.names.join("\n") === names.join("\n")) before.to = s.index;
    else rows.push({ from: s.index, to: s.index, names, key });
  }
  const at = selected.value;
  return (
    <ol class="forms" aria-label="forms">
      {rows.map(({ from, to, names }) => {
        const last = clamp(to, stages.value.length - 1);
        const here = at?.kind === "node" && at.stage >= from && at.stage <= to;
        return (
          <li key={from} class={here ? "here" : ""}>
            <span class="when" title={stages.value[from]?.label}>{String(from).padStart(2, "0")}{to > from ? `–${String(last).padStart(2, "0")}` : ""} {stages.value[from]?.pass}</span>
            {names.length === 0 && <span class="dim">gone</span>}
            {names.slice(0, 24).map((n) => (
              <button type="button" key={n} class={`link ${at?.kind === "node" && at.name === n && here ? "this" : ""}`} data-form={`${from} ${to}`} onClick={() => goTo(from, n)}>
                <b>{index.value.node(from, n)?.op}</b> {cut(n, 60)}
              </button>
            ))}
            {names.length > 24 && <span class="dim">and {names.length - 24} more</span>}
          </li>
        );
      })}
    </ol>
  );
}

function Links({ label, stage, names }: { label: string; stage: number; names: string[] }) {
  return (
    <p class="links"><span class="dim">{label}</span>{" "}
      {names.length ? [...new Set(names)].slice(0, 40).map((n) => <button type="button" key={n} class="link" onClick={() => goTo(stage, n)}>{cut(n, 60)}</button>) : <span class="dim">none</span>}
    </p>
  );
}

function attribute(value: Attribute): string {
  if (isParam(value)) {
    const found = record.value.params[value.digest];
    const text = `${value.dtype} ${value.shape.join("×")}`;
    return found ? `${text}, ${range(found.min)} to ${range(found.max)}` : text;
  }
  return Array.isArray(value) ? value.join(", ") : cut(String(value), 200);
}

function range(value: number | string): string {
  return typeof value === "number" ? format(value) : value;
}

export function cut(text: string, most: number): string {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
