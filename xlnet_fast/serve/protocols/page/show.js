// Answers as elements. Every text of a model or a user becomes a text node, never markup.

// An element: its name with classes, attributes, and children that are elements or texts.
export function make(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  element.classList.add(...classes);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const number = (value) => (Number.isFinite(value) ? value.toPrecision(4) : String(value));

// [[name, share], ...] as bars; `best`: which of them stand out.
export function bars(pairs, best) {
  const rows = pairs.map(([name, share], place) => {
    const fill = make("div");
    fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    const row = make("div.row", {}, make("span", {}, name), make("span", {}, percent(share)));
    const item = make("li", {}, row, make("div.track", { "aria-hidden": "true" }, fill));
    if (best(name, place)) item.classList.add("best");
    return item;
  });
  return make("ul.bars", {}, ...rows);
}

// A text with some of its characters marked; spans of {begin, end, make}, in code points.
export function marked(text, spans) {
  const characters = Array.from(text);  // as Python counts them
  const shown = make("p.text");
  let at = 0;
  for (const span of [...spans].sort((a, b) => a.begin - b.begin)) {
    if (span.begin < at || span.end <= span.begin) continue;
    shown.append(characters.slice(at, span.begin).join(""));
    shown.append(span.make(characters.slice(span.begin, span.end).join("")));
    at = span.end;
  }
  shown.append(characters.slice(at).join(""));
  return shown;
}

function table(names, rows) {
  const last = names.length - 1;
  const cells = (values, tag) =>
    values.map((value, i) => make(i === last ? `${tag}.number` : tag, {}, value));
  const head = make("thead", {}, make("tr", {}, ...cells(names, "th")));
  const body = make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row, "td"))));
  return make("div.scroll", {}, make("table", {}, head, body));
}

const heading = (text) => make("h3", {}, text);

function ofScores(answer) {
  const best = new Set(answer.labels ?? [answer.label]);
  const title = answer.labels ? answer.labels.join(", ") || "no label applies" : answer.label;
  const pairs = Object.entries(answer.scores).sort((a, b) => b[1] - a[1]);
  return [make("p.big", {}, title), bars(pairs, (name) => best.has(name))];
}

function ofChoices(answer, record) {
  const pairs = answer.scores.map((share, i) => [record.choices[i], share]);
  return [make("p.big", {}, answer.text), bars(pairs, (_, i) => i === answer.choice)];
}

function ofSpan(answer, record) {
  const none = !answer.answer;
  const title = make("p.big", {}, none ? "no answer" : answer.answer);
  const spans = none ? [] : [{ ...answer, make: (text) => make("mark", {}, text) }];
  const shown = [title, heading("In the context"), marked(record.context, spans)];
  if ((answer.answers ?? []).length > 1) {
    const rows = answer.answers.map((one) => [one.answer, number(one.score)]);
    shown.push(heading("Best answers"), table(["Answer", "Score"], rows));
  }
  return shown;
}

const hues = new Map();

// The same label has the same colour, far from that of its neighbours.
function hue(label) {
  if (!hues.has(label)) hues.set(label, Math.round(hues.size * 137.5 + 210) % 360);
  return hues.get(label);
}

function entity(label) {
  return (text) => {
    const mark = make("mark.entity", {}, text, make("small", {}, label));
    mark.style.setProperty("--hue", hue(label));
    return mark;
  };
}

function ofWords(answer, record) {
  const label = (one) => one.label ?? one.type ?? "";
  const found = answer.entities ?? answer.words.filter((word) => label(word) !== "O");
  const shown = [];
  if (typeof record.text === "string") {
    const spans = found.map((one) => ({ ...one, make: entity(label(one)) }));
    shown.push(marked(record.text, spans));
  }
  if (!found.length) shown.push(make("p", {}, "No entity was found."));
  const rows = (found.length ? found : answer.words)
    .map((one) => [one.text ?? "", label(one), number(one.score)]);
  return [...shown, heading(found.length ? "Found" : "Words"), table(["Text", "Label", "Score"], rows)];
}

function ofVector(vector) {
  const norm = Math.hypot(...vector);
  const most = Math.max(...vector.map(Math.abs), 1e-12);
  const columns = make("div.columns", { "aria-hidden": "true" }, ...vector.slice(0, 64).map((value) => {
    const column = make("div");
    column.style.height = `${(50 * Math.abs(value)) / most}%`;
    column.style.transform = `translateY(${value < 0 ? 50 : -50}%)`;
    return column;
  }));
  const first = vector.slice(0, 8).map(number).join(", ");
  return [
    make("p.big", {}, `norm ${number(norm)}`), columns, heading(`First of ${vector.length} values`),
    make("p.text", {}, first + (vector.length > 8 ? ", …" : "")),
  ];
}

// What `predict` answered to a record.
export function shownAnswer(answer, record) {
  let shown = [];
  if (Array.isArray(answer.embedding)) shown = ofVector(answer.embedding);
  else if (Array.isArray(answer.words)) shown = ofWords(answer, record);
  else if (Array.isArray(answer.scores)) shown = ofChoices(answer, record);
  else if (answer.scores) shown = ofScores(answer);
  else if ("value" in answer) shown = [make("p.big", {}, number(answer.value))];
  else if ("answer" in answer) shown = ofSpan(answer, record);
  else if ("text" in answer) {
    shown = (answer.texts ?? [answer]).map((one) => make("p.text.written", {}, one.text));
  }
  if (answer.cut) shown.push(make("p.hint", {}, "The text was too long: its end was not read."));
  return shown;
}

function coloured(token, most) {
  return (text) => {
    const shown = make("span.token", { title: `${token.token}: ${number(token.score)}` }, text);
    const side = token.score < 0 ? "--against" : "--for";
    const share = (0.75 * Math.abs(token.score)) / most;
    shown.style.backgroundColor = `rgb(var(${side}) / ${share.toFixed(3)})`;
    return shown;
  };
}

// What `explain` answered: each token in the colour of its score.
export function shownExplanation(explanation, record) {
  const tokens = explanation.tokens ?? [];
  const most = Math.max(...tokens.map((token) => Math.abs(token.score)), 1e-12);
  const title = explanation.label ?? explanation.ending ?? explanation.answer ?? "the answer";
  const legend = make(
    "p.legend", {}, make("span", {}, make("i.for"), "for it"),
    make("span", {}, make("i.against"), "against it"),
  );
  const shown = [make("p.big", {}, title), legend];
  const names = [...new Set(tokens.map((token) => token.field ?? "text"))];
  for (const name of names) {
    const own = tokens.filter((token) => (token.field ?? "text") === name);
    if (names.length > 1) shown.push(heading(name));
    if (typeof record[name] === "string") {
      const spans = own.map((token) => ({ ...token, make: coloured(token, most) }));
      shown.push(marked(record[name], spans));
    } else {
      const pieces = own.map((token) => coloured(token, most)(token.token.replaceAll("▁", " ")));
      shown.push(make("p.text", {}, ...pieces));
    }
  }
  const rows = tokens.map((token) => [token.token, number(token.score)]);
  const list = make("details", {}, make("summary", {}, "Scores of the tokens"), table(["Token", "Score"], rows));
  return [...shown, list];
}
