// The network's steps over rows, as network.py writes them down and reading.py evaluates them.
//
// A block is {rows, tokens, width, values}: numbers of rows x tokens x width in float64. Weights
// are [out, in], as in PyTorch.

/** Return the heads' outputs of standardised rows, {rows, width, values}, member by member.
 *
 * A row is {numeric: [F], strings: [C], categories: [G]}. */
function networkOutputs(network, rows) {
  const features = featureBlock(network.embedding, rows);
  const numbers = network.groups.map((group) =>
    through(group.steps, chosenFeatures(features, group.features)));
  let x = network.modality
    ? rowTokens(network, rows, numbers)
    : summed(network, rows, numbers);
  x = through(network.steps, x);
  const numMembers = network.heads.length;
  const found = network.heads.map((heads, member) => {
    const own = takeRows(x, member * rows.length, rows.length);
    return heads.map((head) => through(head, own));
  }).flat();
  const outputs = sideBySide(found, rows.length);
  if (network.skip) addSkip(outputs, network.skip, rows, numMembers);
  return outputs;
}

function block(rows, tokens, width) {
  return { rows, tokens, width, values: new Float64Array(rows * tokens * width) };
}

function through(steps, x) {
  return steps.reduce((found, step) => STEPS[step.do](step, found), x);
}

const STEPS = {
  linear: (step, x) => linear(step, x),
  norm: (step, x) => layerNorm(step, x),
  relu: (step, x) => ({ ...x, values: x.values.map((value) => Math.max(0, value)) }),
  gelu: (step, x) => ({ ...x, values: x.values.map(gelu) }),
  residual: (step, x) => added(x, through(step.steps, x)),
  members: (step, x) => ofMembers(step, x),
  attention: (step, x) => attention(step, x),
};

/** Return x W^T + b; four lines of x at a time share each weight that is read. */
function linear(step, x) {
  const [numOut, numIn] = step.weight.shape;
  const lines = x.rows * x.tokens;
  const found = block(x.rows, x.tokens, numOut);
  let line = 0;
  for (; line + 4 <= lines; line += 4) {
    fourLines(step.weight.values, x.values, found.values, line, numIn, numOut);
  }
  for (; line < lines; line++) {
    oneLine(step.weight.values, x.values, found.values, line, numIn, numOut);
  }
  if (step.bias) addBias(found.values, step.bias.values);
  return found;
}

function fourLines(weight, x, found, line, numIn, numOut) {
  const a = line * numIn, b = a + numIn, c = b + numIn, d = c + numIn;
  for (let o = 0; o < numOut; o++) {
    let ofA = 0, ofB = 0, ofC = 0, ofD = 0;
    for (let k = 0, w = o * numIn; k < numIn; k++, w++) {
      const each = weight[w];
      ofA += each * x[a + k];
      ofB += each * x[b + k];
      ofC += each * x[c + k];
      ofD += each * x[d + k];
    }
    const place = line * numOut + o;
    found[place] = ofA;
    found[place + numOut] = ofB;
    found[place + 2 * numOut] = ofC;
    found[place + 3 * numOut] = ofD;
  }
}

function oneLine(weight, x, found, line, numIn, numOut) {
  const start = line * numIn;
  for (let o = 0; o < numOut; o++) {
    let sum = 0;
    for (let k = 0, w = o * numIn; k < numIn; k++, w++) sum += weight[w] * x[start + k];
    found[line * numOut + o] = sum;
  }
}

function addBias(values, bias) {
  for (let start = 0; start < values.length; start += bias.length) {
    for (let k = 0; k < bias.length; k++) values[start + k] += bias[k];
  }
}

function layerNorm(step, x) {
  const found = block(x.rows, x.tokens, x.width);
  const weight = step.weight.values, bias = step.bias.values;
  for (let start = 0; start < x.values.length; start += x.width) {
    let mean = 0, square = 0;
    for (let k = start; k < start + x.width; k++) mean += x.values[k] / x.width;
    for (let k = start; k < start + x.width; k++) square += (x.values[k] - mean) ** 2 / x.width;
    const inverse = 1 / Math.sqrt(square + step.eps);
    for (let k = 0; k < x.width; k++) {
      found.values[start + k] = (x.values[start + k] - mean) * inverse * weight[k] + bias[k];
    }
  }
  return found;
}

function gelu(x) {
  return 0.5 * x * complementaryError(-x / Math.SQRT2);
}

/** Return erfc(x) to 1.2e-7 of its value (Press et al., Numerical Recipes, 6.2). */
function complementaryError(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const polynomial = [
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807,
    -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223,
  ].reduce((sum, coefficient) => sum * t + coefficient);
  const found = t * Math.exp(-x * x + polynomial);
  return x >= 0 ? found : 2 - found;
}

function added(x, other) {
  return { ...x, values: x.values.map((value, k) => value + other.values[k]) };
}

/** Return the rows of all members, one member's after the other's. */
function ofMembers(step, x) {
  const [numMembers, width] = step.factors.shape;
  const found = block(numMembers * x.rows, x.tokens, width);
  for (let member = 0; member < numMembers; member++) {
    const start = member * x.values.length;
    for (let k = 0; k < x.values.length; k++) {
      const factor = step.factors.values[member * width + (k % width)];
      found.values[start + k] = x.values[k] * factor;
    }
  }
  return found;
}

/** Return the tokens that go on after attending to all tokens of their row, with residual. */
function attention(step, x) {
  const asking = step.first_alone ? firstTokens(x) : x;
  const query = linear(step.query, asking), key = linear(step.key, x);
  const value = linear(step.value, x);
  const attended = block(asking.rows, asking.tokens, x.width);
  const headWidth = x.width / step.heads;
  for (let r = 0; r < x.rows; r++) {
    for (let q = 0; q < asking.tokens; q++) {
      for (let start = 0; start < x.width; start += headWidth) {
        const own = (r * asking.tokens + q) * x.width + start;
        const scores = new Float64Array(x.tokens);
        for (let m = 0; m < x.tokens; m++) {
          const other = (r * x.tokens + m) * x.width + start;
          for (let k = 0; k < headWidth; k++) {
            scores[m] += query.values[own + k] * key.values[other + k];
          }
          scores[m] /= Math.sqrt(headWidth);
        }
        softmax(scores).forEach((share, m) => {
          const other = (r * x.tokens + m) * x.width + start;
          for (let k = 0; k < headWidth; k++) {
            attended.values[own + k] += share * value.values[other + k];
          }
        });
      }
    }
  }
  return added(asking, linear(step.output, attended));
}

function firstTokens(x) {
  const found = block(x.rows, 1, x.width);
  for (let r = 0; r < x.rows; r++) {
    const start = r * x.tokens * x.width;
    found.values.set(x.values.subarray(start, start + x.width), r * x.width);
  }
  return found;
}

function softmax(scores) {
  const largest = Math.max(...scores);
  const raised = Array.from(scores, (score) => Math.exp(score - largest));
  const total = raised.reduce((sum, each) => sum + each, 0);
  return raised.map((each) => each / total);
}

function takeRows(x, start, rows) {
  const size = x.tokens * x.width;
  return { ...x, rows, values: x.values.subarray(start * size, (start + rows) * size) };
}

function sideBySide(parts, rows) {
  const width = parts.reduce((sum, part) => sum + part.width, 0);
  const found = block(rows, 1, width);
  for (let r = 0; r < rows; r++) {
    let place = r * width;
    for (const part of parts) {
      found.values.set(part.values.subarray(r * part.width, (r + 1) * part.width), place);
      place += part.width;
    }
  }
  return found;
}

/** Add a linear function of the features to the outputs of every member. */
function addSkip(outputs, skip, rows, numMembers) {
  const [numOut, numIn] = skip.shape;
  rows.forEach((row, r) => {
    for (let o = 0; o < numOut; o++) {
      let sum = 0;
      for (let k = 0; k < numIn; k++) sum += skip.values[o * numIn + k] * row.numeric[k];
      for (let member = 0; member < numMembers; member++) {
        outputs.values[r * outputs.width + member * numOut + o] += sum;
      }
    }
  });
}
