"use strict";
// Keeps the states of documents fresh while any of them is on its way.
(() => {
  const table = document.getElementById("states");
  if (!table || !table.dataset.moving) return;
  const word = (state) => table.getAttribute("data-state-" + state.replaceAll("_", "-")) || state;
  // Of the page that is shown, which need not be the first.
  const states = "/bases/" + encodeURIComponent(table.dataset.base) + "/states?after=" + encodeURIComponent(table.dataset.after);
  const look = async () => {
    let again = 3000;
    try {
      const answer = await fetch(states, { headers: { accept: "application/json" } });
      if (answer.status === 401) return location.reload();
      if (answer.ok) {
        const found = await answer.json();
        for (const one of found) {
          const row = table.querySelector('tr[data-document="' + CSS.escape(one.id) + '"]');
          if (!row) continue;
          const state = row.querySelector(".state");
          state.textContent = word(one.state);
          state.className = "state " + one.state;
          row.querySelector(".reason").textContent = one.reason;
        }
        if (!found.some((one) => one.moving)) return location.reload();
      }
    } catch {
      again = 6000;
    }
    setTimeout(look, again);
  };
  setTimeout(look, 2000);
})();
