// What the model says of the row: predictions with intervals, the reward with its parts.

/** Return the panel of results; `update(found)` shows what `evaluated` returned, or null. */
function results(model, state, changed) {
  const reward = element("div", { class: "live-reward", role: "status" });
  const predictions = element("tbody");
  const parts = element("tbody");
  const trust = element("p", { class: "live-trust", role: "status" });
  const node = element("div", { class: "live-results" },
    hasReward(model) ? reward : null,
    element("div", { class: "scroll" }, element("table", { class: "live-predictions" },
      element("caption", {}, "Predictions"),
      element("thead", {}, headOf(model, state, changed)), predictions)),
    trust,
    hasReward(model) ? partsTable(parts) : null,
    typeof model.reward === "string"
      ? element("p", { class: "small" }, `No reward: ${model.reward}`) : null);
  const update = (found) => {
    predictions.replaceChildren(...model.tasks.map((task, t) =>
      predictionRow(model, task, found && { prediction: found.predictions[t],
        bounds: found.bounds[t], chosen: found.chosen[t] })));
    trust.replaceChildren(...trustIn(model, state.row));
    if (!hasReward(model)) return;
    reward.replaceChildren("Reward ",
      element("output", { id: "live-total" }, found ? shown(found.reward.total) : "–"));
    parts.replaceChildren(...(found ? partRows(model, found.reward) : []));
  };
  return { node, update };
}

function headOf(model, state, changed) {
  const cells = [element("th", {}, "target"), element("th", {}, "value")];
  if (model.intervals) {
    const options = model.intervals.levels.map((level) => [String(level), `${level} %`]);
    const select = menu("live-level", options, String(state.level), (value) => {
      state.level = Number(value);
      changed();
    });
    select.setAttribute("aria-label", "share of labels that an interval holds");
    cells.push(element("th", {}, select, " of labels"));
  }
  return element("tr", {}, ...cells);
}

/** Return a target's line; of several classes with the chance of each. */
function predictionRow(model, task, found) {
  const cells = [
    element("td", {}, nameOf(task)),
    element("td", {}, found ? valueText(task, found) : "–"),
  ];
  if (model.intervals) {
    const held = found && found.bounds ? boundsText(task, found.bounds) : "–";
    cells.push(element("td", {}, held));
  }
  return element("tr", {}, ...cells);
}

function nameOf(task) {
  if (task.kind !== "binary") return task.column;
  const what = task.has_probability ? "probability" : "score";
  return `${task.column}: ${what} of ${task.positive}`;
}

function valueText(task, { prediction, chosen }) {
  if (task.kind === "binary") return shownChance(prediction[0]);
  if (chosen === null) return withUnit(shown(prediction[0]), task.unit);
  const chances = prediction.map((chance, k) => element("li", {},
    element("span", {}, task.classes[k]),
    element("meter", { min: 0, max: 1, value: chance, "aria-hidden": "true" }),
    element("span", {}, shownChance(chance))));
  return element("div", {}, element("strong", {}, task.classes[chosen]),
    element("ul", { class: "live-chances" }, ...chances));
}

function boundsText(task, bounds) {
  if (task.kind === "regression") {
    if (bounds.some((each) => !Number.isFinite(each))) return "cannot be promised";
    return withUnit(`${shown(bounds[0])} to ${shown(bounds[1])}`, task.unit);
  }
  const names = task.classes.length ? task.classes : ["no", "yes"];
  return names.filter((_, k) => bounds[k]).join(" or ");
}

function partsTable(body) {
  return element("details", { open: true, class: "live-parts" },
    element("summary", {}, "Parts of the reward"),
    element("div", { class: "scroll" }, element("table", {}, body)));
}

/** Return a line for each term and penalty, and what it adds to the reward. */
function partRows(model, reward) {
  const termRows = reward.terms.map((part) => element("tr", {},
    element("td", {}, `${shown(part.weight)} × ${readText(model, part)} ${shown(part.value)}`),
    element("td", {}, signed(part.adds))));
  const penaltyRows = reward.penalties.map((part) => {
    const rule = part.above !== null ? `above ${shown(part.above)}` : `below ${shown(part.below)}`;
    const text = `penalty where ${readText(model, part)} is ${rule}; it is ${shown(part.value)}`;
    return element("tr", { class: part.isPaid ? "live-paid" : null },
      element("td", {}, text), element("td", {}, signed(part.adds)));
  });
  const doubtRows = !model.reward.pessimism ? [] : [element("tr", {},
    element("td", {}, `pessimism ${shown(model.reward.pessimism)} × how far the reward may be off`),
    element("td", {}, signed(-reward.doubt)))];
  return [...termRows, ...penaltyRows, ...doubtRows];
}

function readText(model, part) {
  const task = model.tasks[part.task];
  if (part.label === null) return `mean class of ${task.column}`;
  if (hasSeveral(task)) return `chance of ${task.column} ${task.classes[part.label]}`;
  if (task.kind !== "binary") return task.column;
  const isScore = model.reward.unit === "score" || !task.has_probability;
  return `${isScore ? "score" : "probability"} of ${task.column}`;
}

function signed(value) {
  return value > 0 ? `+${shown(value)}` : shown(value);
}

/** Return in words whether training saw anything like the row. */
function trustIn(model, row) {
  const others = model.categories.filter((column, c) => row.categories[c] === column.other)
    .map((column) => column.column);
  const untrained = ["strings", "categories"].flatMap((kind) => model[kind]
    .filter((column, c) => column.untrained.includes(row[kind][c]))
    .map((column) => column.column));
  const outside = model.features.filter((feature, f) => isOutside(feature, row.numeric[f]))
    .map((feature) => feature.column);
  const isRefused = model.reward !== null && model.reward.unseen === "refuse";
  const known = untrained.length
    ? `known: no, no train row had this ${untrained.join(", ")}. `
      + (isRefused ? "Elsewhere its reward is refused (reward.unseen). " : "")
    : others.length
      ? `known: no, ${others.join(", ")} stands for what training did not see. `
      : "known: yes, train rows had this material and these categories. ";
  const inside = outside.length
    ? element("strong", {}, `outside: ${outside.join(", ")}. The model was not trained there.`)
    : "outside: no, each number is within the train rows'.";
  return [known, inside];
}
