// The live line: running and queued requests, cache hits and speed, from /v1/loads once a second while
// the page is visible.

export function watchServer(line, headers) {
  async function poll() {
    if (document.hidden) return;
    try {
      const response = await fetch("v1/loads?include=core", { headers: headers(), signal: AbortSignal.timeout(3000) });
      if (!response.ok) throw new Error(response.status === 401 ? "an API key is needed (Settings)" : `HTTP ${response.status}`);
      const load = (await response.json()).loads[0];
      const parts = [
        `${load.num_running_reqs} running`,
        `${load.num_waiting_reqs} queued`,
        `cache hits ${Math.round(100 * load.cache_hit_rate)} %`,
      ];
      if (load.token_usage !== undefined) parts.push(`memory ${Math.round(100 * load.token_usage)} %`);
      if (load.gen_throughput > 0) parts.push(`${load.gen_throughput.toFixed(0)} tok/s`);
      line.textContent = parts.join(" · ");
      line.classList.remove("bad");
    } catch (error) {
      line.textContent = error.name === "TypeError" || error.name === "TimeoutError" ? "server not reachable" : error.message;
      line.classList.add("bad");
    }
  }
  poll();
  setInterval(poll, 1000);
  document.addEventListener("visibilitychange", poll);
  return poll;
}
