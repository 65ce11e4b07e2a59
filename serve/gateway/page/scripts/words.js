// Numbers, times and places as people read them.

/** 0.9731 -> "97.3 %". */
export function percent(share) {
  if (share == null || Number.isNaN(share)) return "–";
  return `${(share * 100).toFixed(share === 0 || share === 1 ? 0 : 1)} %`;
}

/** A number with about three digits that say something. */
export function short(value) {
  if (value == null || Number.isNaN(value)) return "–";
  if (value === 0 || Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  return size >= 0.01 ? value.toFixed(2) : value.toPrecision(1);
}

/** Seconds as "41 ms" or "1.20 s". */
export function seconds(value) {
  if (value == null || Number.isNaN(value)) return "–";
  return value < 1 ? `${short(value * 1000)} ms` : `${short(value)} s`;
}

/** "1 token", "2 tokens". */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** A time of the server (ISO 8601, UTC) in the reader's own time. */
export function moment(iso) {
  const time = new Date(iso);
  if (Number.isNaN(time.getTime())) return iso ?? "";
  const day = time.toDateString() === new Date().toDateString() ? undefined : { day: "numeric", month: "short" };
  return time.toLocaleString([], { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** The first 12 digits of a digest, as folders have them. */
export function digest(whole) {
  return whole.replace("sha256:", "").slice(0, 12);
}
