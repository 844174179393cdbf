"use strict";
(() => {
  const grid = document.getElementById("grid");
  if (!grid) return;
  const cards = Array.from(grid.querySelectorAll(".card"));
  const byName = (name) => document.getElementById(name);
  const key = "ripple-grades-" + document.body.dataset.report;

  // Grades live in this browser until they are downloaded.
  let grades = {};
  try { grades = JSON.parse(localStorage.getItem(key) || "{}"); } catch (error) { grades = {}; }
  const keep = () => { try { localStorage.setItem(key, JSON.stringify(grades)); } catch (error) { /* private mode */ } };

  const paint = (card) => {
    const grade = grades[card.dataset.id] || "";
    card.dataset.grade = grade;
    for (const button of card.querySelectorAll(".grades button")) {
      button.setAttribute("aria-pressed", String(button.dataset.grade === grade));
    }
  };
  const setGrade = (card, grade) => {
    const id = card.dataset.id;
    if (!grade || grades[id] === grade) delete grades[id]; else grades[id] = grade;
    keep();
    paint(card);
    tally();
  };

  const value = (card, name) => Number(card.dataset[name]);
  const order = {
    rank: (a, b) => value(a, "rank") - value(b, "rank"),
    probability: (a, b) => value(b, "probability") - value(a, "probability"),
    least: (a, b) => value(a, "probability") - value(b, "probability"),
    spread: (a, b) => value(b, "spread") - value(a, "spread"),
    ra: (a, b) => value(a, "ra") - value(b, "ra"),
    dec: (a, b) => value(a, "dec") - value(b, "dec"),
    grade: (a, b) => (a.dataset.grade || "Z").localeCompare(b.dataset.grade || "Z"),
    reason: (a, b) => (a.dataset.reason || "").localeCompare(b.dataset.reason || ""),
  };

  const sort = () => {
    const choice = order[byName("sort").value];
    cards.sort((a, b) => choice(a, b) || order.rank(a, b));
    grid.append(...cards);
  };
  const filter = () => {
    const least = Number(byName("least") ? byName("least").value : 0);
    const truth = byName("truth") ? byName("truth").value : "all";
    const grade = byName("grade") ? byName("grade").value : "all";
    const reason = byName("reason") ? byName("reason").value : "all";
    const clean = byName("clean") ? byName("clean").checked : false;
    const text = byName("find").value.trim().toLowerCase();
    let shown = 0;
    for (const card of cards) {
      const data = card.dataset;
      const visible = !(Number(data.probability) < least)
        && (truth === "all" || data.truth === truth)
        && (grade === "all" || (data.grade || "none") === grade)
        && (reason === "all" || data.reason === reason)
        && !(clean && data.flags)
        && (!text || data.find.toLowerCase().includes(text));
      card.hidden = !visible;
      shown += visible;
    }
    byName("shown").textContent = shown.toLocaleString("en") + " of " + cards.length.toLocaleString("en") + " shown";
    byName("empty").hidden = shown > 0;
    if (byName("least")) byName("leastvalue").textContent = least.toFixed(2);
  };
  const tally = () => {
    if (byName("graded")) byName("graded").textContent = Object.keys(grades).length + " graded";
  };

  // A spreadsheet runs cells that begin with these as formulas.
  const cell = (text) => {
    const safe = /^[=+\-@\t\r]/.test(text) && !/^-?[0-9.]+(e-?[0-9]+)?$/i.test(text) ? "'" + text : text;
    return '"' + safe.replaceAll('"', '""') + '"';
  };
  const download = () => {
    const lines = [["id", "ra", "dec", "rank", "probability", "grade"]];
    for (const card of [...cards].sort(order.rank)) {
      const data = card.dataset;
      if (data.grade) lines.push([data.id, data.ra, data.dec, data.rank, data.probability, data.grade]);
    }
    const text = lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = "grades.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const visible = () => cards.filter((card) => !card.hidden);
  const move = (card, step) => {
    const list = visible();
    const next = list[list.indexOf(card) + step];
    if (next) next.focus();
  };
  const columns = () => getComputedStyle(grid).gridTemplateColumns.split(" ").length;

  grid.addEventListener("click", (event) => {
    const button = event.target.closest(".grades button");
    if (button) setGrade(button.closest(".card"), button.dataset.grade);
  });
  grid.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
    const pressed = event.key.toUpperCase();
    if (["A", "B", "C", "X"].includes(pressed)) { setGrade(card, pressed); move(card, 1); }
    else if (pressed === "DELETE" || pressed === "BACKSPACE") setGrade(card, "");
    else if (pressed === "ARROWRIGHT") move(card, 1);
    else if (pressed === "ARROWLEFT") move(card, -1);
    else if (pressed === "ARROWDOWN") move(card, columns());
    else if (pressed === "ARROWUP") move(card, -columns());
    else return;
    event.preventDefault();
  });
  for (const name of ["least", "truth", "grade", "reason", "clean", "find"]) {
    if (byName(name)) byName(name).addEventListener("input", filter);
  }
  byName("sort").addEventListener("input", sort);
  byName("size").addEventListener("input", (event) => grid.style.setProperty("--size", event.target.value + "px"));
  byName("bright").addEventListener("input", (event) => grid.style.setProperty("--bright", event.target.value));
  if (byName("blind")) byName("blind").addEventListener("input", (event) => document.body.classList.toggle("blind", event.target.checked));
  if (byName("download")) byName("download").addEventListener("click", download);

  cards.forEach(paint);
  sort();
  filter();
  tally();
})();
