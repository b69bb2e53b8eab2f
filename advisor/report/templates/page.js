// What the page can do beyond being read: choose again, sort, search, copy, and show a point's figures.
"use strict";
{
  const data = JSON.parse(document.getElementById("facts").textContent);
  for (const element of document.querySelectorAll(".whatif, .search, .copy, .keys")) element.hidden = false;
  if (data.candidates.length) {
    showFigures();
    chooseAgain(data);
  }
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  const search = document.getElementById("search");
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.querySelectorAll(".candidates tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.classList.toggle("unfound", !words.every((word) => text.includes(word)));
    }
  });
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch { // a page opened from a file may not: select it instead
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
    });
  }
}

function chooseAgain(data) {
  const form = document.querySelector(".whatif form");
  const tolerance = document.getElementById("tolerance");
  const prefer = document.getElementById("prefer");
  const asked = {limits: data.limits.map((limit) => limit.asked), tolerance: data.tolerance};
  const sliders = data.limits.map((limit, n) => {
    const input = document.getElementById(`limit-${n}`);
    const stops = limit.stops.map(([value, text, typed]) => ({value, text, typed}));
    const none = {value: null, text: "no limit"};
    if (limit.floor) stops.unshift(none); else stops.push(none);
    input.max = stops.length - 1;
    return {input, stops, at: stops.findIndex((stop) => stop.value === limit.asked)};
  });
  const put = () => {
    sliders.forEach(({input, at}) => { input.value = at; });
    if (tolerance) tolerance.value = data.tolerance * 100;
    prefer.value = data.prefer;
  };
  const update = () => {
    const stops = sliders.map(({input, stops}) => stops[input.value]);
    const budget = {
      limits: stops.map((stop) => stop.value),
      tolerance: tolerance ? tolerance.valueAsNumber / 100 : data.tolerance,
      prefer: prefer.value,
    };
    if (tolerance && Math.abs(budget.tolerance - data.tolerance) < 5e-4) budget.tolerance = data.tolerance;
    stops.forEach((stop, n) => {
      sliders[n].input.setAttribute("aria-valuetext", stop.text);
      sliders[n].input.nextElementSibling.textContent = stop.text;
    });
    if (tolerance) {
      const points = `${tolerance.valueAsNumber.toFixed(1)} points`;
      tolerance.setAttribute("aria-valuetext", points);
      tolerance.nextElementSibling.textContent = points;
    }
    const isAsked = budget.tolerance === asked.tolerance && budget.prefer === data.prefer
      && budget.limits.every((value, n) => value === asked.limits[n]);
    tell(data, solve(data, budget), isAsked, options(data, stops, budget));
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { put(); update(); }));
  put();
  update();
}

function options(data, stops, budget) {
  const typed = stops.flatMap((stop, n) => stop.value === null ? [] : [
    `${data.limits[n].option} ${stop.typed}`]);
  if (budget.tolerance !== data.tolerance) typed.push(`--tolerance ${+(budget.tolerance * 100).toFixed(1)}`);
  if (budget.prefer !== data.prefer) typed.push(`--prefer ${budget.prefer}`);
  return typed.join(" ");
}

function tell(data, answer, isAsked, typed) {
  const result = document.querySelector(".whatif .result");
  const best = answer.outcome === "use" ? answer.choices[0] : null;
  const chosen = (isAsked ? data.recommended : null) ?? best;
  const count = `${answer.fitting.length} of ${data.candidates.length} fit`;
  const bold = (text) => Object.assign(document.createElement("b"), {textContent: text});
  const say = (...parts) => result.replaceChildren(...parts);
  if (chosen !== null && data.candidates[chosen].accuracy === undefined && data.has_data) {
    const [name, figures] = toldOf(chosen);
    say("Nothing that fits was tried; the cheapest is ", bold(name), `: ${figures}; ${count}.`);
  } else if (chosen !== null) {
    const [name, figures] = toldOf(chosen);
    const again = data.recommended === chosen ? " (the recommended one)" : "";
    say("Use ", bold(name), `${again}: ${figures}; ${count}.`);
  } else if (answer.outcome === "leave") {
    say(bold("Leave the model as it is"), `: nothing is expected to gain more than the tolerance; ${count}.`);
  } else if (answer.fitting.length) {
    say(bold("Nothing to recommend"), `: ${count}, and none is known to be good enough.`);
  } else {
    say(bold("Nothing fits"), ".");
  }
  if (!isAsked && typed) result.append(` To ask for it: ${typed}`);
  const fitting = new Set(answer.fitting);
  data.candidates.forEach((_, n) => {
    const mark = document.getElementById(`p${n + 1}`);
    mark.classList.toggle("out", !isAsked && !fitting.has(n));
    mark.classList.toggle("again", !isAsked && chosen === n);
  });
}

// A candidate's name, and what stands at its point after it, with no line ending within a figure.
function toldOf(n) {
  const name = document.querySelector(`#c${n + 1} .name`).textContent;
  const told = document.querySelector(`#p${n + 1} desc`).textContent.slice(name.length + 2);
  return [name, told.replace(/(\d) (?=%|[kMGT]?B\b|[kMGTP]?FLOP\b)/g, "$1\u00a0")];
}

function showFigures() {
  const tip = document.getElementById("tip");
  const show = (mark) => {
    tip.textContent = document.querySelector(`${mark.getAttribute("href")} desc`).textContent;
    tip.hidden = false;
    const at = mark.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(8, Math.min(at.left, width - tip.offsetWidth - 8)) + scrollX}px`;
    const above = at.top - tip.offsetHeight - 8;
    tip.style.top = `${(above > 0 ? above : at.bottom + 8) + scrollY}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const title of document.querySelectorAll("defs title")) {
    const told = document.createElementNS(title.namespaceURI, "desc"); // a title is shown a second time
    told.id = `t${title.parentNode.id.slice(1)}`;
    told.textContent = title.textContent;
    title.replaceWith(told);
  }
  for (const figure of document.querySelectorAll("#trade figure")) {
    const marks = [...figure.querySelectorAll("use")];
    const left = new Map(marks.map((mark) => [mark, mark.x.baseVal.value]));
    const stops = marks.sort((a, b) => left.get(a) - left.get(b)).map((mark) => {
      const stop = mark.closest("a") ?? mark; // what was tried is a link, and reached by Tab, too
      if (stop === mark) {
        mark.tabIndex = -1;
        mark.setAttribute("role", "img");
        mark.setAttribute("aria-labelledby", mark.getAttribute("href").replace("#p", "t"));
      }
      mark.addEventListener("mouseenter", () => show(mark));
      mark.addEventListener("mouseleave", hide);
      stop.addEventListener("focus", () => show(mark));
      stop.addEventListener("blur", hide);
      return stop;
    });
    figure.addEventListener("keydown", (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      const next = step && stops[stops.indexOf(document.activeElement) + step];
      if (!next) return;
      event.preventDefault();
      next.focus();
    });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
}

// Each header becomes a button; figures sort by their exact value, the largest first, texts from A to Z.
function makeSortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    if (header.classList.contains("parts")) return; // bars
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const isDown = header.getAttribute("aria-sort") === "descending";
      const keys = new Map([...body.rows].map((row) => [row, keyOf(row.cells[column])]));
      const isNumber = [...keys.values()].some((key) => typeof key === "number");
      const turn = header.hasAttribute("aria-sort") ? !isDown : isNumber && column > 0;
      const rows = [...body.rows].sort((a, b) => compare(keys.get(a), keys.get(b), turn));
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", turn ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}

function keyOf(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  if (text === "\u2013") return null; // unknown: last, either way
  if (text === "-") return 0; // nothing at all
  return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
}

function compare(one, other, isDown) {
  if (one === null || other === null) return (one === null) - (other === null);
  const order = typeof one === "number" && typeof other === "number"
    ? one - other : String(one).localeCompare(String(other));
  return isDown ? -order : order;
}
