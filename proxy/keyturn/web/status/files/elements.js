// Elements of a page: made once, then changed where they are. Text only ever goes in by textContent.

export const $ = (id) => document.getElementById(id);

export const set = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
  return element;
};
export const mark = (element, name, value) => {
  if (value === null || value === undefined || value === "") element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  return element;
};
export const make = (tag, className, ...children) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
};
// The children of `parent`, one for each item, found again by `key`; `build` makes one, `fill` writes into it.
export const list = (parent, items, key, build, fill) => {
  const kept = parent.kept || (parent.kept = new Map());
  const names = new Set();
  items.forEach((item, index) => {
    const name = key(item, index);
    names.add(name);
    let child = kept.get(name);
    if (!child) kept.set(name, (child = build(item)));
    fill(child, item);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] || null);
  });
  for (const [name, child] of kept) if (!names.has(name)) { child.remove(); kept.delete(name); }
};
