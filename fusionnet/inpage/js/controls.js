// What is moved: a slider and a number for each feature, a menu for each string and category.

const SLIDER_STEPS = 1000;

/** Return the controls of a row; `changed(column)` is called when one has moved. */
function controls(model, state, changed) {
  const fields = [...menusOf(model, state, changed), ...slidersOf(model, state, changed)];
  const groups = new Map();
  for (const field of fields) {
    if (!groups.has(field.group)) groups.set(field.group, []);
    groups.get(field.group).push(field.node);
  }
  const sets = [...groups].map(([group, nodes]) =>
    element("fieldset", {}, element("legend", {}, group), ...nodes));
  const update = () => fields.forEach((field) => field.update());
  const start = startMenu(model, state, () => { update(); changed(null); });
  return { node: element("div", { class: "live-controls" }, start, ...sets), update };
}

/** Return the menu of rows to start from, null where there are none. */
function startMenu(model, state, changed) {
  if (!model.starts.length) return null;
  const options = model.starts.map((start, number) => [String(number), start.name]);
  const select = menu("live-start", options, "0", (number) => {
    state.row = rowOf(model.starts[Number(number)]);
    changed();
  });
  return element("p", { class: "live-start" },
    element("label", { for: "live-start" }, "Start from "), select);
}

function rowOf(start) {
  return {
    numeric: [...start.numeric], strings: [...start.strings], categories: [...start.categories],
  };
}

function menusOf(model, state, changed) {
  const of = (kind, group) => model[kind].map((column, c) => {
    const id = `live-${kind}-${c}`;
    const options = column.options.map((text, place) => [String(place), text]);
    const select = menu(id, options, String(state.row[kind][c]), (value) => {
      state.row[kind][c] = Number(value);
      changed(null);
    });
    const more = column.num_strings > column.options.length
      ? element("span", { class: "live-hint" },
        `the first ${column.options.length} of ${column.num_strings}`)
      : null;
    const node = element("div", { class: "live-menu" },
      element("label", { for: id }, column.column), select, more);
    return { group, node, update: () => { select.value = String(state.row[kind][c]); } };
  });
  return [...of("strings", "material"), ...of("categories", "categories")];
}

function slidersOf(model, state, changed) {
  return model.features.map((feature, f) => [feature, f])
    .filter(([feature]) => !feature.is_indicator)
    .map(([feature, f]) => slider(model, feature, f, state, changed));
}

/** Return one feature's slider, number and what is to be said of its value. */
function slider(model, feature, f, state, changed) {
  const id = `live-feature-${f}`;
  const scale = sliderScale(feature);
  const set = (value) => { setFeature(model, state, f, value); field.update(); changed(f); };
  const range = element("input", {
    type: "range", min: scale.min, max: scale.max, step: scale.step,
    "aria-label": `${titled(feature.column, feature.unit)}, slider`,
    oninput: () => set(scale.value(Number(range.value))),
  });
  const number = element("input", {
    type: "number", id, step: "any",
    oninput: () => set(number.value === "" ? NaN : Number(number.value)),
  });
  const missing = feature.fill === null ? null : element("input", {
    type: "checkbox", onchange: () => set(missing.checked ? null : feature.middle),
  });
  const hint = element("span", { class: "live-hint", id: `${id}-hint` });
  number.setAttribute("aria-describedby", `${id}-hint`);
  const node = element("div", { class: "live-field" },
    element("label", { for: id }, titled(feature.column, feature.unit)), number, range, hint,
    missing && element("label", { class: "live-missing" }, missing, " missing"));
  const update = () => {
    const value = state.row.numeric[f];
    const remark = remarkOn(feature, value);
    if (document.activeElement !== number) number.value = value === null ? "" : inputText(value);
    if (value !== null) range.value = scale.place(value);
    range.setAttribute("aria-valuetext", value === null ? "missing"
      : withUnit(shown(value), feature.unit));
    range.disabled = value === null || feature.low === feature.high;
    number.disabled = value === null;
    if (missing) missing.checked = value === null;
    hint.textContent = remark || `${shown(feature.low)} to ${shown(feature.high)}`;
    node.classList.toggle("live-outside", remark !== "");
  };
  const field = { group: feature.group, node, update };
  return field;
}

/** Set a feature's raw value; null is missing, which its indicator says, if it has one. */
function setFeature(model, state, f, value) {
  state.row.numeric[f] = value;
  const next = model.features[f + 1];
  if (next && next.is_indicator) state.row.numeric[f + 1] = value === null ? 1 : 0;
}

/** Return how a slider's places are values: steps of one, of a thousandth, or of its logarithm. */
function sliderScale({ low, high, whole, transform }) {
  if (whole && high - low <= SLIDER_STEPS) {
    return { min: low, max: high, step: 1, value: (place) => place, place: (value) => value };
  }
  const bend = transform === "log10" && low > 0 ? Math.log : (x) => x;
  const unbend = bend === Math.log ? Math.exp : (x) => x;
  const [start, width] = [bend(low), bend(high) - bend(low)];
  const value = (place) => {
    if (place <= 0) return low;
    return place >= SLIDER_STEPS ? high : unbend(start + width * place / SLIDER_STEPS);
  };
  const place = (x) => SLIDER_STEPS * (bend(Math.max(x, low)) - start) / (width || 1);
  return { min: 0, max: SLIDER_STEPS, step: 1, value, place };
}

function inputText(value) {
  return String(Number(value.toPrecision(6)));
}

/** Return what is wrong or unusual about a value, "" where nothing is. */
function remarkOn(feature, value) {
  if (value === null) return "";
  if (!Number.isFinite(value)) return "not a number";
  if (isRefused(feature, value)) {
    const from = feature.least === null ? "" : ` from ${shown(feature.least)}`;
    const to = feature.most === null ? "" : ` to ${shown(feature.most)}`;
    return `not admissible: the run takes values${from}${to}`;
  }
  if (!isOutside(feature, value)) return "";
  return `outside of the train rows: ${shown(feature.low)} to ${shown(feature.high)}`;
}

function isOutside(feature, value) {
  if (value === null) return false;
  const stored = Math.fround(value);
  return stored < Math.fround(feature.low) || stored > Math.fround(feature.high);
}

/** Return whether a table with this value is refused. */
function isRefused(feature, value) {
  if (value === null) return false;
  const isBelow = feature.least !== null && value < feature.least;
  return isBelow || (feature.most !== null && value > feature.most) || !Number.isFinite(value);
}
