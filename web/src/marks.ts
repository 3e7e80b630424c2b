// Light up what belongs together: elements with `data-n` (a node's name) and `data-s` (the index of its stage).

import { useSignalEffect } from "@preact/signals";
import type { RefObject } from "preact";
import { useLayoutEffect } from "preact/hooks";
import { hovered, litNodes, select, selected } from "./state";

function mark(root: Element | null): void {
  if (!root) return;
  const lit = new Map<string, Set<string>>();
  const at = selected.value;
  litNodes(0); // what the effect depends on, even if nothing is drawn yet
  for (const element of root.querySelectorAll<HTMLElement | SVGElement>("[data-n]")) {
    const { n: name = "", s: stage = "" } = element.dataset;
    let here = lit.get(stage);
    if (!here) lit.set(stage, (here = litNodes(Number(stage))));
    element.classList.toggle("lit", here.has(name));
    element.classList.toggle("chosen", at?.kind === "node" && at.name === name && String(at.stage) === stage);
  }
}

export function useMarks(root: RefObject<Element | null>): void {
  useSignalEffect(() => mark(root.current));
  useLayoutEffect(() => mark(root.current)); // what was drawn anew has no marks yet
}

function nodeAt(event: Event): { stage: number; name: string } | null {
  const element = (event.target as Element).closest<HTMLElement>("[data-n]");
  return element ? { stage: Number(element.dataset["s"]), name: element.dataset["n"] ?? "" } : null;
}

/** Handlers for an element that holds such. */
export const pointing = {
  onMouseOver(event: MouseEvent) {
    const at = nodeAt(event);
    const now = hovered.value;
    if (!at) hovered.value = null;
    else if (now?.kind !== "node" || now.name !== at.name || now.stage !== at.stage) hovered.value = { kind: "node", ...at };
  },
  onMouseLeave() {
    hovered.value = null;
  },
  onClick(event: MouseEvent) {
    const at = nodeAt(event);
    if (at) select({ kind: "node", ...at });
  },
};

/** Bring what is selected into sight. */
export function useInSight(root: RefObject<Element | null>): void {
  useSignalEffect(() => {
    if (!selected.value) return;
    requestAnimationFrame(() => {
      const shown = root.current?.querySelector(".chosen") ?? root.current?.querySelector(".lit");
      shown?.scrollIntoView({ block: "nearest" });
    });
  });
}
