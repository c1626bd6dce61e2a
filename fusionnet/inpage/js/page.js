// Puts the parts together: reads the page's header and weights, and follows what is moved.

/** Return a model whose arrays are read. */
function loadModel() {
  const header = JSON.parse(document.getElementById("live-header").textContent);
  return withArrays(header, bytesOf(document.getElementById("live-weights").textContent.trim()));
}

function middleRow(model) {
  return {
    numeric: model.features.map((feature) => (feature.is_indicator ? 0 : feature.middle)),
    strings: model.strings.map(() => 0),
    categories: model.categories.map(() => 0),
  };
}

function canBeComputed(model, row) {
  return model.features.every((feature, f) => !isRefused(feature, row.numeric[f]));
}

function start() {
  const model = loadModel();
  const state = {
    row: model.starts.length ? rowOf(model.starts[0]) : middleRow(model),
    level: model.intervals && model.intervals.levels.includes(90) ? 90 : null,
  };
  const brief = element("p", { class: "live-brief", "aria-hidden": "true" });
  const shownCurve = curve(model, state);
  const shownResults = results(model, state, () => update(null));
  const moves = controls(model, state, (f) => update(f));
  function update(f) {
    shownCurve.follow(f);
    const [found] = canBeComputed(model, state.row)
      ? evaluated(model, [state.row], state.level) : [null];
    shownResults.update(found);
    brief.textContent = found ? briefly(model, found) : "not admissible";
    if (found) shownCurve.update();
  }
  document.getElementById("live-body").replaceChildren(brief, moves.node,
    element("div", { class: "live-right" }, shownResults.node, shownCurve.node));
  moves.update();
  update(null);
  window.fusionnet = { model, evaluate: (rows, level) => evaluated(model, rows, level) };
}

/** Return the reward and the first target, for phones, where results scroll away. */
function briefly(model, found) {
  const [task] = model.tasks;
  const [first] = found.predictions[0];
  const value = hasSeveral(task) ? task.classes[found.chosen[0]]
    : task.kind === "binary" ? shownChance(first) : withUnit(shown(first), task.unit);
  const reward = hasReward(model) ? `reward ${shown(found.reward.total)} · ` : "";
  return `${reward}${task.column} ${value}`;
}

start();
