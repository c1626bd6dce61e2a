// What enters the network's steps: summands from tables, and encoded features of each row.

/** Return the summand of one row in a table of strings or categories. */
function tableRow(table, number) {
  const width = table.shape[1];
  return table.values.subarray(number * width, (number + 1) * width);
}

/** Return which row of each table a row has: strings' first, then categories'. */
function tableCodes(network, row) {
  return [...network.string_columns.map((column) => row.strings[column]), ...row.categories];
}

function summed(network, rows, numbers) {
  const x = block(rows.length, 1, network.width);
  rows.forEach((row, r) => {
    const own = x.values.subarray(r * x.width, (r + 1) * x.width);
    const summands = tableCodes(network, row).map((code, t) => tableRow(network.tables[t], code));
    if (network.bias) summands.push(network.bias.values);
    numbers.forEach((group) => {
      summands.push(group.values.subarray(r * x.width, (r + 1) * x.width));
    });
    for (const summand of summands) {
      for (let k = 0; k < x.width; k++) own[k] += summand[k];
    }
  });
  return x;
}

/** Return [CLS] and the tokens of each row, in the order strings, numbers, categories. */
function rowTokens(network, rows, numbers) {
  const { cls, kinds } = network.modality;
  const numStrings = network.string_columns.length;
  const x = block(rows.length, 1 + network.tables.length + numbers.length, network.width);
  rows.forEach((row, r) => {
    const gathered = tableCodes(network, row).map((code, t) => tableRow(network.tables[t], code));
    const groups = numbers.map((group, g) => group.values
      .slice(r * x.width, (r + 1) * x.width)
      .map((value, k) => value + kinds[g].values[k]));
    const strings = gathered.slice(0, numStrings);
    const tokens = [cls.values, ...strings, ...groups, ...gathered.slice(numStrings)];
    tokens.forEach((token, m) => x.values.set(token, (r * x.tokens + m) * x.width));
  });
  return x;
}

/** Return a row's features, or what the embedding makes of each: tokens are features. */
function featureBlock(embedding, rows) {
  const numFeatures = rows[0].numeric.length;
  const width = !embedding ? 1 : embedding.bias.shape[embedding.bias.shape.length - 1];
  const x = block(rows.length, numFeatures, width);
  rows.forEach((row, r) => row.numeric.forEach((value, f) => {
    const start = (r * numFeatures + f) * width;
    const own = x.values.subarray(start, start + width);
    if (!embedding) own[0] = value;
    else if (embedding.kind === "ple") piecewiseLinear(embedding, f, value, own);
    else periodic(embedding, f, value, own);
  }));
  return x;
}

function piecewiseLinear({ lower, slope, linear, bias, weight }, f, value, own) {
  const numBins = lower.shape[1];
  const width = own.length;
  for (let w = 0; w < width; w++) {
    own[w] = value * linear.values[f * width + w] + bias.values[f * width + w];
  }
  for (let k = f * numBins; k < (f + 1) * numBins; k++) {
    const share = Math.min(1, Math.max(0, (value - lower.values[k]) * slope.values[k]));
    for (let w = 0; w < width; w++) own[w] += share * weight.values[k * width + w];
  }
}

function periodic({ frequencies, weight, bias }, f, value, own) {
  const numFrequencies = frequencies.shape[1];
  const width = own.length;
  const matrix = weight.shape[0] === 1 ? 0 : f; // lite: one for all features
  const start = matrix * 2 * numFrequencies * width;
  for (let w = 0; w < width; w++) own[w] = bias.values[matrix * width + w];
  for (let k = 0; k < numFrequencies; k++) {
    const phase = 2 * Math.PI * frequencies.values[f * numFrequencies + k] * value;
    const cosine = Math.cos(phase), sine = Math.sin(phase);
    const ofSine = start + (numFrequencies + k) * width;
    for (let w = 0; w < width; w++) {
      own[w] += cosine * weight.values[start + k * width + w] + sine * weight.values[ofSine + w];
    }
  }
  for (let w = 0; w < width; w++) own[w] = Math.max(0, own[w]);
}

/** Return some features of each row behind one another, as one token. */
function chosenFeatures(features, chosen) {
  const { rows, tokens, width } = features;
  const x = block(rows, 1, chosen.length * width);
  for (let r = 0; r < rows; r++) {
    chosen.forEach((f, place) => {
      const start = (r * tokens + f) * width;
      x.values.set(features.values.subarray(start, start + width), r * x.width + place * width);
    });
  }
  return x;
}
