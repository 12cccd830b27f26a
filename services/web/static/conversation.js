"use strict";
// A run's events on the page. Text of models goes into the page as text, never as markup.
(() => {
  const live = document.getElementById("live");
  const talk = document.getElementById("talk");
  const composer = document.getElementById("composer");
  const status = live.querySelector(".status");
  const steps = live.querySelector(".steps");
  const stop = live.querySelector(".stop");
  const approval = live.querySelector(".approval");
  // Never hidden, unlike what is shown of a run: whoever cannot see the answer hears here that it is complete.
  const ready = document.getElementById("ready");
  const says = live.dataset;
  const TYPES = ["run.queued", "run.started", "thinking.completed", "tool_call.started", "tool_result",
    "approval.requested", "approval.resolved", "retrieval.degraded", "message.delta", "message.completed", "usage", "run.takeover", "run.completed",
    "run.failed", "run.cancelled", "web"];

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const message = (role, heading, text) => {
    const item = element("li", "message " + role);
    const words = element("div", "text", text);
    item.append(element("h2", "", heading), words);
    talk.append(item);
    return { item, words };
  };

  const place = (one) => "/documents/" + encodeURIComponent(one.document) + "/versions/" + Number(one.version) +
    "/text?start=" + Number(one.start) + "&end=" + Number(one.end) + "#quote";

  // `[n]` of the text become links to the places they stand for, the second `[n]` to its second citation.
  const linked = (words, text, citations) => {
    const known = new Map();
    for (const one of citations) known.set(String(one.marker), [...(known.get(String(one.marker)) || []), one]);
    words.replaceChildren();
    let at = 0;
    for (const match of text.matchAll(/\[(\d{1,3})\]/g)) {
      const left = known.get(match[1]);
      if (!left) continue;
      const one = left.length > 1 ? left.shift() : left[0];
      const link = element("a", "cite", match[0]);
      link.href = place(one);
      link.title = one.quote;
      words.append(text.slice(at, match.index), link);
      at = match.index + match[0].length;
    }
    words.append(text.slice(at));
  };

  const sources = (item, citations) => {
    if (!citations.length) return;
    const box = element("details", "sources");
    const list = element("ol");
    for (const one of citations) {
      const entry = element("li");
      const where = one.page ? ", " + says.page + " " + one.page : "";
      const link = element("a", "", "[" + one.marker + "] " + (one.name || one.document) + where);
      link.href = place(one);
      entry.append(link, element("blockquote", "", one.quote));
      list.append(entry);
    }
    box.append(element("summary", "", says.sources + " (" + citations.length + ")"), list);
    item.append(box);
  };

  // Runs of a conversation go one after another, but their streams come as they come: what is shown is of
  // whoever spoke last, and it is put away with the last of them.
  const following = new Set();
  let asking = "";

  const show = (run) => {
    live.hidden = stop.hidden = false;
    live.setAttribute("aria-busy", "true");
    stop.action = "/runs/" + encodeURIComponent(run) + "/stop";
  };

  const follow = (run) => {
    let answer = null;
    let parts = [];
    let last = 0;
    let source = null;
    let ended = false;
    following.add(run);
    show(run);
    ready.textContent = "";
    steps.replaceChildren();
    status.textContent = says.waiting;

    const ask = (data) => {
      approval.action = "/runs/" + encodeURIComponent(run) + "/approvals/" + encodeURIComponent(data.call);
      approval.elements.round.value = data.round;
      approval.querySelector(".why").textContent = says[data.reason] || "";
      approval.querySelector(".call").textContent = data.name + " " + data.arguments;
      approval.hidden = false;
      asking = run;
      show(run);
      status.textContent = says.asks;
    };

    const shown = () => parts.map((part) => part.text).join("");
    const end = (text) => {
      ended = true;
      source.close();
      following.delete(run);
      live.dataset.ended = run;
      answered();
      if (following.size) {
        if (text) steps.append(element("li", "warn", text));
        return;
      }
      live.setAttribute("aria-busy", "false");
      stop.hidden = true;
      status.textContent = text;
      live.hidden = !text && !steps.children.length;
      composer.elements.text.focus({ preventScroll: true });
    };

    const answered = () => {
      if (asking === run) approval.hidden = true;
    };

    const handle = (event) => {
      const envelope = JSON.parse(event.data);
      if (event.type === "web") {
        if (envelope.what === "sign_in" || envelope.what === "refused") location.reload();
        if (envelope.what === "ended" && !answer) location.reload();
        if (envelope.what === "ended") end("");
        return;
      }
      if (envelope.seq <= last) return;
      last = envelope.seq;
      const data = envelope.data;
      switch (event.type) {
        case "run.started": show(run); status.textContent = says.working; break;
        case "tool_call.started": steps.append(element("li", "", says.tool + " " + data.name)); break;
        case "approval.requested": ask(data); break;
        case "approval.resolved": answered(); status.textContent = says.working; break;
        case "retrieval.degraded": steps.append(element("li", "warn", says.degraded)); break;
        case "run.takeover":
          parts = parts.filter((part) => part.seq <= data.discard_after_seq);
          steps.append(element("li", "", says.takeover));
          if (answer) answer.words.textContent = shown();
          break;
        case "message.delta":
          if (!answer) answer = message("assistant", says.answer, "");
          parts.push({ seq: envelope.seq, text: data.text });
          answer.words.append(data.text);
          break;
        case "message.completed":
          if (!answer) answer = message("assistant", says.answer, "");
          parts = [{ seq: envelope.seq, text: data.text }];
          linked(answer.words, data.text, data.citations || []);
          sources(answer.item, data.citations || []);
          break;
        case "run.completed":
          ready.textContent = ready.dataset.words;
          end("");
          break;
        case "run.failed": end(says.failed + " " + (data.message || "")); break;
        case "run.cancelled": end(says.cancelled); break;
      }
    };

    const open = () => {
      source = new EventSource("/runs/" + encodeURIComponent(run) + "/events?after=" + last);
      for (const type of TYPES) source.addEventListener(type, handle);
      source.addEventListener("error", () => {
        if (ended) return;
        status.textContent = says.lost;
        // The browser gives up by itself after an answer that is no stream; we do not.
        if (source.readyState === EventSource.CLOSED) setTimeout(open, 1500);
      });
      source.addEventListener("open", () => { if (!ended && last) status.textContent = says.working; });
    };
    open();
  };

  composer.addEventListener("submit", async (event) => {
    event.preventDefault();
    const field = composer.elements.text;
    const text = field.value.trim();
    if (!text) return;
    const button = composer.querySelector("button");
    button.disabled = true;
    try {
      const answer = await fetch(composer.action, {
        method: "POST", body: new FormData(composer), headers: { accept: "application/json" },
      });
      const said = await answer.json();
      if (!answer.ok) {
        live.hidden = false;
        stop.hidden = !following.size;
        status.textContent = said.detail || says.failed;
        return;
      }
      composer.elements.message_id.value = said.next_message_id;
      message("user", says.you, text);
      field.value = "";
      follow(said.run);
    } catch {
      live.hidden = false;
      status.textContent = says.lost;
    } finally {
      button.disabled = false;
    }
  });

  composer.elements.text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      composer.requestSubmit();
    }
  });

  stop.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await fetch(stop.action, { method: "POST", body: new FormData(stop), headers: { accept: "application/json" } });
    } catch {
      status.textContent = says.lost;
    }
  });

  approval.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = new FormData(approval);
    form.set("decision", event.submitter.value);
    const buttons = approval.querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    try {
      const answer = await fetch(approval.action, { method: "POST", body: form, headers: { accept: "application/json" } });
      if (answer.ok) approval.elements.note.value = "";
      else status.textContent = (await answer.json()).detail || says.failed;
    } catch {
      status.textContent = says.lost;
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  });

  if (says.run) follow(says.run);
})();
