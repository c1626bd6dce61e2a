// Arrays of a page: typed arrays read from its blob, where the header says they lie (arrays.py).

const KINDS = {
  f32: Float32Array, u8: Uint8Array, i16: Int16Array, u16: Uint16Array, i32: Int32Array,
};

/** Return the bytes of a text in base64. */
function bytesOf(text) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = characters.charCodeAt(k);
  return bytes.buffer;
}

/** Return a header in which every place of an array is the array: {shape, values}. */
function withArrays(node, buffer) {
  if (Array.isArray(node)) return node.map((each) => withArrays(each, buffer));
  if (node === null || typeof node !== "object") return node;
  if ("at" in node && "as" in node) {
    return { shape: node.shape, values: readArray(node, buffer) };
  }
  const entries = Object.entries(node).map(([key, each]) => [key, withArrays(each, buffer)]);
  return Object.fromEntries(entries);
}

/** Return an array's numbers; those that were written as whole numbers are scaled row by row. */
function readArray(place, buffer) {
  const count = place.shape.reduce((product, size) => product * size, 1);
  if (place.as !== "scaled") return new KINDS[place.as](buffer, place.at, count);
  const width = place.shape[place.shape.length - 1];
  const numRows = width ? count / width : 0;
  const scale = new Float32Array(buffer, place.at, numRows);
  const start = place.at + 4 * numRows;
  const high = new Int16Array(buffer, start, count);
  const extra = place.extra; // bits behind the 16, several numbers' in a byte
  const low = extra && new Uint8Array(buffer, start + 4 * Math.ceil(count / 2));
  const perByte = extra && 8 / extra;
  const values = new Float32Array(count);
  for (let k = 0; k < count; k++) {
    let whole = high[k];
    if (extra) {
      const shifted = low[Math.floor(k / perByte)] >> (extra * (k % perByte));
      whole = whole * 2 ** extra + (shifted & (2 ** extra - 1));
    }
    values[k] = whole * scale[Math.floor(k / width)];
  }
  return values;
}
