// A stage as a graph: modules are boxes that open and shut, colours say what a node is, marks what the pass did to it.

import { select as d3 } from "d3-selection";
import { type ZoomBehavior, zoom, zoomIdentity, zoomTransform } from "d3-zoom";
import { useSignalEffect } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { type Box, curve, draw, type Drawing, grouped, groupsOf, LONGEST, short, shutAtFirst } from "./layout";
import { pointing, useMarks } from "./marks";
import { change, type Index, type Stage } from "./record";
import { closed, focus, index, left, opened, right, selected, selectedNode, stages } from "./state";

export function GraphView() {
  const stage = stages.value[right.value];
  return stage ? <Graph stage={stage} /> : null;
}

function Graph({ stage }: { stage: Stage }) {
  const svg = useRef<SVGSVGElement>(null);
  const canvas = useRef<SVGGElement>(null);
  const behaviour = useRef<ZoomBehavior<SVGSVGElement, unknown> | null>(null);
  const root = useMemo(
    () => grouped(stage.nodes.map((n) => ({ name: n.name, title: lastPart(n.name), note: `${n.op} ${n.type.shape.join("×")}`, args: n.args }))),
    [stage],
  );
  const first = useMemo(() => shutAtFirst(root), [root]);
  const shut = new Set([...first].filter((id) => !opened.value.has(id)).concat([...closed.value]));
  const shutKey = [...shut].sort().join("\n");
  const drawing = useMemo(() => draw(root, shut), [root, shutKey]);
  useMarks(canvas);

  const fit = (): void => {
    const element = svg.current;
    const z = behaviour.current;
    if (!element || !z || !drawing.width) return;
    const { width, height } = element.getBoundingClientRect();
    const k = Math.min(1.25, Math.max(0.45, Math.min((width - 40) / drawing.width, (height - 40) / drawing.height)));
    const y = drawing.height * k < height ? (height - drawing.height * k) / 2 : 20;
    d3(element).call(z.transform, zoomIdentity.translate((width - drawing.width * k) / 2, y).scale(k));
  };

  useEffect(() => {
    const element = svg.current as SVGSVGElement;
    const z = zoom<SVGSVGElement, unknown>().scaleExtent([0.05, 4]).on("zoom", (event: { transform: { toString(): string } }) => {
      canvas.current?.setAttribute("transform", event.transform.toString());
    });
    behaviour.current = z;
    d3(element).call(z).on("dblclick.zoom", null);
    const onFit = () => fit();
    const onZoom = (event: Event) => d3(element).call(z.scaleBy, (event as CustomEvent<number>).detail);
    element.addEventListener("fit", onFit);
    element.addEventListener("zoomby", onZoom);
    return () => {
      element.removeEventListener("fit", onFit);
      element.removeEventListener("zoomby", onZoom);
    };
  }, [drawing]);
  useEffect(fit, [stage.index]);

  // What is selected elsewhere comes into sight: the boxes that it is in open.
  const here = (): string | undefined => {
    const at = selectedNode.value;
    if (!at) return undefined;
    return at.stage === stage.index ? at.node.name : index.value.same(stage.index, at.node);
  };
  useSignalEffect(() => {
    const name = here();
    const around = name === undefined ? undefined : groupsOf(name, root);
    if (around?.some((id) => shut.has(id))) {
      opened.value = new Set([...opened.peek(), ...around]);
      closed.value = new Set([...closed.peek()].filter((id) => !around.includes(id)));
    } else center();
  });
  useEffect(() => center(), [drawing]);
  const center = (): void => {
    const element = svg.current;
    const z = behaviour.current;
    const name = here();
    const box = drawing.boxes.find((b) => b.name === name);
    if (!box || !element || !z) return;
    const t = zoomTransform(element);
    const { width, height } = element.getBoundingClientRect();
    const [x, y] = t.apply([box.x + box.width / 2, box.y + box.height / 2]);
    if (x < 60 || y < 40 || x > width - 60 || y > height - 40) d3(element).call(z.translateTo, box.x + box.width / 2, box.y + box.height / 2);
  };

  const toggle = (box: Box): void => {
    const [into, outof] = box.open ? [closed, opened] : [opened, closed];
    into.value = new Set(into.value).add(box.id);
    outof.value = new Set([...outof.value].filter((id) => id !== box.id));
  };
  const groups = drawing.boxes.filter((b) => b.name === null);
  return (
    <div class="graph">
      <div class="tools">
        <span class="dim">{stage.nodes.length} nodes · {stage.label.length > 40 ? stage.pass : stage.label}</span>
        <button type="button" onClick={fit} title="f">fit</button>
        {groups.length > 0 && (
          <>
            <button type="button" onClick={() => { opened.value = new Set(first); closed.value = new Set(); }}>open all</button>
            <button type="button" onClick={() => { closed.value = new Set(groups.filter((g) => g.depth === 0).map((g) => g.id)); }}>shut all</button>
          </>
        )}
        <Legend />
      </div>
      <svg ref={svg} class="canvas" role="img" aria-label={`graph of ${stage.label}`} {...pointing}>
        <defs>
          <marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">
            <path d="M0,0 L8,4 L0,8 z" />
          </marker>
        </defs>
        <g ref={canvas}>
          <Boxes drawing={drawing} stage={stage} toggle={toggle} />
        </g>
      </svg>
    </div>
  );
}

function Boxes({ drawing, stage, toggle }: { drawing: Drawing; stage: Stage; toggle: (box: Box) => void }) {
  const known = index.value;
  const edges = useRef<SVGGElement>(null);
  useSignalEffect(() => {
    const at = focus.value;
    const name = at?.kind === "node" && at.stage === stage.index ? at.name : undefined;
    for (const path of edges.current?.children ?? []) {
      const { v, to } = (path as SVGElement).dataset;
      path.classList.toggle("lit", name !== undefined && (v === name || to === name));
    }
  });
  return (
    <>
      {drawing.boxes.filter((b) => b.open).map((box) => <OpenGroup key={box.id} box={box} toggle={toggle} />)}
      <g class="edges" ref={edges}>
        {drawing.edges.map((edge, i) => (
          <path key={i} d={curve(edge.points)} data-v={edge.value} data-to={edge.to} {...(edge.to && { "marker-end": "url(#arrow)" })} />
        ))}
      </g>
      {drawing.boxes.filter((b) => !b.open).map((box) => (box.name === null
        ? <ShutGroup key={box.id} box={box} stage={stage} index={known} toggle={toggle} />
        : <Leaf key={box.id} box={box} stage={stage} index={known} />))}
    </>
  );
}

function OpenGroup({ box, toggle }: { box: Box; toggle: (box: Box) => void }) {
  return (
    <g class={`group depth${box.depth % 2}`} transform={`translate(${box.x.toFixed(1)},${box.y.toFixed(1)})`}>
      <rect width={box.width} height={box.height} rx={8} />
      <g class="handle" role="button" tabIndex={0} aria-label={`shut ${short(box.title)}`} onClick={() => toggle(box)} onKeyDown={(e) => e.key === "Enter" && toggle(box)}>
        <rect class="hit" width={box.width} height={22} rx={8} />
        <text x={10} y={16}>▾ {short(box.title)}</text>
        <text class="more" x={box.width - 10} y={16} text-anchor="end">{box.members.length}</text>
      </g>
    </g>
  );
}

function ShutGroup({ box, stage, index: known, toggle }: { box: Box; stage: Stage; index: Index; toggle: (box: Box) => void }) {
  const changed = stage.index > 0 && box.members.some((name) => isNew(known, stage, name) !== "same");
  const lead = box.members.at(-1) ?? "";
  return (
    <g
      class={`shut ${changed ? "changed" : ""}`} transform={`translate(${box.x.toFixed(1)},${box.y.toFixed(1)})`}
      role="button" tabIndex={0} aria-label={`open ${short(box.title)}`} data-n={lead} data-s={stage.index}
      onClick={(e) => { toggle(box); e.stopPropagation(); }} onKeyDown={(e) => e.key === "Enter" && toggle(box)}
    >
      <title>{short(box.members.join("\n"), 800)}</title>
      <rect class="back" x={4} y={4} width={box.width} height={box.height} rx={6} />
      <rect width={box.width} height={box.height} rx={6} />
      <text x={10} y={25}>▸ {short(box.title)}</text>
      <text class="more" x={box.width - 10} y={25} text-anchor="end">{box.members.length}</text>
    </g>
  );
}

function isNew(known: Index, stage: Stage, name: string): "new" | "changed" | "same" {
  const node = known.node(stage.index, name);
  return node ? change(known, left.value, node) : "same";
}

function Leaf({ box, stage, index: known }: { box: Box; stage: Stage; index: Index }) {
  const name = box.name as string;
  const node = known.node(stage.index, name);
  if (!node) return null;
  const state = stage.index > left.value ? isNew(known, stage, name) : "same";
  const said = known.worst(node);
  return (
    <g
      class={`leaf ${kindOf(node.op)} is-${state}`} transform={`translate(${box.x.toFixed(1)},${box.y.toFixed(1)})`}
      data-n={name} data-s={stage.index} tabIndex={0} role="button" aria-label={`${node.op} ${short(name, 60)}`}
      onKeyDown={(e) => e.key === "Enter" && (selected.value = { kind: "node", stage: stage.index, name })}
    >
      <title>{short(node.text, 1200)}</title>
      <rect width={box.width} height={box.height} rx={6} />
      <rect class="stripe" width={5} height={box.height} rx={2} />
      <text x={14} y={16}>{short(box.title)}</text>
      <text class="note" x={14} y={32}>{short(box.note, LONGEST + 8)}</text>
      {state !== "same" && <circle class={`dot ${state}`} cx={box.width - 9} cy={9} r={4} />}
      {said && <text class={`flag ${said}`} x={box.width - 10} y={33} text-anchor="end">{said === "error" ? "✗" : "!"}</text>}
    </g>
  );
}

const KINDS: [string, RegExp][] = [
  ["io", /^(input|encode|constant)$/],
  ["layer", /^(conv|linear|depthwise|fused)/],
  ["norm", /norm|affine|scale|identity|dropout/],
  ["neuron", /^(if|lif|cuba_lif|atr_lif|sigma|delta|sigma_delta)$/],
  ["act", /relu|clamp|hardtanh|quant|tanh|sigmoid|clip/],
  ["pool", /pool/],
  ["join", /^(add|sub|mul|concat)/],
];

export function kindOf(op: string): string {
  return KINDS.find(([, test]) => test.test(op))?.[0] ?? "shape";
}

function Legend() {
  const names: [string, string][] = [["io", "input"], ["layer", "weights"], ["norm", "scale"], ["act", "activation"], ["neuron", "neuron"], ["pool", "pooling"], ["join", "join"], ["shape", "shape"]];
  return (
    <ul class="legend" aria-label="colours">
      {names.map(([kind, text]) => <li key={kind} class={kind}>{text}</li>)}
      <li class="mark new">new</li>
      <li class="mark changed">changed</li>
    </ul>
  );
}

function lastPart(name: string): string {
  return name.slice(name.lastIndexOf(".") + 1);
}
