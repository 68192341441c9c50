// The form of a model, made of what the server says of it, and its requests.

import { make, shownAnswer, shownExplanation } from "./show.js";

const at = (id) => document.getElementById(id);
const UNEXPLAINED = ["embeddings", "generation"];
const models = new Map();
let running = null;  // AbortController of the request that is being answered

// --- requests ------------------------------------------------------------------------------------

async function request(path, body, signal, headers = {}) {
  const token = at("token").value.trim();
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers: {
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(token ? { Authorization: `Bearer ${token}` } : {}),
      ...headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal, cache: "no-store", credentials: "same-origin",
  });
  if (!response.ok) throw new Error(await reason(response));
  return response;
}

async function reason(response) {
  if (response.status === 401) {
    at("access").open = true;
    at("token").focus();
  }
  const text = await response.text();
  let message = text;
  try {
    const { error, detail } = JSON.parse(text);
    message = error?.message ?? error ?? detail ?? text;
  } catch {
    // Not ours: a proxy's page, say.
  }
  return `${response.status}: ${String(message).slice(0, 500) || response.statusText}`;
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts.filter(Boolean);
  }
  if (rest) yield rest;
}

// --- the form ------------------------------------------------------------------------------------

async function loadModels() {
  const { models: found } = await (await request("v1/models")).json();
  const chosen = at("model").value;
  models.clear();
  for (const model of found) models.set(model.name, model);
  at("model").replaceChildren(...found.map((model) => {
    const task = model.task ?? "not ready";
    return make("option", { value: model.name }, `${model.name} (${task})`);
  }));
  if (models.has(chosen)) at("model").value = chosen;
  if (!found.length) status("There is no model.");
  showForm();
}

function showForm() {
  const model = models.get(at("model").value);
  const ready = Boolean(model?.task);
  at("run").disabled = !ready;
  at("about").textContent = model ? about(model) : "";
  at("explain").hidden = at("method").hidden = !ready || UNEXPLAINED.includes(model.task);
  const kept = Object.fromEntries(
    [...at("fields").querySelectorAll("textarea")].map((area) => [area.name, area.value]),
  );
  const { required = {}, optional = {} } = model?.fields ?? {};
  at("fields").replaceChildren(
    ...Object.entries(required).map(([name, kind]) => field(name, kind, true, kept[name])),
    ...Object.entries(optional).map(([name, kind]) => field(name, kind, false, kept[name])),
  );
  const parameters = Object.entries(model?.parameters ?? {});
  at("more").hidden = !parameters.length;
  at("parameters").replaceChildren(...parameters.map(([name, one]) => parameter(name, one)));
}

function about(model) {
  const told = model.versions.map(({ version, state, reason: why }) =>
    `version ${version} is ${state}${why ? ` (${why})` : ""}`);
  return told.join("; ");
}

function field(name, kind, required, value) {
  const id = `field-${name}`;
  const several = kind !== "text";
  const label = make("label", { for: id }, name.replaceAll("_", " "));
  if (several) label.append(make("span.optional", {}, ", one a line"));
  if (!required) label.append(make("span.optional", {}, " (optional)"));
  const area = make("textarea", { id, name, "data-kind": kind, rows: several ? 4 : 3 });
  area.required = required;
  area.value = value ?? "";
  return make("div.field", {}, label, area);
}

function parameter(name, one) {
  const id = `parameter-${name}`;
  let input = make("input", { id, name, "data-type": one.type });
  if (one.choices) {
    input = make("select", { id, name, "data-type": one.type });
    input.append(...one.choices.map((choice) => make("option", {}, choice)));
    if (one.default !== undefined) input.value = one.default;
  } else if (one.type === "bool") {
    input.type = "checkbox";
    input.checked = Boolean(one.default);
  } else if (one.type === "int" || one.type === "float") {
    input.type = "number";
    input.step = one.type === "int" ? "1" : "any";
    if (one.least !== undefined) input.min = one.least;
    if (one.most !== undefined && Number.isSafeInteger(Math.trunc(one.most))) input.max = one.most;
    input.placeholder = one.default ?? "";
  }
  input.setAttribute("aria-describedby", `${id}-hint`);
  const label = make("label", { for: id }, name);
  return make("div.field", {}, label, input, make("p.hint", { id: `${id}-hint` }, one.help ?? ""));
}

function record() {
  const found = {};
  for (const area of at("fields").querySelectorAll("textarea")) {
    const several = area.dataset.kind !== "text";
    const value = several ? area.value.split("\n").filter((line) => line.trim()) : area.value;
    if (area.required || value.length) found[area.name] = value;
  }
  return found;
}

function parameters() {
  const found = {};
  const { parameters: known = {} } = models.get(at("model").value) ?? {};
  for (const input of at("parameters").querySelectorAll("input, select")) {
    const { name } = input;
    if (input.type === "checkbox") {
      if (input.checked !== Boolean(known[name]?.default)) found[name] = input.checked;
    } else if (input.value !== "" && input.value !== known[name]?.default) {
      found[name] = input.type === "number" ? Number(input.value) : input.value;
    }
  }
  return found;
}

// --- answers -------------------------------------------------------------------------------------

const status = (text) => { at("status").textContent = text; };

function fail(error) {
  at("error").hidden = false;
  at("error").textContent = error.message;
  status("");
}

// Run one request at a time, with everything around it.
async function whileAsking(what) {
  running?.abort();
  const own = running = new AbortController();
  at("error").hidden = at("raw").hidden = true;
  at("answer").replaceChildren();
  at("stop").hidden = false;
  status("Asking …");
  const begin = performance.now();
  try {
    await what(own.signal);
    status(`Answered in ${Math.round(performance.now() - begin)} ms.`);
  } catch (error) {
    if (error.name === "AbortError") {
      if (running === own) status("Stopped.");
    } else if (running === own) fail(error);
  } finally {
    if (running === own) {
      at("stop").hidden = true;
      running = null;
    }
  }
}

function show(elements, value) {
  at("answer").replaceChildren(...elements);
  at("json").textContent = JSON.stringify(value, null, 2);
  at("raw").hidden = false;
}

const path = (verb) => `v1/models/${encodeURIComponent(at("model").value)}:${verb}`;

async function answer(signal) {
  const asked = record();
  const body = { record: asked, parameters: parameters() };
  const several = Math.max(body.parameters.num_beams ?? 1, body.parameters.num_return_sequences ?? 1);
  if (models.get(at("model").value).task === "generation" && several === 1) {
    await write(asked, body.parameters, signal);
    return;
  }
  const told = await (await request(path("predict"), body, signal)).json();
  show(shownAnswer(told.answers[0], asked), told.answers[0]);
}

// A text as it is written. This is the one stream that takes a task's own fields and parameters.
async function write(asked, given, signal) {
  const headers = {
    Accept: "application/jsonlines", "X-Amzn-SageMaker-Target-Model": at("model").value,
  };
  const body = { inputs: asked, parameters: given, stream: true };
  const response = await request("invocations", body, signal, headers);
  const shown = make("p.text.written", {}, make("span.prompt", {}, asked.text), " ");
  at("answer").replaceChildren(shown);
  let whole = "";
  for await (const line of lines(response)) {
    const part = JSON.parse(line);
    if (part.error) throw new Error(part.error);
    if (part.text) {
      whole += part.text;
      shown.append(part.text);
    }
  }
  at("json").textContent = JSON.stringify({ text: whole }, null, 2);
  at("raw").hidden = false;
}

async function explain(signal) {
  const asked = record();
  const body = { record: asked, method: at("method").value };
  const told = await (await request(path("explain"), body, signal)).json();
  show(shownExplanation(told, asked), told);
}

// --- what the user does --------------------------------------------------------------------------

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  whileAsking(answer);
});
at("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
at("explain").addEventListener("click", () => {
  if (at("ask").reportValidity()) whileAsking(explain);
});
at("stop").addEventListener("click", () => running?.abort());
at("model").addEventListener("change", showForm);
at("token").addEventListener("change", () => loadModels().catch(fail));
loadModels().catch(fail);
