// What values are: per layer its weights and activations, thresholds and grids, what each stage costs, rates and
// synaptic operations.

import { useRef } from "preact/hooks";
import { BarList, count, Histogram, type Line, type Series, Spark } from "./charts";
import { pointing, useMarks } from "./marks";
import { type Figures, isParam, type Loss, mean, type Node, num, type Row, type Stage } from "./record";
import { goTo, index, record, selectedNode, showStage, stages } from "./state";

export function NumbersView() {
  const root = useRef<HTMLDivElement>(null);
  useMarks(root);
  const some = stages.value.some((s) => s.nodes.some((n) => n.numbers));
  return (
    <div class="numbers" ref={root} {...pointing}>
      {!some && (
        <p class="hint">Values were not measured: there was no calibration data, the compile was read from a folder, or its model was trained on since. Weights are shown as far as they are here.</p>
      )}
      <Losses />
      <Chosen />
      {some && <Errors />}
      <LayerTable rows={layers()} />
    </div>
  );
}

const CAUSES = ["clipping", "rounding", "time", "reset"] as const;

/** What the compile measured of itself: the network without time and simulated, and what each layer loses alone. */
function Losses() {
  const check = record.value.selfcheck;
  if (!check?.layers) return null;
  const { network, simulated, samples, layers, timesteps, layer_samples: few, cause } = check;
  const sum = (loss: Loss) => CAUSES.reduce((total, name) => total + loss[name], 0);
  const most = Math.max(1e-12, ...layers.map(sum));
  const told = CAUSES.filter((name) => layers.some((loss) => loss[name] > 0));
  return (
    <section class="losses">
      <h3>Against the network <small>on {samples} calibration samples</small></h3>
      <dl class="figures">
        {network && <><dt>the integers as a network, without time</dt><dd>{figures(network)}</dd></>}
        <dt>simulated for {timesteps} time step{timesteps === 1 ? "" : "s"}: what the hardware does</dt><dd>{figures(simulated)}</dd>
      </dl>
      <h3>What each layer loses alone <small>of the size of its activation; {few} sample{few === 1 ? "" : "s"}; most by {cause}</small></h3>
      <table class="layers">
        <thead>
          <tr>
            <th>layer</th><th class="stacked">{told.map((name) => <span key={name} class="swatch"><i class={name} />{name}</span>)}</th>
            {told.map((name) => <th key={name} class="r">{name}</th>)}
            <th class="r" title="with what comes from the layers before it">all together</th>
          </tr>
        </thead>
        <tbody>
          {layers.map((loss) => (
            <tr key={loss.name} data-n={loss.name} data-s={stages.value.length - 1} tabIndex={0} onKeyDown={(e) => e.key === "Enter" && goTo(stages.value.length - 1, loss.name)}>
              <td class="name" title={loss.name}>{loss.name}</td>
              <td class="stacked">{told.map((name) => <i key={name} class={name} title={`${name} ${percent(loss[name])}`} style={{ width: `${(100 * loss[name]) / most}%` }} />)}</td>
              {told.map((name) => <td key={name} class="r">{percent(loss[name])}</td>)}
              <td class="r">{percent(loss.error)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function percent(part: number): string {
  return part === 0 ? "" : `${(100 * part).toFixed(part < 0.0995 ? 2 : 1)} %`;
}

function figures({ error, changed }: Figures): string {
  const off = `output off by ${percent(error) || "0 %"}`;
  return changed === null ? off : `${(100 * (1 - changed)).toFixed(1)} % keep their class; ${off}`;
}

interface Layer { node: Node; stage: number; row?: Row }

/** The layers of weights in the last stage, with their rows in the report. */
function layers(): Layer[] {
  const last = stages.value.length - 1;
  const report = new Map((record.value.report ?? []).map((r) => [r.layer, r]));
  return (stages.value[last]?.nodes ?? []).filter((n) => isParam(n.attributes["weight"])).map((node) => {
    const row = report.get(node.name);
    return { node, stage: last, ...(row && { row }) };
  });
}

function LayerTable({ rows }: { rows: Layer[] }) {
  if (!rows.length) return null;
  const has = (key: keyof Row) => rows.some((r) => r.row?.[key] !== undefined);
  const most = (key: "synops" | "rate" | "error") => Math.max(1e-12, ...rows.map((r) => r.row?.[key] ?? 0));
  const tops = { synops: most("synops"), rate: most("rate"), error: most("error") };
  const total = rows.reduce((sum, r) => sum + (r.row?.synops ?? 0), 0);
  return (
    <section>
      <h3>Layers of weights <small>{rows.length}{total ? ` · ${count(total)} synaptic operations per sample` : ""}</small></h3>
      <table class="layers">
        <thead>
          <tr>
            <th>layer</th><th>output</th><th class="r">weights</th><th>distribution</th>
            {has("threshold") && <th class="r">threshold</th>}
            {has("rate") && <th>rate</th>}
            {has("synops") && <th>synops</th>}
            {has("error") && <th title="of the rates over all time steps, from the network's activations">error</th>}
          </tr>
        </thead>
        <tbody>
          {rows.map(({ node, stage, row }) => {
            const weight = node.attributes["weight"];
            const spread = isParam(weight) ? record.value.params[weight.digest] : undefined;
            return (
              <tr key={node.name} data-n={node.name} data-s={stage} tabIndex={0} onKeyDown={(e) => e.key === "Enter" && goTo(stage, node.name)}>
                <td class="name" title={node.name}>{node.name}</td>
                <td class="dim">{node.op} {node.type.shape.join("×")}</td>
                <td class="r">{isParam(weight) ? size(weight.shape).toLocaleString("en") : ""}</td>
                <td>{spread && <Spark spread={spread} label={`weights of ${node.name}`} />}</td>
                {has("threshold") && <td class="r">{row?.threshold?.toLocaleString("en")}</td>}
                {has("rate") && <Bar value={row?.rate} top={tops.rate} text={row?.rate?.toFixed(3)} />}
                {has("synops") && <Bar value={row?.synops} top={tops.synops} text={row?.synops !== undefined ? count(row.synops) : ""} />}
                {has("error") && <Bar value={row?.error} top={tops.error} text={row?.error !== undefined ? `${(100 * row.error).toFixed(1)} %` : ""} />}
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}

function Bar({ value, top, text }: { value: number | undefined; top: number; text: string | undefined }) {
  return (
    <td class="meter">
      {value !== undefined && <><i style={{ width: `${(60 * value) / top}%` }} /><span>{text}</span></>}
    </td>
  );
}

/** How far the network's outputs moved, stage by stage. */
function Errors() {
  const outputs = stages.value[0]?.outputs ?? []; // the network's: spiking ones come after them
  const errors = (s: Stage) => s.nodes.flatMap((n) => (n.numbers?.of !== undefined && outputs.includes(n.numbers.of) ? [num(n.numbers.error) ?? -1] : []));
  const rows = stages.value.flatMap((s) => {
    const worst = Math.max(-1, ...errors(s));
    return worst < 0 ? [] : [{ name: s.pass, value: 100 * worst, act: () => showStage(s.index) }];
  });
  if (!rows.length) return null;
  return (
    <section>
      <h3>Scores: distance from the traced network <small>2-norm, relative; run as a network, without time</small></h3>
      <BarList rows={rows} label="error of the outputs by stage" unit=" %" />
    </section>
  );
}

/** The layer and the neuron that belong to what is selected, in every stage that says something of them. */
function Chosen() {
  const at = selectedNode.value;
  if (!at) return <p class="hint">Select a layer, in the table or anywhere else, to see its distributions.</p>;
  const { node } = at;
  return (
    <section class="chosen-numbers">
      <h3><span class="name" title={node.name}>{node.name}</span> <small>{node.op} {node.type.shape.join("×")}</small></h3>
      <div class="charts">
        <Weights node={node} stage={at.stage} />
        <Activations node={node} stage={at.stage} />
        <ErrorOf node={node} stage={at.stage} />
      </div>
    </section>
  );
}

/** The real value of one step of a layer's weights: its currents' unit by that of what comes in. */
function stepOf(stage: number, node: Node): number | undefined {
  const source = index.value.node(stage, node.args[0] ?? "");
  const [out, into] = [mean(record.value, node.type.unit), mean(record.value, source?.type.unit)];
  return out !== undefined && into ? out / into : undefined;
}

const integer = (dtype: string) => dtype.startsWith("i");

function Weights({ node, stage }: { node: Node; stage: number }) {
  const layer = isParam(node.attributes["weight"]) ? node : layerBefore(stage, node);
  if (!layer) return null;
  const series: Series[] = [];
  let grid: number | undefined;
  for (const s of stages.value) {
    const form = index.value.node(s.index, layer.name);
    const weight = form?.attributes["weight"];
    if (!form || !isParam(weight)) continue;
    const spread = record.value.params[weight.digest];
    if (!spread) continue;
    if (!integer(weight.dtype)) series[0] = { spread, scale: 1, label: `weights, ${s.stage} (${s.pass})`, kind: "before" };
    else {
      const step = stepOf(s.index, form);
      if (step === undefined) continue;
      series[1] = { spread, scale: step, label: `${weight.dtype}, ${s.stage} (${s.pass})`, kind: "after" };
      grid = Math.abs(step);
    }
  }
  const shown = series.filter(Boolean);
  if (!shown.length) return null;
  return <Histogram series={shown} grid={grid} label={`weights of ${layer.name}`} />;
}

function layerBefore(stage: number, node: Node): Node | undefined {
  const seen = new Set<string>();
  const queue = [...node.args];
  while (queue.length) {
    const name = queue.shift() as string;
    const at = index.value.node(stage, name);
    if (!at || seen.has(name) || seen.size > 20) continue;
    seen.add(name);
    if (isParam(at.attributes["weight"])) return at;
    if (!NEURONS.test(at.op)) queue.push(...at.args);
  }
  return undefined;
}

const NEURONS = /^(if|lif|cuba_lif|atr_lif|sigma_delta)$/;
const THRESHOLDS = /^(if|cuba_lif|atr_lif)$/; // whose spike is worth a threshold; a LIF of the user's own is not a ReLU

/** The neuron that a node's value goes to, or itself. */
function neuronOf(stage: number, node: Node): Node | undefined {
  let at: Node | undefined = node;
  for (let i = 0; at && i < 20; i++) {
    if (NEURONS.test(at.op)) return at;
    const users: string[] = index.value.users[stage]?.get(at.name) ?? [];
    at = users.length === 1 ? index.value.node(stage, users[0] as string) : undefined;
  }
  return undefined;
}

function Activations({ node, stage }: { node: Node; stage: number }) {
  const series: Series[] = [];
  for (const { stage: s, node: { numbers } } of measured(node)) {
    if (!numbers?.histogram.length) continue;
    const entry = (kind: string): Series => ({ spread: numbers, scale: 1, label: `values, ${s.stage} (${s.pass})`, kind });
    if (!series[0]) series[0] = entry("before");
    else series[1] = entry("after");
  }
  if (!series.length) return null;
  const lines: Line[] = [];
  let grid: number | undefined;
  const last = stages.value.findLast((s) => index.value.node(s.index, node.name));
  const here = index.value.node(last?.index ?? stage, node.name) ?? node;
  const neuron = neuronOf(last?.index ?? stage, here);
  if (neuron && THRESHOLDS.test(neuron.op)) {
    const unit = mean(record.value, neuron.type.unit);
    if (unit !== undefined) {
      lines.push({ at: unit, label: isParam(neuron.type.unit) ? "threshold (mean of the channels)" : "threshold", kind: "threshold" });
      const steps = Number(record.value.options?.["timesteps"] ?? 0);
      // What a rate can be: a whole number of spikes in T steps.
      if (steps > 0) grid = unit / steps;
    }
  }
  return <Histogram series={series} lines={lines} grid={grid} label={`values of ${node.name}`} />;
}

/** The nodes that stand for the same value of the traced network, in every stage that was measured. */
function measured(node: Node): { stage: Stage; node: Node }[] {
  const of = valueOf(node);
  return stages.value.flatMap((stage) => {
    const form = of === undefined ? index.value.node(stage.index, node.name) : stage.nodes.find((n) => n.numbers?.of === of);
    return form?.numbers ? [{ stage, node: form }] : [];
  });
}

/** Which value of the traced network that is; a stage that a pass left as it was is not measured again. */
function valueOf(node: Node): string | undefined {
  if (node.numbers) return node.numbers.of;
  const before = stages.value.findLast((s) => index.value.node(s.index, node.name)?.numbers);
  return before && index.value.node(before.index, node.name)?.numbers?.of;
}

function ErrorOf({ node, stage }: { node: Node; stage: number }) {
  const rows = measured(node).flatMap(({ stage: s, node: form }) => {
    const error = num(form.numbers?.error);
    return error === undefined ? [] : [{ name: s.pass, value: 100 * error, lit: s.index === stage, act: () => goTo(s.index, form.name) }];
  });
  if (!rows.length) return null;
  return (
    <figure class="chart">
      <BarList rows={rows} label={`error of ${node.name} by stage`} unit=" %" />
      <figcaption>distance of its values from the traced network's, by stage</figcaption>
    </figure>
  );
}

export function size(shape: number[]): number {
  return shape.reduce((n, s) => n * s, 1);
}
