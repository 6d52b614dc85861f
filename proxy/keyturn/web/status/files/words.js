// How numbers, times and states are written.

export const whole = new Intl.NumberFormat("en");
export const number = (value) => whole.format(value);
export const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many || one + "s"}`;
export const percent = (ratio) => `${Math.round(100 * ratio)}\u00a0%`;
export const span = (seconds) => {
  if (seconds < 0.95) return `${Math.max(0, seconds).toFixed(1)}\u00a0s`;
  if (seconds < 100) return `${Math.round(seconds)}\u00a0s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)}\u00a0min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)}\u00a0h`;
  return `${Math.round(seconds / 86400)}\u00a0days`;
};
export const soon = (seconds) => span(Math.max(1, Math.ceil(seconds)));
export const since = (from, at) => span(Math.max(0, (Date.parse(at) - Date.parse(from)) / 1000));
export const again = (at, until, due = "now") => (Date.parse(until) - Date.parse(at) < 1000 ? due : `in ${since(at, until)}`);
export const clock = (instant) => new Date(instant).toLocaleTimeString("en-GB");
export const TONES = { ready: "good", parked: "warn", quarantined: "bad", paused: "none" };
export const NEXT = { quarantined: "checked ", parked: "opens " };
export const usable = (key) => key.state === "ready" || key.state === "parked";
export const usedUp = (key) => key.month_remaining === 0;
