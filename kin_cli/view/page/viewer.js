// The page of `kin view`: modes, layers, the list of worst borders, and the place in the address.
"use strict";
(() => {
  const { Pane, lock, ruler } = window.KinPanes;
  const { layers, live, kind, findings: known } = window.KIN;
  const MODES = ["curtain", "side", "blend", "single"];
  const STOPS = [[90, 140, 190], [250, 190, 40], [190, 0, 30]], TOP = { "ΔE": 5, "8-bit": 12 };
  const source = layers[0], mpp = source.mpp, frame = source.size[0];
  const $ = id => document.getElementById(id);
  const state = { mode: layers.length > 1 ? "curtain" : "single", left: 0, right: Math.min(1, layers.length - 1), at: 0.5, tissue: 0, seams: 0, trust: 0 };
  const findings = { ...known };
  let panes = [], locked = null, curtain = null, images = [], current = -1, built = 0, mask = null;

  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
  const address = number => (level, col, row) => `tiles/${number}/${level}/${col}_${row}${kind}`;
  const say = text => { $("message").textContent = text; };
  const names = () => layers.map(layer => layer.name);

  // ---- the place in the address -------------------------------------------------------------------------------------

  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1)), number = name => given.has(name) ? Number(given.get(name)) : NaN;
    if (MODES.includes(given.get("mode"))) state.mode = given.get("mode");
    for (const name of ["left", "right"]) if (Number.isInteger(number(name)) && layers[number(name)]) state[name] = number(name);
    if (number("at") >= 0 && number("at") <= 1) state.at = number("at");
    for (const name of ["tissue", "seams", "trust"]) if (given.has(name)) state[name] = given.get(name) === "1" ? 1 : 0;
    if (layers.length < 2) state.mode = "single";
    const view = { x: number("x"), y: number("y"), z: number("z") };
    return Object.values(view).every(Number.isFinite) && view.z > 0 ? { ...view, z: clamp(view.z, 1e-6, 64) } : null;
  }

  let writing = 0;
  function toAddress() {
    clearTimeout(writing);
    writing = setTimeout(() => {
      const view = leader()?.target;
      if (!view || !Number.isFinite(view.z)) return;
      const round = (value, digits) => String(+value.toFixed(digits));
      const hash = new URLSearchParams({
        x: round(view.x, 1), y: round(view.y, 1), z: String(+view.z.toPrecision(5)), mode: state.mode, left: state.left,
        right: state.right, at: round(state.at, 3), tissue: state.tissue, seams: state.seams,
        trust: state.trust,
      });
      try { history.replaceState(null, "", `#${hash}`); } catch { location.replace(`#${hash}`); }
    }, 200);
  }

  // ---- panes --------------------------------------------------------------------------------------------------------

  const leader = () => locked ? locked.leader : panes[0];

  async function build(view) {
    const mine = ++built, kept = view || (panes.length && images.length ? leader().target : null);
    for (const pane of panes) pane.destroy();
    panes = []; images = []; locked = null; curtain = null;
    $("stage").replaceChildren();
    const shown = state.mode === "side" ? sides() : [state.mode === "single" ? [state.left] : [state.left, state.right]];
    arrange(shown.length);
    panes = shown.map(() => new Pane($("stage"), frame));
    panes.forEach((pane, place) => decorate(pane, shown[place]));
    if (panes.length > 1) locked = lock(panes);
    const added = await Promise.all(panes.map((pane, place) => Promise.all(shown[place].map(number => pane.add(layers[number], address(number))))));
    if (mine !== built) return;
    images = added[0];
    if (state.mode === "curtain") curtain = hang(panes[0]);
    for (const pane of panes) {
      if (kept) pane.show(kept); else home(pane, true);
      pane.viewer.addHandler("viewport-change", () => changed(pane));
      pane.viewer.addHandler("resize", () => requestAnimationFrame(() => changed(pane)));
    }
    refresh();
  }

  function sides() {
    const first = [state.left, state.right], others = layers.map((_, number) => number).filter(number => !first.includes(number));
    return [...new Set([...first, ...others])].slice(0, 4).map(number => [number]);
  }

  function arrange(count) {
    const wide = $("stage").clientWidth >= $("stage").clientHeight;
    const cols = count === 4 ? 2 : wide ? count : 1;
    $("stage").style.gridTemplateColumns = `repeat(${cols}, minmax(0, 1fr))`;
    $("stage").style.gridTemplateRows = `repeat(${Math.ceil(count / cols)}, minmax(0, 1fr))`;
  }

  function decorate(pane, numbers) {
    const label = (text, side) => {
      const box = pane.element.appendChild(document.createElement("span"));
      box.className = `name ${side}`;
      box.textContent = text;
    };
    label(layers[numbers[0]].name, "left");
    if (numbers.length > 1) label(layers[numbers[1]].name, "right");
    if (pane === panes[0]) ruler(pane, mpp);
    pane.viewer.addHandler("tile-load-failed", event => { if (event.message !== "Image load aborted") say("some tiles could not be loaded"); });
    pane.element.addEventListener("pointermove", event => point(pane, event));
    pane.element.addEventListener("pointerleave", () => { $("where").textContent = ""; });
  }

  function home(pane, at_once = false) {
    const [, , width, height] = source.place, { clientWidth: w, clientHeight: h } = pane.element;
    pane.show({ x: width / 2, y: height / 2, z: 0.97 * Math.min(w / width, h / height) }, at_once);
  }

  function hang(pane) {
    const bar = pane.element.appendChild(document.createElement("div"));
    bar.className = "curtain";
    bar.tabIndex = 0;
    for (const [name, value] of Object.entries({ role: "slider", "aria-label": "Curtain", "aria-valuemin": 0, "aria-valuemax": 100 })) bar.setAttribute(name, value);
    const move = event => {
      const box = pane.element.getBoundingClientRect();
      setAt((event.clientX - box.left) / box.width);
    };
    bar.addEventListener("pointerdown", event => { bar.setPointerCapture(event.pointerId); bar.focus(); event.preventDefault(); });
    bar.addEventListener("pointermove", event => { if (bar.hasPointerCapture(event.pointerId)) move(event); });
    bar.addEventListener("keydown", event => {
      const step = { ArrowLeft: -0.01, ArrowRight: 0.01, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      setAt(state.at + step);
    });
    return bar;
  }

  function setAt(value) {
    state.at = clamp(value, 0, 1);
    refresh();
  }

  // ---- what is over the slides --------------------------------------------------------------------------------------

  function changed(pane) {
    if (pane === panes[0]) uncover();
    draw(pane);
    if (pane === leader()) {
      const { z } = pane.view;
      $("magnification").textContent = mpp ? `${+(10 / mpp * z).toPrecision(3)}× · ${+(mpp / z).toPrecision(3)} µm per pixel` : `${+(100 * z).toPrecision(3)} %`;
      toAddress();
    }
  }

  // Clip the right slide to what lies right of the curtain, or let it shine through.
  function uncover() {
    if (images.length < 2) return;
    const [, top] = images, pane = panes[0];
    if (state.mode === "blend") {
      top.setOpacity(state.at);
      return;
    }
    const edge = top.viewerElementToImageCoordinates(new OpenSeadragon.Point(state.at * pane.element.clientWidth, 0)).x;
    const { x: width, y: height } = top.getContentSize(), left = clamp(edge, 0, width);
    top.setOpacity(left >= width ? 0 : 1);
    if (left < width) top.setClip(new OpenSeadragon.Rect(left, 0, width - left, height));
    curtain.style.left = `${100 * state.at}%`;
    curtain.setAttribute("aria-valuenow", Math.round(100 * state.at));
    curtain.setAttribute("aria-valuetext", `${Math.round(100 * (1 - state.at))} % ${layers[state.right].name}`);
  }

  function colour(fraction) {
    const place = clamp(fraction, 0, 1) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
    return `rgb(${STOPS[low].map((value, i) => Math.round(value + (place - low) * (STOPS[low + 1][i] - value)))})`;
  }

  const judged = () => [state.right, state.left].find(number => layers[number].role === "translation") ?? layers.findIndex(layer => layer.role === "translation");

  function draw(pane) {
    const { clientWidth: w, clientHeight: h } = pane.element, ratio = devicePixelRatio || 1, canvas = pane.marks;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    if (state.tissue && mask) {
      const [x, y] = pane.place(0, 0), { z } = pane.view;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(mask, x, y, source.place[2] * z, source.place[3] * z);
    }
    const number = judged(), found = findings[`seams/${number}`], map = findings[`trust/${number}`];
    if (state.trust && map?.picture) drawTrust(pen, pane, layers[number], map, w, h);
    if (state.seams && found?.lines) drawSeams(pen, pane, layers[number], found, w, h);
  }

  function drawTrust(pen, pane, layer, map, w, h) {
    const { x: cx, y: cy, z } = pane.view, scale = layer.place[2] / layer.size[0];
    pen.imageSmoothingEnabled = false;
    pen.drawImage(map.picture, (layer.place[0] - cx) * z + w / 2, (layer.place[1] - cy) * z + h / 2, map.width * scale * z, map.height * scale * z);
  }

  function drawSeams(pen, pane, layer, found, w, h) {
    const { x: cx, y: cy, z } = pane.view, scale = layer.place[2] / layer.size[0], top = TOP[found.unit] || 5;
    const bar = ([x, y, vertical, excess, length], extra = 0) => {
      const left = (layer.place[0] + x * scale - cx) * z + w / 2, upper = (layer.place[1] + y * scale - cy) * z + h / 2;
      const long = length * scale * z, thick = (long < 8 ? 1 : 2 + 2 * clamp(excess / top, 0, 1)) + extra, gap = long > 24 ? long / 12 : 0;
      return vertical ? [left - thick / 2, upper + gap, thick, long - 2 * gap] : [left + gap, upper - thick / 2, long - 2 * gap, thick];
    };
    for (const line of found.lines) {
      const box = bar(line);
      if (box[0] > w || box[1] > h || box[0] + box[2] < 0 || box[1] + box[3] < 0) continue;
      pen.fillStyle = colour(line[3] / top);
      pen.globalAlpha = line[3] > 0 ? 1 : 0.35;
      for (const part of ends(box, line[2])) pen.fillRect(...part);
    }
    pen.globalAlpha = 1;
    const chosen = found.worst[current];
    if (chosen) {
      const [x, y, width, height] = bar(chosen, 22);
      pen.lineWidth = 4; pen.strokeStyle = "#000"; pen.strokeRect(x - 3, y - 3, width + 6, height + 6);
      pen.lineWidth = 2; pen.strokeStyle = "#fff"; pen.strokeRect(x - 3, y - 3, width + 6, height + 6);
    }
  }

  // A long bar is drawn at its two ends only, so that the border itself can be seen.
  function ends([x, y, width, height], vertical) {
    const long = vertical ? height : width, part = 0.12 * long;
    if (long < 140) return [[x, y, width, height]];
    return vertical
      ? [[x, y, width, part], [x, y + height - part, width, part]]
      : [[x, y, part, height], [x + width - part, y, part, height]];
  }

  // Ask the server for a finding until it is there.
  const asked = new Set();
  async function need(name) {
    if (findings[name] || asked.has(name)) return;
    if (!live) { findings[name] = { error: "this copy was made without it" }; return; }
    asked.add(name);
    try {
      for (;;) {
        const answer = await fetch(`findings/${name}.json`);
        if (!answer.ok) throw new Error(await answer.text());
        const found = await answer.json();
        if (!("fraction" in found)) { findings[name] = found; say(""); break; }
        say(`${name.startsWith("seams") ? "measuring seams" : name.startsWith("trust") ? "reading the trust map" : "finding tissue"}: ${Math.round(100 * found.fraction)} %`);
        await new Promise(done => setTimeout(done, 400));
      }
    } catch (error) {
      say(`${error.message || error}`);
    } finally {
      asked.delete(name);
    }
    refresh();
  }

  function layersOver() {
    if (state.tissue) {
      need("tissue");
      const found = findings.tissue;
      if (found?.error) say(found.error);
      if (found?.image && !mask) {
        const image = new Image();
        image.onload = () => { mask = image; refresh(); };
        image.src = found.image;
        mask = null;
      }
    }
    const number = judged();
    $("unlike").hidden = !(state.trust && number > 0);
    if (!$("unlike").hidden) {
      need(`trust/${number}`);
      const map = findings[`trust/${number}`];
      explain(layers[number].name, map);
      if (map?.image && !map.picture && !map.loading) {
        map.loading = new Image();
        map.loading.onload = () => { map.picture = map.loading; refresh(); };
        map.loading.src = map.image;
      }
    }
    $("worst").hidden = !(state.seams && number > 0);
    if (!$("worst").hidden) {
      need(`seams/${number}`);
      list(number);
    }
  }

  function explain(name, map) {
    $("trust-facts").textContent = map ? map.error || `${name}: ${map.text}.` : "Reading the trust map …";
    $("legend").replaceChildren(...(map?.legend || []).map(([shade, text]) => {
      const row = document.createElement("li");
      row.appendChild(document.createElement("i")).style.background = shade;
      row.appendChild(document.createElement("span")).textContent = text;
      return row;
    }));
  }

  let listed = "";
  function list(number) {
    const found = findings[`seams/${number}`], key = `${number} ${found ? 1 : 0}`;
    if (key === listed) return;
    listed = key; current = -1;
    const unit = found?.unit === "8-bit" ? "grey levels" : found?.unit;
    $("scale").hidden = !found?.lines;
    $("borders").replaceChildren();
    if (!found) { $("seam-facts").textContent = `Measuring ${layers[number].name} …`; return; }
    if (found.error) { $("seam-facts").textContent = found.error; return; }
    const number3 = value => value === null ? "–" : value.toFixed(2);
    $("seam-facts").textContent = `${layers[number].name}: ${found.lines.length} borders of ${found.length} px; ${found.control ? "R*" : "R"} ${number3(found.ratio)}, `
      + `mean excess ${number3(found.excess)} ${unit}${found.control ? "" : "; without the source as control"}. ${found.note ? `Note: ${found.note}.` : ""}`;
    const pen = $("scale").querySelector("canvas").getContext("2d");
    for (let x = 0; x < 200; x++) { pen.fillStyle = colour(x / 199); pen.fillRect(x, 0, 1, 10); }
    $("scale-half").textContent = TOP[found.unit] / 2;
    $("scale-end").textContent = `${TOP[found.unit]}+ ${unit}`;
    found.worst.forEach((line, place) => {
      const button = document.createElement("button");
      for (const text of [`${place + 1}.`, `${line[2] ? "│" : "─"} ${line[0]}, ${line[1]}`, `${line[3].toFixed(2)}`]) {
        button.appendChild(document.createElement("span")).textContent = text;
      }
      button.setAttribute("aria-label", `Border ${place + 1}: ${line[2] ? "vertical" : "horizontal"} at x ${line[0]}, y ${line[1]}, excess ${line[3].toFixed(2)} ${unit}`);
      button.addEventListener("click", () => jump(place));
      $("borders").appendChild(document.createElement("li")).appendChild(button);
    });
  }

  function jump(place) {
    const number = judged(), found = findings[`seams/${number}`];
    if (!found?.worst?.length) return;
    current = (place + found.worst.length) % found.worst.length;
    const [x, y, vertical, , length] = found.worst[current], layer = layers[number], scale = layer.place[2] / layer.size[0];
    const middle = [x + (vertical ? 0 : length / 2), y + (vertical ? length / 2 : 0)];
    leader().show({ x: layer.place[0] + middle[0] * scale, y: layer.place[1] + middle[1] * scale, z: 1 / scale }, false);
    [...$("borders").querySelectorAll("button")].forEach((button, row) => {
      button.setAttribute("aria-current", row === current);
      if (row === current) button.scrollIntoView({ block: "nearest" });
    });
    panes.forEach(draw);
  }

  // ---- controls -----------------------------------------------------------------------------------------------------

  function point(pane, event) {
    const box = pane.element.getBoundingClientRect(), { x, y, z } = pane.view;
    const [px, py] = [x + (event.clientX - box.left - box.width / 2) / z, y + (event.clientY - box.top - box.height / 2) / z];
    const um = mpp ? ` (${(px * mpp).toFixed(1)}, ${(py * mpp).toFixed(1)} µm)` : "";
    $("where").textContent = `x ${Math.floor(px)}, y ${Math.floor(py)}${um}`;
  }

  function refresh() {
    for (const button of $("modes").children) button.setAttribute("aria-checked", button.dataset.mode === state.mode);
    for (const name of ["left", "right"]) $(name).value = state[name];
    $("right-pick").hidden = $("swap").hidden = layers.length < 2 || state.mode === "single";
    $("blend-pick").hidden = state.mode !== "blend";
    $("blend").value = 100 * state.at;
    for (const name of ["tissue", "seams", "trust"]) $(name).setAttribute("aria-pressed", Boolean(state[name]));
    layersOver();
    for (const pane of panes) if (pane.viewer.world.getItemCount()) changed(pane);
    toAddress();
  }

  function set(changes) {
    const rebuild = ["mode", "left", "right"].some(name => name in changes && changes[name] !== state[name]);
    Object.assign(state, changes);
    if (layers.length < 2) state.mode = "single";
    if (rebuild) build(); else refresh();
  }

  const swap = () => set({ left: state.right, right: state.left });
  const toggle = name => set({ [name]: state[name] ? 0 : 1 });

  async function copy() {
    clearTimeout(writing);
    try { await navigator.clipboard.writeText(location.href); say("the address is in the clipboard"); } catch { say("copy it from the address line"); }
    setTimeout(() => say(""), 2500);
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input")) return;
    const pan = { ArrowLeft: [-80, 0], ArrowRight: [80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] }[event.key];
    const actions = {
      1: () => set({ mode: "curtain" }), 2: () => set({ mode: "side" }), 3: () => set({ mode: "blend" }), 4: () => set({ mode: "single" }),
      "+": () => leader().zoomBy(1.5), "=": () => leader().zoomBy(1.5), "-": () => leader().zoomBy(1 / 1.5),
      "[": () => setAt(state.at - 0.05), "]": () => setAt(state.at + 0.05), x: swap, t: () => toggle("tissue"), s: () => hasTranslation && toggle("seams"), u: () => hasTranslation && toggle("trust"),
      n: () => jump(current + 1), p: () => jump(current < 0 ? -1 : current - 1), f: () => home(leader()), 0: oneToOne, c: copy, "?": about,
    };
    const action = pan ? () => leader().panBy(...pan) : actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  const oneToOne = () => leader().show({ ...leader().target, z: 1 / (devicePixelRatio || 1) }, false);
  const hasTranslation = layers.some(layer => layer.role === "translation");

  function about() {
    $("facts").hidden = !$("facts").hidden;
    $("about").setAttribute("aria-pressed", !$("facts").hidden);
  }

  function describe() {
    document.title = `${names().join(" | ")} – kin view`;
    for (const layer of layers) {
      const box = $("slides").appendChild(document.createElement("div"));
      box.className = "slide";
      box.appendChild(document.createElement("b")).textContent = layer.name;
      const facts = [`${layer.size.join(" × ")} px`, layer.mpp ? `${+layer.mpp.toPrecision(4)} µm per pixel` : "pixel size unknown", layer.format];
      if (layer.placedBy) facts.push(`placed ${layer.placedBy}`);
      box.appendChild(document.createElement("span")).textContent = [...facts, ...layer.notes].join("; ");
    }
    for (const name of ["left", "right"]) $(name).replaceChildren(...layers.map((layer, number) => new Option(layer.name, number)));
  }

  function start() {
    describe();
    for (const button of $("modes").children) {
      button.disabled = layers.length < 2 && button.dataset.mode !== "single";
      button.addEventListener("click", () => set({ mode: button.dataset.mode }));
    }
    for (const name of ["left", "right"]) $(name).addEventListener("change", event => set({ [name]: Number(event.target.value) }));
    $("swap").addEventListener("click", swap);
    $("blend").addEventListener("input", event => setAt(event.target.value / 100));
    for (const name of ["tissue", "seams", "trust"]) $(name).addEventListener("click", () => toggle(name));
    $("seams").disabled = $("trust").disabled = !hasTranslation;
    $("in").addEventListener("click", () => leader().zoomBy(1.5));
    $("out").addEventListener("click", () => leader().zoomBy(1 / 1.5));
    $("fit").addEventListener("click", () => home(leader()));
    $("full").addEventListener("click", oneToOne);
    $("copy").addEventListener("click", copy);
    $("about").addEventListener("click", about);
    document.addEventListener("keydown", keys);
    addEventListener("hashchange", () => build(fromAddress()));
    addEventListener("resize", () => arrange(panes.length));
    build(fromAddress());
  }

  window.KinView = { state, get panes() { return panes; }, get images() { return images; }, findings };
  start();
})();
