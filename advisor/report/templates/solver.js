// The choice under other limits, as advisor/solver makes it: limits, ranking, and whether to act at all.
// A pure function of the page's data; tests/browser holds it to the solver on random budgets.
// `budget`: {limits: [a value or null for each of data.limits], tolerance, fewest_flops}.
function solve(data, budget) {
  const broken = data.candidates.map((candidate) => data.limits
    .map((limit, n) => ({limit, value: candidate.values[n], allowed: budget.limits[n]}))
    .filter(({limit, value, allowed}) => allowed !== null && value !== null
      && (limit.floor ? value < allowed : value > allowed - limit.taken)));
  const fitting = data.candidates.map((_, n) => n)
    .filter((n) => !data.candidates[n].failed && broken[n].length === 0);
  const ranked = rank(data, budget, fitting);
  return {...weigh(data, budget, ranked), broken, fitting};
}

function rank(data, budget, fitting) {
  const accuracy = (n) => data.candidates[n].accuracy;
  const known = fitting.filter((n) => accuracy(n) !== null);
  if (!known.length) {
    const hasFloor = data.limits.some((limit, n) => limit.floor && budget.limits[n] !== null);
    return hasFloor && data.candidates.some((candidate) => candidate.accuracy !== null)
      ? [] : cheapestFirst(data, budget, fitting);
  }
  const ranked = [];
  for (const finalist of [true, false]) {
    const group = known.filter((n) => data.candidates[n].finalist === finalist);
    if (!group.length) continue;
    const best = mostAccurate(data, group);
    const asGood = group.filter((n) => accuracy(best) - accuracy(n) <= budget.tolerance
      || lossesOf(data, best).get(n) <= budget.tolerance);
    const others = group.filter((n) => !asGood.includes(n));
    ranked.push(...cheapestFirst(data, budget, asGood), ...others.sort((a, b) => accuracy(b) - accuracy(a)));
  }
  return ranked;
}

function weigh(data, budget, ranked) {
  const judged = ranked.filter((n) => data.candidates[n].accuracy !== null);
  if (!judged.length || !data.has_data) return {outcome: ranked.length ? "use" : "none", choices: ranked};
  const able = judged.filter((n) => data.candidates[n].sure_among >= judged.length);
  const finalists = judged.filter((n) => data.candidates[n].finalist);
  const best = mostAccurate(data, finalists.length ? finalists : judged);
  const base = data.base;
  const floor = data.limits.findIndex((limit) => limit.key === "min_accuracy");
  const least = floor < 0 ? null : budget.limits[floor];
  if (base && base.sure && (least === null || base.accuracy >= least)
      && (data.candidates[best].accuracy - base.accuracy <= budget.tolerance
        || base.losses[best] <= budget.tolerance)) {
    return {outcome: "leave", choices: []};
  }
  return able.length ? {outcome: "use", choices: able} : {outcome: "none", choices: []};
}

function cheapestFirst(data, budget, members) {
  const [first, second] = budget.fewest_flops ? [1, 0] : [0, 1];
  return [...members].sort((a, b) => {
    const one = data.candidates[a].costs, other = data.candidates[b].costs;
    return one[first] - other[first] || one[second] - other[second] || one[2] - other[2];
  });
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
