// Elements and numbers as text. Whatever comes from a table enters as text, never as markup.

/** Return an element; properties beginning with "on" are listeners, others attributes. */
function element(name, properties, ...children) {
  return filled(document.createElement(name), properties, children);
}

function svgElement(name, properties, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
}

function filled(node, properties, children) {
  for (const [key, value] of Object.entries(properties || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Return a number to four digits for people to read. */
function shown(value) {
  if (value === Infinity) return "∞";
  if (value === -Infinity) return "−∞";
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value).replace("-", "−");
  if (size < 1e-3 || size >= 1e7) {
    return value.toExponential(2).replace("-", "−").replace("e+", "e");
  }
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 0.1 ? 3 : 4;
  return value.toFixed(digits).replace("-", "−");
}

/** Return a probability, whose last digits near 0 and 1 nobody believes. */
function shownChance(value) {
  if (value > 0 && value < 1e-4) return "< 0.0001";
  return value < 1 && value > 0.9999 ? "> 0.9999" : shown(value);
}

/** Return text that fits where there is room for so many characters. */
function cut(text, most) {
  return text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1))}…`;
}

function withUnit(text, unit) {
  return unit ? `${text} ${unit}` : text;
}

/** Return a column with its unit in brackets, as axes and labels have it. */
function titled(column, unit) {
  return unit ? `${column} [${unit}]` : column;
}

/** Return a menu of options, one of which is chosen. */
function menu(id, options, chosen, onchange) {
  const select = element("select", { id, onchange: () => onchange(select.value) },
    ...options.map(([value, text]) => element("option", { value }, text)));
  select.value = chosen;
  return select;
}
