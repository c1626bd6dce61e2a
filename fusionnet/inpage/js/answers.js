// From outputs to predictions in units, chances, intervals and the reward (answers.py).

const CELSIUS_ZERO_K = 273.15;
const SMALLEST = 1.17549435e-38; // fp32's, by which chances are kept away from 0
const NEAREST_ONE = 1 - 2 ** -24;

/** Return the function that is linear between ascending knots, and constant beyond them. */
function interpolated(x, knots, values) {
  if (knots.length === 1) return values[0];
  let above = 1;
  let last = knots.length - 1;
  while (above < last) { // the first knot that is not below x
    const middle = (above + last) >> 1;
    if (knots[middle] < x) above = middle + 1;
    else last = middle;
  }
  const share = (x - knots[above - 1]) / (knots[above] - knots[above - 1]);
  const inside = Math.min(1, Math.max(0, share));
  return values[above - 1] + inside * (values[above] - values[above - 1]);
}

/** Return a raw feature or label with its transform applied. */
function transformed(x, column) {
  switch (column.transform) {
    case "log10": return Math.log10(x);
    case "log1p": return Math.log1p(x);
    case "inverse_kelvin": return 1000 / (x + CELSIUS_ZERO_K);
    case "quantile": return interpolated(x, column.quantile.values, column.quantile.scores);
    default: return x;
  }
}

/** Return a transformed label in its own unit, inside of the transform's domain. */
function undone(x, column) {
  switch (column.transform) {
    case "log10": return Math.max(10 ** x, SMALLEST);
    case "log1p": return Math.max(Math.expm1(x), 2 ** -24 - 1);
    case "quantile": return interpolated(x, column.quantile.scores, column.quantile.values);
    default: return x;
  }
}

/** Return a raw row as the network takes it; a missing number (null) is what stands for it. */
function standardised(model, row) {
  const numeric = model.features.map((feature, f) => {
    const given = row.numeric[f] === null ? feature.fill : row.numeric[f];
    const known = given === null ? NaN : Math.fround(given);
    return Math.fround((transformed(known, feature) - feature.mean) / feature.std);
  });
  return { ...row, numeric };
}

function sigmoid(x) {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

function softplus(x) {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

/** Return the probability that a logit of focal or weighted loss stands for (probability.py). */
function probability(logit, gamma, logWeight) {
  const flat = (z) => softplus(-Math.min(z, 30)) * Math.exp(Math.min(z, 30));
  const ours = Math.log(1 + gamma * flat(-logit)), others = Math.log(1 + gamma * flat(logit));
  return sigmoid((1 + gamma) * logit + ours - others - logWeight);
}

/** Return the chances of several classes from logits, or from ordered ones. */
function classChances(task, outputs, unit) {
  let logs = task.ordered ? orderedLogs(outputs) : logSoftmax(outputs);
  if (unit === "probability") {
    logs = logSoftmax(logs.map((each, k) => each - task.log_weights[k]));
  }
  return logs.map(Math.exp);
}

function logSoftmax(values) {
  const largest = Math.max(...values);
  const total = Math.log(values.reduce((sum, each) => sum + Math.exp(each - largest), 0));
  return values.map((each) => each - largest - total);
}

/** Return log chances from a_1 and gaps; a_k = a_(k-1) - softplus(g_k) are P(class >= k)'s. */
function orderedLogs(outputs) {
  const logsigmoid = (x) => -softplus(-x);
  const cumulative = [outputs[0]];
  for (const gap of outputs.slice(1)) {
    cumulative.push(cumulative[cumulative.length - 1] - softplus(gap));
  }
  const between = outputs.slice(1).map((gap, k) =>
    logsigmoid(cumulative[k]) + logsigmoid(-cumulative[k + 1]) + logsigmoid(gap));
  const last = cumulative[cumulative.length - 1];
  return [logsigmoid(-cumulative[0]), ...between, logsigmoid(last)];
}

/** Return one member's prediction of a task: a number in its unit, or chances. */
function inUnits(task, outputs, unit) {
  if (task.kind === "regression") return [undone(outputs[0] * task.std + task.mean, task)];
  if (task.kind !== "binary") return classChances(task, outputs, unit);
  if (unit === "score" || !task.has_probability) return [sigmoid(outputs[0])];
  return [probability(outputs[0], task.gamma, task.log_weight)];
}

function meanOf(parts) {
  return parts[0].map((_, k) => parts.reduce((sum, part) => sum + part[k], 0) / parts.length);
}

/** Return a task's prediction by all members, and by the trees where they count. */
function predicted(model, task, members, ofTrees, unit) {
  const own = meanOf(members.map((outputs) => inUnits(task, outputs, unit)));
  const share = model.blend && task.name in model.blend.tasks
    ? model.blend.tasks[task.name].share : 1;
  if (share === 1) return own;
  const chances = meanOf(members.map((outputs) => inUnits(task, outputs, "probability")));
  const isNumber = task.kind === "regression";
  const network = isNumber ? [transformed(chances[0], task)] : chances;
  const trees = treePrediction(task, ofTrees[task.name]);
  const blended = network.map((each, k) => share * each + (1 - share) * trees[k]);
  if (isNumber) return [undone(blended[0], task)];
  return unit === "probability" ? blended : weighted(task, blended);
}

function treePrediction(task, sums) {
  if (task.kind === "regression") return sums;
  return sums.length > 1 ? softmax(sums) : [sigmoid(sums[0])];
}

/** Return chances as class weights have moved them: scores. */
function weighted(task, chances) {
  if (task.kind === "binary") {
    const weight = Math.exp(task.log_weight);
    return [weight * chances[0] / (weight * chances[0] + 1 - chances[0])];
  }
  const moved = chances.map((chance, k) => chance * Math.exp(task.log_weights[k]));
  const total = moved.reduce((sum, each) => sum + each, 0);
  return moved.map((each) => each / total);
}

/** Return chances at a task's temperature. */
function tempered(task, chances) {
  const temperature = task.temperature;
  if (temperature === 1 || task.kind === "regression") return chances;
  if (chances.length > 1) {
    return softmax(chances.map((each) => Math.log(Math.max(each, SMALLEST)) / temperature));
  }
  const inner = Math.min(NEAREST_ONE, Math.max(SMALLEST, chances[0]));
  return [sigmoid(Math.log(inner / (1 - inner)) / temperature)];
}

/** Return by how much an error is divided: the learnt noise with members' spread, or the spread. */
function scoreScale(task, members) {
  if (!task.noise) return task.std;
  const last = task.outputs[1] - task.outputs[0] - 1;
  const variance = (outputs) => Math.exp(10 * Math.tanh(outputs[last] / 10));
  const noise = members.reduce((sum, each) => sum + variance(each), 0) / members.length;
  const mean = members.reduce((sum, each) => sum + each[0], 0) / members.length;
  const spread = members.reduce((sum, each) => sum + (each[0] - mean) ** 2, 0) / members.length;
  return task.std * Math.sqrt(noise + spread);
}

/** Return what holds the label at a level: [lower, upper], or which classes. */
function boundsOf(intervals, task, members, prediction, row, level) {
  if (!intervals || !(task.name in intervals.tasks)) return null;
  const ofValues = intervals.tasks[task.name];
  const place = intervals.by ? row[intervals.by.kind][intervals.by.place] : 0;
  const found = ofValues[place][intervals.levels.indexOf(level)];
  const score = found === null ? Infinity : found;
  if (task.kind === "regression") {
    const half = score * scoreScale(task, members);
    if (!Number.isFinite(half)) return [-Infinity, Infinity];
    const centre = transformed(prediction[0], task);
    return [undone(centre - half, task), undone(centre + half, task)];
  }
  const chances = prediction.length === 1 ? [1 - prediction[0], prediction[0]] : prediction;
  const likeliest = Math.max(...chances);
  return chances.map((chance) => 1 - chance <= score + 1e-6 || chance === likeliest);
}

/** Return the reward and its parts; `ofMembers` are the predictions, by task and in the reward's
 * unit, of all members together first, then of each alone, of whom doubt is the spread; of a row
 * with a new string it is more. */
function rewardOf(reward, [predictions, ...ofMembers], isNew) {
  const { total, terms, penalties } = partsOf(reward, predictions);
  const alone = ofMembers.map((each) => partsOf(reward, each).total);
  const spread = alone.length > 1 ? deviation(alone) : 0;
  const ofString = isNew ? reward.of_new.deviation : 0;
  const doubt = reward.pessimism * Math.hypot(spread, ofString);
  return { total: total - doubt, terms, penalties, doubt };
}

function partsOf(reward, predictions) {
  const read = (part) => {
    const chances = predictions[part.task];
    const mean = () => chances.reduce((sum, chance, k) => sum + k * chance, 0);
    return part.label === null ? mean() : chances[part.label];
  };
  const terms = reward.terms.map((part) => {
    const value = read(part);
    return { ...part, value, adds: part.weight * value };
  });
  const penalties = reward.penalties.map((part) => {
    const value = read(part);
    const isPaid = part.above !== null ? value > part.above : value < part.below;
    return { ...part, value, isPaid, adds: isPaid ? -part.penalty : 0 };
  });
  const total = [...terms, ...penalties].reduce((sum, part) => sum + part.adds, 0);
  return { total, terms, penalties };
}

function deviation(values) {
  const mean = values.reduce((sum, each) => sum + each, 0) / values.length;
  return Math.sqrt(values.reduce((sum, each) => sum + (each - mean) ** 2, 0) / values.length);
}

/** Return what the model says of raw rows at a level of intervals, in percent:
 * {predictions, bounds, chosen, reward} of each, by task but for the last; `chosen` is the place of
 * the class that is decided for, of several. */
function evaluated(model, rows, level) {
  const inputs = rows.map((row) => standardised(model, row));
  const outputs = networkOutputs(model.network, inputs);
  const numOutputs = outputs.width / model.network.heads.length;
  return rows.map((row, r) => {
    const own = Array.from(outputs.values.subarray(r * outputs.width, (r + 1) * outputs.width));
    const ofTrees = model.blend ? treeOutputs(model.blend, inputs[r]) : {};
    const membersOf = (task) => model.network.heads.map((_, member) =>
      own.slice(member * numOutputs + task.outputs[0], member * numOutputs + task.outputs[1]));
    const ofTasks = (unit, chosen = (members) => members) => model.tasks.map((task) => {
      const found = predicted(model, task, chosen(membersOf(task)), ofTrees, unit);
      return unit === "probability" ? tempered(task, found) : found;
    });
    const predictions = ofTasks("probability");
    const bounds = model.tasks.map((task, t) =>
      boundsOf(model.intervals, task, membersOf(task), predictions[t], row, level));
    const scores = model.tasks.some(hasSeveral) ? ofTasks("score") : null;
    const chosen = model.tasks.map((task, t) =>
      hasSeveral(task) ? scores[t].indexOf(Math.max(...scores[t])) : null);
    const reward = hasReward(model)
      ? rewardOf(model.reward, rewarded(model, ofTasks), hasNewString(model, row)) : null;
    return { predictions, bounds, chosen, reward };
  });
}

function hasSeveral(task) {
  return task.kind === "multiclass" || task.kind === "ordinal";
}

function hasReward(model) {
  return model.reward !== null && typeof model.reward === "object";
}

/** Return whether training never saw a row's string, of which left-out ones say how far it is off. */
function hasNewString(model, row) {
  const ofNew = model.reward.of_new;
  return ofNew !== null && model.strings[ofNew.string].untrained.includes(row.strings[ofNew.string]);
}

/** Return the predictions that the reward reads: of all members, and of each where it doubts. */
function rewarded(model, ofTasks) {
  const { unit, pessimism } = model.reward;
  const alone = pessimism ? model.network.heads.map((_, member) =>
    ofTasks(unit, (members) => [members[member]])) : [];
  return [ofTasks(unit), ...alone];
}
