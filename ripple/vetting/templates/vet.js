"use strict";
(() => {
  const settings = JSON.parse(document.body.dataset.settings);
  const byName = (name) => document.getElementById(name);
  const PAGE = 36;
  const AHEAD = 8;

  // Place -> what the server said about it. `shown` is when the object was first seen, in ms.
  const items = new Map();
  const recent = [];
  let place = 0;
  let done = 0;
  let mosaic = false;
  let shown = 0;
  let hovered = null;
  let marks = new Map();

  const picture = (item) => "picture/" + item.key + "?view=" + encodeURIComponent(byName("view").value);
  const isWide = () => settings.wide_scale !== null && byName("view").value === "wide";
  const say = (name, text) => { byName(name).textContent = text; byName(name).hidden = !text; };

  const fetchItems = async (query) => {
    const answer = await fetch("items?" + query, { cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();
    for (const item of found.items) items.set(item.place, item);
    done = found.done;
    return found;
  };
  const need = async (first, count) => {
    const last = Math.min(first + count, settings.total);
    for (let k = first; k < last; k++) {
      if (!items.has(k)) { await fetchItems("from=" + k + "&count=" + (last - k)); return; }
    }
  };
  // Pictures that will be wanted next are in the browser before they are.
  const prepare = async (first, count) => {
    await need(first, count);
    for (let k = first; k < Math.min(first + count, settings.total); k++) new Image().src = picture(items.get(k));
  };

  const tally = () => {
    byName("progress").textContent = done + " of " + settings.total;
    const timed_ = recent.filter((one) => one.seconds > 0);
    const seconds = timed_.reduce((sum, one) => sum + one.seconds, 0);
    const count = timed_.reduce((sum, one) => sum + one.count, 0);
    byName("rate").textContent = seconds > 0 ? (60 * count / seconds).toFixed(0) + " per minute" : "";
  };

  const scaleBar = () => {
    const image = byName("picture");
    const across = image.naturalWidth * (isWide() ? settings.wide_scale : settings.scale);
    const length = [1, 2, 5, 10, 20, 60].find((step) => step > 0.12 * across) || 60;
    byName("bar").style.width = (100 * length / across) + "%";
    byName("barname").textContent = length + "\u2033";
  };
  byName("picture").addEventListener("load", scaleBar);

  const sayWide = (item) => { byName("nowide").hidden = !isWide() || item.wide; };
  const lacksWide = (tile, item) => { tile.dataset.nowide = isWide() && !item.wide ? "no wide field" : ""; };
  const showOne = async () => {
    byName("end").hidden = place < settings.total;
    byName("one").hidden = place >= settings.total;
    byName("mosaic").hidden = true;
    if (place >= settings.total) { document.body.dataset.place = String(place); return; }
    await need(place, AHEAD);
    const item = items.get(place);
    byName("picture").src = picture(item);
    sayWide(item);
    byName("name").textContent = item.id;
    byName("position").textContent = item.position;
    byName("given").textContent = item.grade ? "graded " + item.grade + (item.kind ? ", " + item.kind : "") : "";
    byName("note").value = item.note;
    document.body.dataset.place = String(place);
    shown = performance.now();
    prepare(place + 1, AHEAD).catch(() => {});
  };

  const CYCLE = ["", "B", "A", "C"];
  const paint = (tile) => {
    const mark = marks.get(tile.dataset.key) || "";
    tile.dataset.mark = mark;
    tile.querySelector("span").textContent = mark;
    tile.setAttribute("aria-label", "Object " + (Number(tile.dataset.place) + 1) + (mark ? ", " + mark : ""));
  };
  const showMosaic = async () => {
    byName("one").hidden = true;
    byName("end").hidden = place < settings.total;
    byName("mosaic").hidden = place >= settings.total;
    await need(place, PAGE);
    marks = new Map();
    hovered = null;
    const tiles = [];
    for (let k = place; k < Math.min(place + PAGE, settings.total); k++) {
      const item = items.get(k);
      const tile = document.createElement("button");
      tile.type = "button";
      tile.dataset.key = item.key;
      tile.dataset.place = String(k);
      const image = document.createElement("img");
      image.src = picture(item);
      image.alt = "";
      lacksWide(tile, item);
      tile.append(image, document.createElement("span"));
      if (item.grade && item.grade !== "skip") marks.set(item.key, item.grade);
      paint(tile);
      tiles.push(tile);
    }
    byName("grid").replaceChildren(...tiles);
    document.body.dataset.place = String(place);
    shown = performance.now();
    prepare(place + PAGE, PAGE).catch(() => {});
  };
  const show = () => (mosaic ? showMosaic() : showOne()).then(tally);

  const send = async (source, grades) => {
    const answer = await fetch("grades", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Ripple-Token": settings.token },
      body: JSON.stringify({ source, grades }),
    });
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();
    done = found.done;
    say("feedback", (found.tests || []).map((truth, k) => truth && grades[k].grade + ": it is " + truth).filter(Boolean).join("; "));
    return found;
  };
  const timed = (count) => {
    const seconds = (performance.now() - shown) / 1000;
    recent.push({ seconds, count });
    if (recent.length > 20) recent.shift();
    return Math.min(seconds / count, 86400);
  };

  const grade = async (value, kind) => {
    const item = items.get(place);
    if (!item) return;
    const note = byName("note").value;
    const given = { key: item.key, grade: value, kind, note, seconds: timed(1), view: byName("view").value };
    const found = await send("one", [given]);
    Object.assign(item, { grade: value, kind, note });
    place = found.next;
    await show();
  };
  // A note alone goes with the grade that is there already.
  const keepNote = async () => {
    const item = items.get(place);
    if (!item || !item.grade || item.note === byName("note").value) return;
    const note = byName("note").value;
    await send("one", [{ key: item.key, grade: item.grade, kind: item.kind, note, seconds: null, view: "" }]);
    item.note = note;
  };
  const turn = async () => {
    const tiles = Array.from(byName("grid").children);
    if (!tiles.length || place >= settings.total) return;
    const each = timed(tiles.length);
    const grades = tiles.map((tile) => {
      const item = items.get(Number(tile.dataset.place));
      const value = marks.get(tile.dataset.key) || "X";
      const kind = value === "X" ? item.kind : "";
      return { key: item.key, grade: value, kind, note: item.note, seconds: each, view: byName("view").value };
    });
    await send("mosaic", grades);
    grades.forEach((given, k) => Object.assign(items.get(Number(tiles[k].dataset.place)), { grade: given.grade, kind: given.kind }));
    place = Math.min(place + PAGE, settings.total);
    await show();
  };

  const go = async (to) => { place = Math.max(0, Math.min(to, settings.total)); await show(); };
  const nextView = async () => {
    const select = byName("view");
    select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
    await redraw();
  };
  const redraw = async () => {
    if (mosaic) {
      for (const tile of byName("grid").children) {
        const item = items.get(Number(tile.dataset.place));
        tile.querySelector("img").src = picture(item);
        lacksWide(tile, item);
      }
    } else if (items.has(place)) {
      byName("picture").src = picture(items.get(place));
      sayWide(items.get(place));
    }
    prepare(place + (mosaic ? PAGE : 1), mosaic ? PAGE : AHEAD).catch(() => {});
  };
  const toggle = async () => {
    mosaic = !mosaic;
    byName("mode").textContent = mosaic ? "One by one" : "Mosaic";
    await show();
  };
  const mark = (tile, value) => {
    if (value) marks.set(tile.dataset.key, value); else marks.delete(tile.dataset.key);
    paint(tile);
  };

  // One after the other: a key that is pressed while a grade is being kept is meant for the next object.
  let chain = Promise.resolve();
  const enqueue = (act) => {
    chain = chain.then(act).then(() => say("message", ""), (error) => say("message", "Not saved. " + error.message));
    chain.then(() => { document.body.dataset.idle = String(Number(document.body.dataset.idle || 0) + 1); });
  };

  const onMosaic = (key) => {
    if (key === "ENTER" || key === "ARROWRIGHT") return turn;
    if (key === "ARROWLEFT" || key === "BACKSPACE") return () => go(place - PAGE);
    if ("ABCX".includes(key) && hovered) { const tile = hovered; return async () => mark(tile, key); }
    return null;
  };
  const onOne = (key) => {
    if ("ABCX".includes(key)) return () => grade(key, "");
    const kind = settings.kinds[Number(key) - 1];
    if (/^[1-9]$/.test(key) && kind) return () => grade("X", kind);
    if (key === "S") return () => grade("skip", "");
    if (key === "ARROWLEFT" || key === "BACKSPACE") return () => go(place - 1);
    if (key === "ARROWRIGHT") return () => go(place + 1);
    return null;
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("textarea, input, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.toUpperCase();
    if (key === "ENTER" && !mosaic) return;
    let act = null;
    if (key === "V") act = nextView;
    else if (key === "M") act = toggle;
    else if (key === "N" && !mosaic) act = async () => byName("note").focus();
    else act = key.length > 1 || /[A-Z0-9]/.test(key) ? (mosaic ? onMosaic(key) : onOne(key)) : null;
    if (!act) return;
    event.preventDefault();
    enqueue(act);
  });
  byName("buttons").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    button.blur();
    if (button.id === "back") enqueue(() => go(place - 1));
    else enqueue(() => grade(button.dataset.grade, button.dataset.kind || ""));
  });
  byName("grid").addEventListener("click", (event) => {
    const tile = event.target.closest("button");
    if (!tile) return;
    tile.blur();
    const now = marks.get(tile.dataset.key) || "";
    mark(tile, CYCLE[(CYCLE.indexOf(now) + 1) % CYCLE.length]);
  });
  byName("grid").addEventListener("pointerover", (event) => { hovered = event.target.closest("button"); });
  byName("note").addEventListener("change", () => enqueue(keepNote));
  byName("view").addEventListener("change", () => { byName("view").blur(); enqueue(redraw); });
  byName("mode").addEventListener("click", () => { byName("mode").blur(); enqueue(toggle); });
  byName("keys").addEventListener("click", () => {
    byName("help").hidden = !byName("help").hidden;
    byName("keys").setAttribute("aria-expanded", String(!byName("help").hidden));
    byName("keys").blur();
  });

  enqueue(async () => {
    const found = await fetchItems("count=" + AHEAD);
    place = found.from;
    await show();
  });
})();
