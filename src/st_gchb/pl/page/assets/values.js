// Values of genes, which lie in scripts: a page from the disk may load a script, but may not fetch a file.
"use strict";

var stGchb = (() => {
  const MOST_KEPT = 40;
  const kept = new Map();
  const waiting = new Map();

  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const floatsOf = (text) => new Float32Array(bytesOf(text).buffer);

  // Called by each script of data/genes.
  function gene(number, text) {
    const values = floatsOf(text);
    kept.set(number, values);
    if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
    waiting.get(number)?.resolve(values);
    waiting.delete(number);
  }

  function load(number) {
    if (kept.has(number)) return Promise.resolve(kept.get(number));
    if (waiting.has(number)) return waiting.get(number).promise;
    const entry = {};
    entry.promise = new Promise((resolve, reject) => {
      entry.resolve = resolve;
      const script = document.createElement("script");
      script.src = `data/genes/${number}.js`;
      script.onload = () => script.remove();
      script.onerror = () => {
        script.remove();
        waiting.delete(number);
        reject(new Error(`data/genes/${number}.js cannot be read: is the folder of this page complete?`));
      };
      document.head.append(script);
    });
    waiting.set(number, entry);
    return entry.promise;
  }

  // As numpy.percentile: linear between the two nearest values.
  function percentile(sorted, share) {
    const place = share * (sorted.length - 1);
    const below = Math.floor(place);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
  }

  // Ends of the color scale, from the 1st to the 99th percentile.
  function scaleOf(values) {
    const sorted = values.filter(Number.isFinite).sort();
    if (!sorted.length) return null;
    const low = percentile(sorted, 0.01);
    const high = percentile(sorted, 0.99);
    const beyond = { below: sorted[0] < low, above: sorted[sorted.length - 1] > high };
    return { low, high: high > low ? high : low + 1, ...beyond };
  }

  function written(value) {
    if (!Number.isFinite(value)) return "no value";
    const digits = value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2) : value.toFixed(3);
    return digits.replace("-", "−");
  }

  return { bytesOf, floatsOf, gene, load, scaleOf, written };
})();
