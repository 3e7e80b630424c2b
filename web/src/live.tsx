// Where a server stands behind the page: what it does now, what one may ask of it, and the source that is edited.

import { signal } from "@preact/signals";
import { record, replaceRecord } from "./state";
import type { CompileRecord } from "./record";

interface Option {
  type: "choice" | "int" | "float" | "text" | "bool" | "list";
  of?: "int" | "text";
  choices?: (string | null)[];
  min?: number;
  max?: number;
  default: unknown;
  help?: string;
}
interface Live {
  base: string;
  targets: { name: string; summary: string }[];
  options: Record<string, Option>;
  settings: { target: string; options: Record<string, unknown> };
  editable: string[];
  version: number;
}

interface State { version: number; busy: boolean; seconds: number | null; settings: Live["settings"]; editable: string[] }

const live = JSON.parse(document.getElementById("live")?.textContent ?? "null") as Live | null;

/** The text that is edited, and what it was when that began: what the file must still hold to be written over. */
export const dirty = signal<{ file: string; text: string; base: string } | null>(null);
const status = signal<{ busy: boolean; seconds: number | null; gone: boolean; said: string }>({
  busy: false, seconds: null, gone: false, said: "",
});
const settings = signal(live?.settings ?? { target: "", options: {} });
const writable = signal(live?.editable ?? []);
const asking = signal(false);
let shownVersion = live?.version ?? 0;

export function isLive(): boolean {
  return live !== null;
}

export function editable(file: string): boolean {
  return writable.value.includes(file);
}

export function connect(): void {
  if (!live) return;
  const events = new EventSource(`${live.base}events`);
  events.onmessage = async (event: MessageEvent<string>) => {
    const now = JSON.parse(event.data) as State;
    const { version } = now;
    status.value = { ...status.value, busy: now.busy, seconds: now.seconds, gone: false };
    settings.value = now.settings;
    writable.value = now.editable;
    if (version === shownVersion) return;
    shownVersion = version;
    const answer = await fetch(`${live.base}record`);
    if (answer.ok && version === shownVersion) {
      replaceRecord((await answer.json()) as CompileRecord);
      document.documentElement.dataset["version"] = String(version);
    }
  };
  events.onerror = () => (status.value = { ...status.value, gone: true });
}

export async function saveSource(): Promise<void> {
  const edited = dirty.value;
  if (!live || !edited) return;
  const bytes = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(edited.base));
  const was = [...new Uint8Array(bytes)].map((b) => b.toString(16).padStart(2, "0")).join("");
  if (await ask("PUT", "source", { file: edited.file, text: edited.text, was })) {
    // What was saved is what the next record will have; until then it counts as loaded.
    record.peek().sources[edited.file] = edited.text;
    const now = dirty.value;
    dirty.value = now && now.text !== edited.text ? { ...now, base: edited.text } : null;
  }
}

/** Show the file as the last compile read it. */
export function discard(): void {
  dirty.value = null;
  status.value = { ...status.value, said: "" };
}

async function ask(method: string, what: string, body: unknown): Promise<boolean> {
  if (!live) return false;
  let said = "";
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(live.base + what, { method, headers, body: JSON.stringify(body) });
    if (!answer.ok) said = ((await answer.json()) as { message?: string }).message ?? answer.statusText;
  } catch {
    said = "the server does not answer";
  }
  status.value = { ...status.value, said };
  return said === "";
}

async function change(next: Live["settings"]): Promise<void> {
  const before = settings.value;
  settings.value = next;
  if (!(await ask("POST", "settings", next))) settings.value = before;
}

export function LiveBar() {
  if (!live) return null;
  const { target, options } = settings.value;
  const set = (name: string, value: unknown) => {
    const rest = Object.fromEntries(Object.entries(options).filter(([key]) => key !== name));
    const plain = value === undefined || value === live.options[name]?.default;
    void change({ target, options: plain ? rest : { ...rest, [name]: value } });
  };
  const state = status.value;
  const given = Object.keys(options).length;
  return (
    <div class="live">
      <select aria-label="target" value={target} onChange={(e) => void change({ target: e.currentTarget.value, options })}>
        {live.targets.map((t) => <option key={t.name} value={t.name} title={t.summary}>{t.name}</option>)}
      </select>
      <button type="button" aria-expanded={asking.value} onClick={() => (asking.value = !asking.value)}>
        options{given ? ` (${given})` : ""}
      </button>
      <output class={state.gone ? "bad" : state.busy ? "busy" : "good"} aria-live="polite">
        {state.gone ? "server gone" : state.busy ? "compiling…" : `live${state.seconds === null ? "" : ` · ${state.seconds.toFixed(2)} s`}`}
      </output>
      {state.said && <output class="bad said-here" role="alert">{state.said}</output>}
      {asking.value && (
        <form class="options" aria-label="options" onSubmit={(e) => e.preventDefault()}>
          {Object.entries(live.options).map(([name, option]) => (
            <label key={name} title={option.help}>
              <span>{name}</span>
              <Field option={option} value={name in options ? options[name] : option.default} set={(v) => set(name, v)} />
            </label>
          ))}
        </form>
      )}
    </div>
  );
}

function Field({ option, value, set }: { option: Option; value: unknown; set: (value: unknown) => void }) {
  if (option.type === "choice") {
    return (
      <select value={value === null ? "" : String(value)} onChange={(e) => set(e.currentTarget.value || null)}>
        {option.choices?.map((c) => <option key={c ?? ""} value={c ?? ""}>{c ?? "default"}</option>)}
      </select>
    );
  }
  if (option.type === "bool") {
    return <input type="checkbox" checked={value === true} onChange={(e) => set(e.currentTarget.checked)} />;
  }
  if (option.type === "int" || option.type === "float") {
    const bounds = { ...(option.min !== undefined && { min: option.min }), ...(option.max !== undefined && { max: option.max }) };
    return (
      <input
        type="number" step={option.type === "int" ? 1 : "any"} {...bounds} value={value === null ? "" : String(value)}
        placeholder="default"
        onChange={(e) => set(e.currentTarget.value === "" ? option.default : Number(e.currentTarget.value))}
      />
    );
  }
  const words = Array.isArray(value) ? value.join(", ") : ((value as string | null) ?? "");
  const parse = (text: string): unknown => {
    if (option.type === "text") return text || option.default;
    const parts = text.split(",").map((p) => p.trim()).filter(Boolean);
    if (!parts.length) return option.default;
    return option.of === "int" ? parts.map(Number) : parts;
  };
  return <input type="text" value={words} placeholder="default" onChange={(e) => set(parse(e.currentTarget.value))} />;
}

/** Whether the text on the screen may be thrown away. */
export function guard(): void {
  addEventListener("beforeunload", (event) => {
    if (dirty.value) event.preventDefault();
  });
}
