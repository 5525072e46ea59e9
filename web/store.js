// What this browser remembers: settings, theme and the conversation. A browser that forbids storage
// still chats; it just forgets.

const memory = new Map();

export function load(key, fallback) {
  try {
    const text = localStorage.getItem(`capstan.${key}`);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return memory.has(key) ? memory.get(key) : fallback;
  }
}

export function save(key, value) {
  memory.set(key, value);
  try {
    localStorage.setItem(`capstan.${key}`, JSON.stringify(value));
  } catch {
    // Private windows and full disks: the page goes on with what it has in memory.
  }
}
