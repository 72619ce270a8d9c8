// The page of `kin study`: one trial after the other, with a clock, by a server or, in the static version, without one.
"use strict";
(() => {
  const { Pane, lock } = window.KinPanes;
  const $ = id => document.getElementById(id);
  const LETTERS = "ABCDEFGH", LOADING_SECONDS = 120, RETRY_MS = 1000;
  const sleep = ms => new Promise(done => setTimeout(done, ms));
  const TEXTS = {
    fidelity: {
      name: "Which one is real?", question: "Choose the image that is a real stain. The other one is computed.",
      about: n => `You will see ${n} images of tissue beside each other. One is of a really stained section, the other was computed. Choose the real one.`,
    },
    quality: {
      name: "Which one is best?", question: "Choose the best of the lettered images: the most like a real stain of the source.",
      about: n => `You will see a source, a really stained reference, and ${n} images with letters that were computed from the source. Choose the best of these: the one that a real stain of the source would resemble most.`,
    },
  };

  // ---- where answers go: a server, or this browser ------------------------------------------------------------------

  const memory = (() => {
    const held = {};
    return {
      get: key => { try { return localStorage.getItem(key) ?? held[key] ?? null; } catch { return held[key] ?? null; } },
      set: (key, value) => { held[key] = value; try { localStorage.setItem(key, value); return true; } catch { return false; } },
      drop: key => { delete held[key]; try { localStorage.removeItem(key); } catch { /* it holds nothing */ } },
    };
  })();

  function online() {
    const pending = `kin-study ${location.pathname}`;
    async function send(path, body) {
      for (;;) {
        try {
          const answer = await fetch(path, body && { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
          if (answer.ok) { problem(""); return await answer.json(); }
          if (answer.status === 409) { location.reload(); await sleep(1e6); }  // this page is behind, e.g. a second window
          problem(`The server refused (${answer.status} ${await answer.text()}).`);
        } catch {
          problem("The server cannot be reached. Trying again …");
        }
        await sleep(RETRY_MS);
      }
    }
    async function deliver(told) {
      const state = await send("answer", told);
      memory.drop(pending);
      return state;
    }
    return {
      image: (id, trial) => (level, col, row) => `t/${trial}/${id}/${level}/${col}_${row}.jpg`,
      async state() {
        const kept = memory.get(pending);  // an answer that a closed browser could not bring
        if (kept) { try { return await deliver(JSON.parse(kept)); } catch { memory.drop(pending); } }
        return send("state.json");
      },
      start: trial => send("start", { trial }),
      answer(told) {
        memory.set(pending, JSON.stringify(told));
        return deliver(told);
      },
    };
  }

  function offline(plan) {
    const key = location.hash.slice(1), trials = plan.readers[key];
    if (!trials) return null;
    const place = `kin-study ${plan.study} ${key}`, now = () => Date.now();
    const kept = JSON.parse(memory.get(place) || '{"answers":[],"begun":null}');
    const keep = () => { if (!memory.set(place, JSON.stringify(kept))) problem("This browser keeps nothing: do not close this page before you have saved your answers."); };
    const next = () => kept.answers.length;
    const left = () => kept.begun?.trial === next() ? trials[next()].seconds - (now() - kept.begun.at) / 1000 : null;
    const note = (choice, seconds) => {
      kept.answers.push({ trial: next(), choice, seconds, at: new Date().toISOString() });
      kept.begun = null;
      keep();
    };
    const state = () => {
      if (next() < trials.length && left() !== null && left() <= 0) note(null, null);
      return next() < trials.length ? { ...trials[next()], left: left() } : { title: plan.title, trial: next(), of: trials.length, done: true };
    };
    const crc32 = text => {
      let crc = -1;
      for (let byte of new TextEncoder().encode(text)) {
        crc ^= byte;
        for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >>> 1 ^ 0xedb88320 : crc >>> 1;
      }
      return ((crc ^ -1) >>> 0).toString(16).padStart(8, "0");
    };
    return {
      image: id => (level, col, row) => `tiles/${id}/${level}/${col}_${row}.jpg`,
      state: async () => state(),
      async start(trial) {
        if (left() === null) { kept.begun = { trial, at: now() }; keep(); }
        return { left: left() };
      },
      async answer({ trial, choice, seconds }) {
        if (trial === next()) note(choice, seconds);
        return state();
      },
      save() {
        const answers = JSON.stringify({ study: plan.study, reader: key, answers: kept.answers });
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([JSON.stringify({ answers, crc: crc32(answers) })], { type: "application/json" }));
        link.download = `answers-${key.slice(0, 8)}.json`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      },
    };
  }

  // ---- cards between the trials -------------------------------------------------------------------------------------

  function problem(text) {
    $("problem").textContent = text;
    $("problem").hidden = !text;
  }

  function card(heading, lines, button) {
    $("trial").hidden = $("question").hidden = $("clock").hidden = true;
    $("bar").firstElementChild.style.width = 0;
    $("card").hidden = false;
    $("card").querySelector("h1").textContent = heading;
    $("text").replaceChildren(...lines.filter(Boolean).map(line => {
      const box = document.createElement("p");
      box.textContent = line;
      return box;
    }));
    $("next").hidden = !button;
    $("next").textContent = button || "";
    $("save").hidden = !desk.save;
    $("next").focus();
    return new Promise(done => { $("next").onclick = () => done(); });
  }

  function head(state) {
    document.title = state.title;
    $("title").textContent = state.title;
    $("progress").textContent = `${Math.min(state.trial + 1, state.of)} of ${state.of}${state.practice ? ", practice" : ""}`;
  }

  const times = seconds => `${seconds} second${seconds === 1 ? "" : "s"}`;

  function before(state, last) {
    const texts = TEXTS[state.challenge];
    if (state.first) {
      return card(texts.name, [
        last, texts.about(state.choices),
        `You have ${times(state.seconds)} for each, from the moment the images appear. Zoom with the wheel, two fingers or + and −; drag to pan; the images move together. Choose with the buttons or the keys ${LETTERS.slice(0, state.choices).split("").join(", ")}.`,
        state.practice && "It begins with practice, which does not count.", "Between two questions you may rest as long as you like.",
      ], "Begin");
    }
    return card(state.counts ? "Now it counts" : "Ready?", [last, state.left !== null && "The time of this question is running already."], "Next");
  }

  // ---- a trial ------------------------------------------------------------------------------------------------------

  function layOut(state) {
    $("trial").replaceChildren();
    const cells = state.images.map((image, number) => {
      const cell = document.createElement("div");
      cell.className = "cell";
      const pane = new Pane(cell, 1), name = pane.element.appendChild(document.createElement("span"));
      name.className = "name left";
      name.textContent = { source: "Source", reference: "Reference, really stained" }[image.role] || LETTERS[number];
      if (!image.role) {
        const button = cell.appendChild(document.createElement("button"));
        button.textContent = `Choose ${LETTERS[number]}`;
        button.disabled = true;
      }
      return { cell, pane, image };
    });
    const rows = [cells.filter(({ image }) => image.role), cells.filter(({ image }) => !image.role)].filter(row => row.length);
    for (const row of rows) {
      const box = $("trial").appendChild(document.createElement("div"));
      box.className = "row";
      box.append(...row.map(({ cell }) => cell));
    }
    const cover = $("trial").appendChild(document.createElement("div"));
    cover.className = "cover";
    cover.textContent = "Loading …";
    $("card").hidden = true;
    $("trial").hidden = $("question").hidden = false;
    $("question").textContent = TEXTS[state.challenge].question;
    return { cells, cover };
  }

  async function load(cells, state) {
    const items = await Promise.all(cells.map(({ pane, image }) => pane.add({ ...image, place: [0, 0, 1] }, desk.image(image.id, state.trial))));
    let failed = false;
    for (const { pane } of cells) pane.viewer.addHandler("tile-load-failed", () => { failed = true; });
    // every image is seen whole at first, all in the same scale
    const ratios = cells.map(({ image }) => image.size[1] / image.size[0]), tallest = Math.max(...ratios);
    const z = 0.98 * Math.min(...cells.map(({ pane }) => Math.min(pane.element.clientWidth, pane.element.clientHeight / tallest)));
    const whole = { x: 0.5, y: tallest / 2, z };
    for (const { pane } of cells) pane.show(whole);
    for (let waited = 0; !items.every(item => item.getFullyLoaded()); waited += 30) {
      if (failed || waited > 1000 * LOADING_SECONDS) throw new Error("An image could not be loaded.");
      await sleep(30);
    }
    for (const { pane } of cells) pane.show(whole);
    lock(cells.map(({ pane }) => pane));
  }

  async function ask(state) {
    const { cells, cover } = layOut(state), panes = cells.map(({ pane }) => pane);
    const end = () => panes.forEach(pane => pane.destroy());
    try {
      await load(cells, state);
    } catch (error) {
      end();
      await card("Something went wrong", [String(error.message || error)], "Try again");
      return null;
    }
    const { left } = await desk.start(state.trial), begin = performance.now();
    const used = () => state.seconds - left + (performance.now() - begin) / 1000;
    cover.remove();
    const told = await answered(cells, state, used);
    end();
    $("trial").replaceChildren();
    return told;
  }

  // Resolves to the answer, or to a missed one when the time is over.
  function answered(cells, state, used) {
    return new Promise(resolve => {
      let frame = 0, over = 0;
      const done = choice => {
        const seconds = used(), late = choice === null || seconds > state.seconds;
        cancelAnimationFrame(frame);
        clearTimeout(over);
        document.removeEventListener("keydown", keys);
        resolve(late ? { trial: state.trial, choice: null, seconds: null } : { trial: state.trial, choice, seconds });
      };
      const keys = event => {
        if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && /^[a-h1-8]$/i.test(event.key)) return;
        const key = event.key.toUpperCase(), letter = LETTERS.indexOf(key), digit = Number(key) - 1;
        const number = key.length === 1 && letter >= 0 ? letter : digit;
        const pan = { ArrowLeft: [-80, 0], ArrowRight: [80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] }[event.key];
        if (number >= 0 && number < state.choices) done(number);
        else if (pan) cells[0].pane.panBy(...pan);
        else if (key === "+" || key === "=") cells[0].pane.zoomBy(1.5);
        else if (key === "-") cells[0].pane.zoomBy(1 / 1.5);
        else return;
        event.preventDefault();
      };
      cells.slice(0, state.choices).forEach(({ cell }, number) => {
        const button = cell.querySelector("button");
        button.disabled = false;
        button.addEventListener("click", () => done(number));
      });
      document.addEventListener("keydown", keys);
      const tick = () => {
        const left = Math.max(0, state.seconds - used());
        $("clock").textContent = `${Math.ceil(left)} s`;
        $("bar").firstElementChild.style.width = `${100 * left / state.seconds}%`;
        $("bar").className = left < state.seconds / 4 ? "soon" : "";
        frame = requestAnimationFrame(tick);
      };
      $("clock").hidden = false;
      tick();
      over = setTimeout(() => done(null), Math.max(0, 1000 * (state.seconds - used())));
    });
  }

  // ---- all of it ----------------------------------------------------------------------------------------------------

  const desk = window.KIN_STUDY ? offline(window.KIN_STUDY) : online();

  async function run() {
    if (!desk) {
      $("card").querySelector("h1").textContent = "This link is not complete";
      $("text").textContent = "Open the study by the whole link that you were given, with all that follows the #.";
      $("next").hidden = true;
      return;
    }
    $("save").onclick = () => desk.save();
    let state = await desk.state(), last = "";
    while (!state.done) {
      head(state);
      if (state.left === null) await before(state, last);
      const told = await ask(state);
      if (!told) { state = await desk.state(); continue; }
      last = told.choice === null ? "The time was over, so the last question has no answer." : "Saved.";
      card("One moment", ["Saving …"], "");
      state = await desk.answer(told);
    }
    head(state);
    $("progress").textContent = `${state.of} of ${state.of}`;
    card("Thank you", [last, desk.save ? "Save your answers as a file, and send it back to whoever invited you." : "That was all. Your answers are saved; you may close this page."], "");
  }

  run();
})();
