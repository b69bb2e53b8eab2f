// The choice under other limits, as advisor/solver makes it: limits, ranking, and whether to act at all.
// A pure function of the page's data; tests/browser holds it to the solver on random budgets.
// `budget`: {limits: [a value or null for each of data.limits], tolerance, prefer}.
function solve(data, budget) {
  const breaks = (candidate) => data.limits.some((limit, n) => {
    const value = candidate.values[n], allowed = budget.limits[n];
    return !limit.soft && allowed !== null && value !== null
      && (limit.floor ? value < allowed : value > allowed - limit.taken);
  });
  const fitting = data.candidates.map((_, n) => n)
    .filter((n) => !data.candidates[n].failed && !breaks(data.candidates[n]));
  return {...weigh(data, budget, rank(data, budget, fitting)), fitting};
}

function rank(data, budget, fitting) {
  const isKnown = (n) => data.candidates[n].accuracy !== undefined;
  const order = data.orders[budget.prefer];
  const cheapest = [...fitting].sort((a, b) => order[a] - order[b]);
  if (!cheapest.some(isKnown)) {
    const hasFloor = data.limits.some((limit, n) => limit.floor && !limit.soft && budget.limits[n] !== null);
    return hasFloor && data.candidates.some((candidate) => candidate.accuracy !== undefined) ? [] : cheapest;
  }
  const ranked = [];
  for (const finalist of [true, false]) {
    let left = cheapest.filter((n) => isKnown(n) && data.candidates[n].finalist === finalist);
    while (left.length) {
      const first = firstChoice(data, left, budget.tolerance);
      ranked.push(first);
      left = left.filter((n) => n !== first);
    }
  }
  return ranked;
}

// Of candidates in order of cost, the cheapest that is as good as the most accurate, and doesn't surely forget
// more than another that is; one that is neither more accurate than a cheaper one nor forgets less doesn't count.
function firstChoice(data, cheapest, tolerance) {
  const accuracy = (n) => data.candidates[n].accuracy;
  const retained = (n) => data.candidates[n].retained;
  const kept = (n) => retained(n)?.[0] ?? 0;
  const unbeaten = [];
  for (const n of cheapest) {
    if (unbeaten.every((other) => accuracy(n) > accuracy(other) || kept(n) > kept(other))) unbeaten.push(n);
  }
  const best = mostAccurate(data, unbeaten);
  const good = unbeaten.filter((n) => accuracy(best) - accuracy(n) <= tolerance
    || lossesOf(data, best).get(n) <= tolerance);
  const most = Math.max(...good.map(kept));
  return good.find((n) => !retained(n) || retained(n)[1] >= most);
}

function weigh(data, budget, ranked) {
  const probed = ranked.filter((n) => data.candidates[n].accuracy !== undefined);
  if (!probed.length || !data.has_data) return {outcome: ranked.length ? "use" : "none", choices: ranked};
  const able = probed.filter((n) => data.candidates[n].sure);
  const finalists = probed.filter((n) => data.candidates[n].finalist);
  const best = mostAccurate(data, finalists.length ? finalists : probed);
  const base = data.base;
  const floor = data.limits.findIndex((limit) => limit.name === "min_accuracy" && !limit.soft);
  const least = floor < 0 ? null : budget.limits[floor];
  if (base && base.sure && (least === null || base.accuracy >= least)
      && (data.candidates[best].accuracy - base.accuracy <= budget.tolerance
        || base.losses[best] <= budget.tolerance)) {
    return {outcome: "leave", choices: []};
  }
  return able.length ? {outcome: "use", choices: able} : {outcome: "none", choices: []};
}

function mostAccurate(data, members) {
  return members.reduce((best, n) =>
    data.candidates[n].accuracy > data.candidates[best].accuracy ? n : best);
}

// Map from candidate to what is expected to be lost with it against the best; none: more than any tolerance.
function lossesOf(data, best) {
  data.lossesOf ??= data.losses.reduce((known, [first, second, loss]) => {
    if (!known.has(first)) known.set(first, new Map());
    known.get(first).set(second, loss);
    return known;
  }, new Map());
  return data.lossesOf.get(best) ?? new Map();
}
