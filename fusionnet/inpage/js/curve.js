// A target, or the reward, along one feature, with its interval as a band.

const CURVE_POINTS = 41;
const AT_ONCE = 6; // points, between which the page stays responsive
const MARGIN = { left: 58, right: 14, top: 30, bottom: 44 };

/** Return the picture and its menus; `update()` draws it for the row as it is now. */
function curve(model, state) {
  const picture = element("div", { class: "live-picture" });
  const movable = model.features.map((feature, f) => [feature, f]).filter(([feature]) =>
    !feature.is_indicator && feature.low < feature.high);
  if (!movable.length) return { node: element("div"), update: () => {}, follow: () => {} };
  const finer = movable.filter(([feature]) => !feature.whole);
  state.along = (finer.length ? finer : movable).at(-1)[1];
  const shownTargets = targetsOf(model);
  state.target = Math.max(0, shownTargets.findIndex((target) => target.hasBand));
  const targets = shownTargets.map((target, number) => [String(number), target.name]);
  const target = menu("live-target", targets, String(state.target), (value) => {
    state.target = Number(value);
    update();
  });
  const along = menu("live-along", movable.map(([feature, f]) => [String(f), feature.column]),
    String(state.along), (value) => { state.along = Number(value); update(); });
  let drawing = 0; // the number of the latest drawing, which earlier ones give way to
  const update = () => {
    drawing += 1;
    const own = drawing;
    const points = pointsOf(model.features[state.along], state.row.numeric[state.along]);
    const found = [];
    const next = () => {
      if (own !== drawing) return;
      const values = points.slice(found.length, found.length + AT_ONCE);
      const rows = values.map((value) => moved(model, state, value));
      found.push(...evaluated(model, rows, state.level));
      if (found.length < points.length) setTimeout(next, 0);
      else draw(picture, model, state, shownTargets[state.target], points, found);
    };
    setTimeout(next, 30);
  };
  const follow = (f) => {
    if (f === null || !movable.some(([, each]) => each === f)) return;
    state.along = f;
    along.value = String(f);
  };
  if ("ResizeObserver" in window) {
    let width = 0;
    new ResizeObserver(() => {
      if (picture.clientWidth !== width) update();
      width = picture.clientWidth;
    }).observe(picture);
  }
  const node = element("div", { class: "live-curve" },
    element("p", {}, element("label", { for: "live-target" }, "Curve of "), target,
      element("label", { for: "live-along" }, " along "), along), picture);
  return { node, update, follow };
}

/** Return what curves may show: {name, unit, value(found), bounds(found), hasBand}. */
function targetsOf(model) {
  const found = hasReward(model)
    ? [{ name: "reward", unit: "", value: (each) => each.reward.total, bounds: () => null }] : [];
  model.tasks.forEach((task, t) => {
    if (hasSeveral(task)) {
      task.classes.forEach((label, k) => found.push({
        name: `${task.column}: chance of ${label}`, unit: "",
        value: (each) => each.predictions[t][k], bounds: () => null,
      }));
      return;
    }
    const isNumber = task.kind === "regression";
    found.push({
      name: isNumber ? task.column : nameOf(task), unit: task.unit,
      value: (each) => each.predictions[t][0],
      bounds: (each) => (isNumber ? each.bounds[t] : null),
      hasBand: isNumber && model.intervals !== null && task.name in model.intervals.tasks,
    });
  });
  return found;
}

/** Return the values of a feature at which a curve is computed: the train rows' range, and on to
 * the current value. */
function pointsOf(feature, current) {
  const ends = [feature.low, feature.high];
  if (current !== null && !isRefused(feature, current)) ends.push(current);
  const low = Math.min(...ends), high = Math.max(...ends);
  const count = feature.whole && high - low < CURVE_POINTS && Number.isInteger(high - low)
    ? high - low + 1 : CURVE_POINTS;
  const isLog = feature.transform === "log10" && low > 0;
  return Array.from({ length: count }, (_, k) => {
    const share = k / (count - 1);
    return isLog ? low * (high / low) ** share : low + (high - low) * share;
  });
}

function moved(model, state, value) {
  const copy = { row: rowOf(state.row) };
  setFeature(model, copy, state.along, value);
  return copy.row;
}

function draw(picture, model, state, target, points, found) {
  const feature = model.features[state.along];
  const width = Math.max(240, picture.clientWidth || 480), height = 270;
  const values = found.map(target.value);
  const bounds = found.map(target.bounds);
  const hasBand = bounds.every((each) => each && each.every(Number.isFinite));
  const heights = [...values, ...(hasBand ? bounds.flat() : [])].filter(Number.isFinite);
  const isLog = feature.transform === "log10" && points[0] > 0;
  const x = axisScale(points[0], points[points.length - 1],
    MARGIN.left, width - MARGIN.right, isLog);
  const y = axisScale(...padded(Math.min(...heights), Math.max(...heights)),
    height - MARGIN.bottom, MARGIN.top, false);
  const title = `${titled(target.name, target.unit)} along ${feature.column}`;
  const about = hasBand ? `${title}, with the interval of ${state.level} % of labels` : title;
  const parts = [...axes(x, y, width, height, titled(feature.column, feature.unit)),
    ...outsideAreas(feature, x, width, height)];
  if (hasBand) {
    const upper = points.map((each, k) => `${x.at(each)},${y.at(bounds[k][1])}`);
    const lower = points.map((each, k) => `${x.at(each)},${y.at(bounds[k][0])}`).reverse();
    parts.push(svgElement("polygon", { class: "band", points: [...upper, ...lower].join(" ") }));
  }
  const line = points.map((each, k) => `${x.at(each)},${y.at(values[k])}`).join(" ");
  parts.push(svgElement("polyline", { class: "line", points: line }));
  parts.push(...here(model, state, target, x, y, points));
  parts.push(svgElement("text", { class: "title", x: 6, y: 16 }, cut(about, width / 6.8)));
  picture.replaceChildren(svgElement("svg", {
    viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": about,
  }, ...parts));
}

/** Mark the row as it is. */
function here(model, state, target, x, y) {
  const value = state.row.numeric[state.along];
  if (value === null || isRefused(model.features[state.along], value)) return [];
  const [found] = evaluated(model, [state.row], state.level);
  return [svgElement("circle", {
    class: "here", r: 5, cx: x.at(value), cy: y.at(target.value(found)),
  })];
}

/** Shade where the train rows have no values. */
function outsideAreas(feature, x, width, height) {
  const ends = [[MARGIN.left, x.at(feature.low)], [x.at(feature.high), width - MARGIN.right]];
  return ends.filter(([from, to]) => to - from > 0.5).map(([from, to]) =>
    svgElement("g", {},
      svgElement("rect", {
        class: "outside", x: from, width: to - from,
        y: MARGIN.top, height: height - MARGIN.top - MARGIN.bottom,
      }),
      svgElement("text", {
        class: "remark", x: (from + to) / 2, y: MARGIN.top + 12, "text-anchor": "middle",
      }, to - from > 60 ? "not trained here" : "")));
}

function axisScale(low, high, from, to, isLog) {
  const bend = isLog ? Math.log : (value) => value;
  const start = bend(low), width = bend(high) - start || 1;
  const at = (value) => Math.round(10 * (from + (to - from) * (bend(value) - start) / width)) / 10;
  return { at, ticks: isLog ? logTicks(low, high) : linearTicks(low, high) };
}

function padded(low, high) {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  const more = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low - more, high + more];
}

function linearTicks(low, high) {
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, k) => Number(((first + k) * step).toPrecision(12)));
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    found.push(...[1, 2, 5].map((each) => Number((each * 10 ** power).toPrecision(6))));
  }
  const inside = found.filter((each) => each >= low * 0.999 && each <= high * 1.001);
  const whole = inside.filter((each) => Number.isInteger(Math.log10(each)));
  return inside.length > 7 && whole.length > 1 ? whole : inside;
}

function axes(x, y, width, height, name) {
  const bottom = height - MARGIN.bottom;
  const below = x.ticks.map((tick) => svgElement("g", {},
    svgElement("line", { class: "tick", x1: x.at(tick), x2: x.at(tick), y1: bottom, y2: bottom + 4 }),
    svgElement("text", { x: x.at(tick), y: bottom + 17, "text-anchor": "middle" }, tickText(tick))));
  const beside = y.ticks.map((tick) => svgElement("g", {},
    svgElement("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right,
      y1: y.at(tick), y2: y.at(tick) }),
    svgElement("text", { x: MARGIN.left - 6, y: y.at(tick) + 4, "text-anchor": "end" },
      tickText(tick))));
  const line = svgElement("line", {
    class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom,
  });
  const label = svgElement("text", {
    x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 8, "text-anchor": "middle",
  }, cut(name, width / 7));
  return [...beside, ...below, line, label];
}

function tickText(value) {
  return Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-4)
    ? value.toExponential(0) : String(value).replace("-", "−");
}
