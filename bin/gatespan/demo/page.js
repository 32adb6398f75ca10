"use strict";
// The event streams: one EventSource for each gateway. Everything else on the page works without this.
(() => {
  const section = document.getElementById("streams");
  const columns = [...section.querySelectorAll("[data-stream]")];
  const button = section.querySelector("button");
  let sources = [];

  const show = (column, name, text) => { column.querySelector("." + name).textContent = text; };

  function start() {
    sources = columns.map((column) => {
      const source = new EventSource(column.dataset.stream);
      show(column, "state", "connecting");
      source.onopen = () => show(column, "state", "open");
      source.onerror = () => show(column, "state", "interrupted, trying again");
      source.onmessage = (event) => {
        const { tick, process, sent } = JSON.parse(event.data);
        // Sender and reader share a clock: both are on this machine.
        const late = Math.max(0, Date.now() - sent);
        show(column, "tick", tick);
        show(column, "detail", `from process ${process}, ${late} ms after it was sent`);
        column.querySelector(".beat").dataset.on = tick % 8;
      };
      return source;
    });
    button.textContent = "Stop the streams";
  }

  function stop() {
    for (const source of sources) source.close();
    sources = [];
    for (const column of columns) show(column, "state", "closed");
    button.textContent = "Start them again";
  }

  button.hidden = false;
  button.addEventListener("click", () => (sources.length ? stop() : start()));
  start();
})();
