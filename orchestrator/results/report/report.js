"use strict";
// Draws the charts again, now answering the pointer, and again whenever a filter or a metric is chosen.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const several = data.runs.length > 1;
  document.documentElement.classList.add("scripted");

  const embedded = new Map();
  const options = { ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true } };

  const checked = (filter) =>
    new Set([...document.querySelectorAll(`input[data-filter="${filter}"]:checked`)].map((input) => input.value));
  const columnName = (column) => column.join(" · ") || "all";
  const titled = (run, title) => (several ? `${run.name} · ${title}` : title);

  function figure(title, description) {
    const element = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    const chart = document.createElement("div");
    chart.className = "chart";
    chart.setAttribute("role", "img");
    chart.setAttribute("aria-label", `${description}: ${title}`);
    element.append(caption, chart);
    return { element, chart };
  }

  // Puts charts in the place of those that are there; of calls that overtake each other the last one counts.
  async function show(id, drawings, description) {
    const host = document.getElementById(id);
    const made = drawings.map((drawing) => ({ ...drawing, ...figure(drawing.title, description) }));
    for (const result of embedded.get(id) ?? []) result.finalize();
    const results = [];
    embedded.set(id, results);
    host.style.minHeight = `${host.offsetHeight}px`;
    host.replaceChildren(...made.map((each) => each.element));
    if (!made.length) host.textContent = "Nothing to show: everything is filtered out, or was not measured.";
    for (const each of made) {
      const result = await vegaEmbed(each.chart, each.spec, options);
      if (embedded.get(id) !== results) { result.finalize(); return; }
      results.push(result);
    }
    host.style.minHeight = "";
    host.dataset.drawn = String(made.length);
  }

  function points(line, metric) {
    return (line.values[metric] ?? []).map(([step, mean, lowest, highest]) => (
      lowest === undefined
        ? { format: line.row, step, mean, replicates: 1 }
        : { format: line.row, step, mean, lowest, highest, replicates: line.n }
    ));
  }

  // One chart for each run and column, on one scale.
  function curves(kind, metric) {
    const columns = data.columns.length > 1 ? checked("column") : new Set(data.columns), rows = checked("row");
    const { domain } = data.metrics[metric];
    const drawings = [];
    for (const run of data.runs) {
      for (const column of data.columns.filter((name) => columns.has(name))) {
        const values = run[kind]
          .filter((line) => columnName(line.column) === column && rows.has(line.row))
          .flatMap((line) => points(line, metric));
        if (!values.length) continue;
        const spec = structuredClone(data.curve);
        for (const layer of spec.layer) layer.encoding.y.scale = { ...layer.encoding.y.scale, domain };
        drawings.push({ title: titled(run, column), spec: { ...spec, width: "container", data: { values } } });
      }
    }
    return drawings;
  }

  function rankChart(run, health) {
    const spec = structuredClone(data.rank[health.is_ratio]);
    spec.encoding.y.sort = health.matrices;
    spec.height = data.rankRow * health.matrices.length;
    const values = health.matrices.flatMap((matrix, i) =>
      health.steps.map((step, j) => ({ matrix, step, value: health.values[i][j], warnings: health.warnings[i][j] })),
    ).filter((row) => row.value !== null);
    const warned = health.warned ? `, ${health.warned} warning${health.warned > 1 ? "s" : ""}` : "";
    return { title: titled(run, health.title + warned), spec: { ...spec, width: "container", data: { values } } };
  }

  function rankCharts() {
    const rows = checked("row");
    const shown = document.getElementById("ranks-shown")?.value ?? "";
    return data.runs.flatMap((run) => {
      const left = run.ranks.filter((health) => rows.has(health.row));
      const wanted = shown
        ? left.filter((health) => health.shown && columnName(health.column) === shown)
        : left.slice(0, data.worrying);
      return wanted.map((health) => rankChart(run, health));
    });
  }

  function drawCurves(kind) {
    const first = data.first[kind];
    if (!first) return undefined;
    const metric = document.getElementById(`${kind}-metric`)?.value ?? first;
    document.getElementById(`${kind}-title`).textContent = data.metrics[metric].title;
    return show(`${kind}-figures`, curves(kind, metric), data.metrics[metric].title);
  }

  const drawRanks = () => show("ranks-figures", rankCharts(), "ranks by layer and step");
  const drawAll = () => Promise.all([drawCurves("learning"), drawCurves("discrete"), drawRanks()]);

  function filterTables() {
    const rows = checked("row");
    for (const row of document.querySelectorAll("tr[data-row]")) row.hidden = !rows.has(row.dataset.row);
  }

  document.addEventListener("change", ({ target }) => {
    const matrix = /^metric-(\d+)$/.exec(target.id);
    if (matrix)
      document.querySelectorAll(`.of-metric-${matrix[1]}`).forEach((each, i) => { each.hidden = i !== Number(target.value); });
    else if (target.id === "learning-metric") drawCurves("learning");
    else if (target.id === "discrete-metric") drawCurves("discrete");
    else if (target.id === "ranks-shown") drawRanks();
    else if (target.dataset.filter === "row") { filterTables(); drawAll(); }
    else if (target.dataset.filter === "column") { drawCurves("learning"); drawCurves("discrete"); }
  });
  filterTables();
  drawAll().then(() => { document.documentElement.dataset.ready = "true"; });
})();
