// Boosted trees, as trees.py writes them and fusionnet/blend evaluates them.

/** Return what the trees predict of a standardised row, by task: sums of leaves per output. */
function treeOutputs(blend, row) {
  const columns = treeColumns(blend, row);
  const entries = Object.entries(blend.tasks).map(([name, task]) =>
    [name, forestSums(task.forest, columns)]);
  return Object.fromEntries(entries);
}

/** Return what trees read of a row: numbers, categories one by one, strings by their table. */
function treeColumns(blend, row) {
  const categories = blend.categories.map((codes, column) =>
    codes.map((code) => (code === row.categories[column] ? 1 : 0)));
  const strings = blend.strings.map((table, column) =>
    Array.from(tableRow(table, row.strings[column])));
  return [...row.numeric, ...categories.flat(), ...strings.flat()];
}

function forestSums(forest, columns) {
  const sums = new Array(forest.outputs).fill(0);
  const code = forest.code.values, right = forest.right.values, value = forest.value.values;
  forest.root.values.forEach((root, tree) => {
    let node = root;
    while (code[node] >= 0) {
      const found = columns[code[node] >> 1];
      const goesLeft = Number.isNaN(found) ? (code[node] & 1) === 1 : found <= value[node];
      node += goesLeft ? 1 : right[node];
    }
    sums[tree % forest.outputs] += value[node];
  });
  return sums;
}
