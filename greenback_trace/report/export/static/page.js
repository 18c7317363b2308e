"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const number = d3.format(",");
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const percent = d3.format(".1%");

function seconds(value) {
  if (!value) return "0";
  if (value < 1e-3) return `${(value * 1e6).toFixed(1)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(1)} ms`;
  return `${d3.format(",.1f")(value)} s`;
}

function say(id, text) {
  document.getElementById(id).textContent = text;
}

// Flame graph

const colours = { own: "var(--own)", installed: "var(--installed)", standard: "var(--standard)" };
let chart = null;
let weight = data.weight;

function weighted(node) {
  return {
    name: node.name,
    value: node[weight],
    node,
    children: node.children.map(weighted),
  };
}

function about(node) {
  const numbers = `${plural(node.bridges, "bridge")}, ${seconds(node.time)} in total, ` +
    `${seconds(node.waiting)} waiting`;
  return [node.name, node.file, numbers].filter(Boolean).join(" · ");
}

function drawFlames() {
  const place = document.getElementById("flame");
  place.replaceChildren();
  chart = flamegraph.default()
    .width(place.clientWidth)
    .inverted(true)
    .cellHeight(20)
    .minFrameSize(1)
    .transitionDuration(150)
    .sort((a, b) => d3.descending(a.value, b.value))
    .setColorMapper((frame) =>
      frame.highlight ? "var(--found)" : colours[frame.data.node.origin] || "var(--unknown)")
    .setLabelHandler((frame) => about(frame.data.node))
    .setSearchMatch((frame, term) => frame.data.name.toLowerCase().includes(term.toLowerCase()))
    .setSearchHandler(() => {})
    .onHover((frame) => say("flame-details", about(frame.data.node)));
  d3.select(place).datum(weighted(data.flame)).call(chart);
  search();
}

function search() {
  const term = document.getElementById("find").value.trim();
  if (term) chart.search(term);
  else chart.clear();
}

for (const input of document.querySelectorAll("#weights input")) {
  input.checked = input.value === weight;
  input.addEventListener("change", () => {
    weight = input.value;
    drawFlames();
  });
}
document.getElementById("find").addEventListener("input", search);
document.getElementById("all").addEventListener("click", () => chart.resetZoom());

// Timeline: microseconds since the first slice

const ROW = 18;
const NAMES = 170;
const severalProcesses = new Set(data.lanes.map((lane) => lane.process)).size > 1;

function drawTimeline() {
  const place = document.getElementById("lanes");
  place.replaceChildren();
  if (!data.lanes.length) {
    place.hidden = true;
    document.getElementById("whole").hidden = true;
    return;
  }
  const width = place.clientWidth - 16;
  let top = 4;
  const slices = [];
  const processes = [];
  for (const lane of data.lanes) {
    if (severalProcesses && processes.at(-1)?.name !== lane.process) {
      processes.push({ name: lane.process, top });
      top += ROW + 4;
    }
    lane.top = top;
    for (const slice of lane.slices) slices.push({ ...slice, lane, y: top + slice.depth * ROW });
    top += (d3.max(lane.slices, (slice) => slice.depth) + 1) * ROW + 6;
  }
  const end = d3.max(slices, (slice) => slice.start + slice.length) || 1;
  const scale = d3.scaleLinear([0, end], [NAMES, width - 8]);
  const axis = d3.select(place).append("svg").attr("class", "axis")
    .attr("width", width).attr("height", 26).append("g").attr("transform", "translate(0,22)");
  const drawing = d3.select(place).append("svg").attr("width", width).attr("height", top)
    .attr("role", "img").attr("aria-label", "Timeline of portals, bridges and steps");
  drawing.append("clipPath").attr("id", "room").append("rect")
    .attr("x", NAMES).attr("width", Math.max(width - NAMES, 0)).attr("height", top);
  const names = drawing.append("g").selectAll("g").data(data.lanes).join("g");
  names.append("line").attr("class", "lane-line").attr("x2", width)
    .attr("y1", (lane) => lane.top - 3).attr("y2", (lane) => lane.top - 3);
  names.append("text").attr("class", "lane-name").attr("x", 8).attr("y", (lane) => lane.top + 13)
    .text((lane) => lane.name.length > 26 ? `…${lane.name.slice(-25)}` : lane.name)
    .append("title").text((lane) => `${lane.name}, process ${lane.process}`);
  drawing.append("g").selectAll("text").data(processes).join("text")
    .attr("class", "lane-process").attr("x", 8).attr("y", (process) => process.top + 13)
    .text((process) => process.name);
  const shapes = drawing.append("g").attr("clip-path", "url(#room)").selectAll("g")
    .data(slices).join("g").attr("class", (slice) => `slice ${slice.kind}`)
    .on("mouseenter", (_, slice) => say("lane-details", describe(slice)));
  shapes.append("rect").attr("y", (slice) => slice.y).attr("height", ROW - 2).attr("rx", 1);
  shapes.append("text").attr("y", (slice) => slice.y + 12);
  shapes.append("title").text(describe);

  function show(at) {
    axis.call(d3.axisTop(at).ticks(width / 110).tickFormat((value) => seconds(value / 1e6)));
    shapes.each(function (slice) {
      const left = at(slice.start);
      const right = Math.max(at(slice.start + slice.length), left + 1);
      const isShown = right > NAMES && left < width;
      this.style.display = isShown ? "" : "none";
      if (!isShown) return;
      this.children[0].setAttribute("x", left);
      this.children[0].setAttribute("width", right - left);
      // The label stays in sight when the beginning is out of it.
      const from = Math.max(left, NAMES) + 4;
      const room = Math.floor((Math.min(right, width) - from) / 6.8);
      this.children[1].setAttribute("x", from);
      const label = slice.name.replace(/^await_ /, "");
      this.children[1].textContent =
        label.length <= room ? label : room > 3 ? `${label.slice(0, room - 1)}…` : "";
    });
  }

  const zoom = d3.zoom()
    .scaleExtent([1, 1e5])
    .extent([[NAMES, 0], [width, top]])
    .translateExtent([[NAMES, 0], [width, top]])
    // The wheel alone scrolls the lanes.
    .filter((event) => !event.button && (event.type !== "wheel" || event.ctrlKey))
    .on("zoom", (event) => show(event.transform.rescaleX(scale)));
  drawing.call(zoom);
  document.getElementById("whole").onclick = () => drawing.call(zoom.transform, d3.zoomIdentity);
  show(scale);
}

function describe(slice) {
  return [
    slice.name,
    slice.lane.name,
    ...(severalProcesses ? [slice.lane.process] : []),
    `at ${seconds(slice.start / 1e6)}, took ${seconds(slice.length / 1e6)}`,
    ...slice.more,
  ].join(" · ");
}

// Tables

function named(cell, function_, where) {
  cell.append("div").attr("class", "code").text(function_);
  if (where) cell.append("div").attr("class", "place code").text(where);
}

const columns = [
  { name: "function, file:line", key: "function", fill: (cell, site) => named(cell, site.function, site.place) },
  { name: "bridges", key: "bridges", show: number },
  { name: "suspended", key: "suspended", show: number },
  { name: "errors", key: "errors", show: number },
  { name: "cancelled", key: "cancelled", show: number },
  { name: "total", key: "time", show: seconds, bar: true },
  { name: "waiting", key: "waiting", show: seconds },
];

function drawSites(sortKey, isAscending) {
  const table = d3.select("#sites table");
  table.selectAll("*").remove();
  const head = table.append("thead").append("tr");
  for (const column of columns) {
    const cell = head.append("th").attr("scope", "col").classed("number", !column.fill);
    if (column.key === sortKey) {
      cell.attr("aria-sort", isAscending ? "ascending" : "descending");
    }
    cell.append("button").attr("type", "button").text(column.name).on("click", () =>
      drawSites(column.key, column.key === sortKey ? !isAscending : Boolean(column.fill)));
  }
  const order = isAscending ? d3.ascending : d3.descending;
  const most = d3.max(data.sites, (site) => site.time) || 1;
  const body = table.append("tbody");
  for (const site of d3.sort(data.sites, (a, b) => order(a[sortKey], b[sortKey]))) {
    const row = body.append("tr");
    for (const column of columns) {
      const cell = row.append("td").classed("number", !column.fill);
      if (column.fill) column.fill(cell, site);
      else cell.text(column.show(site[column.key]));
      if (column.bar) {
        cell.append("div").attr("class", "bar").style("width", percent(site.time / most));
      }
    }
  }
}

function drawEdits(room, title, edits, isOpen) {
  if (!edits.count) return;
  const details = room.append("details").property("open", isOpen);
  details.append("summary").text(title);
  const list = details.append("ul").attr("class", "edits");
  for (const edit of edits.shown) {
    const item = list.append("li");
    item.append("span").attr("class", "place code").text(edit.place);
    const what = item.append("span");
    what.append("span").attr("class", "code what").text(edit.what);
    if (edit.guess) {
      what.append("span").attr("class", "guess").text(" by name only: look whether it is this one");
    }
  }
  const left = edits.count - edits.shown.length;
  if (left) details.append("p").attr("class", "note").text(`And ${number(left)} more: greenback-trace plan has all.`);
}

function drawStep(room, step, index) {
  const article = room.append("article");
  const count = step.functions.length;
  article.append("h3").text(`Step ${index + 1}: ` +
    (count ? `make ${plural(count, "function")} async` : "plain awaits"));
  const track = article.append("div").attr("class", "track");
  track.append("div").attr("class", "bar").style("width", percent(Math.min(step.share, 1)));
  article.append("p").attr("class", "share").text(
    `${percent(step.share)} removed so far; this step removes ${plural(step.bridges, "bridge")} ` +
    `and ${seconds(step.time)}; about ${number(Math.round(step.left))} left`);
  const list = article.append("ol").attr("class", "functions");
  for (const each of step.functions) named(list.append("li"), each.function, each.place);
  drawEdits(article, plural(step.edits.count, "edit"), step.edits, index === 0);
  drawEdits(article, `${plural(step.breaks.count, "caller")} outside the trace that would get ` +
    "a coroutine", step.breaks, index === 0);
  if (step.moves.length) {
    const details = article.append("details");
    details.append("summary").text(
      `${plural(step.moves.length, "caller")} that ${step.moves.length === 1 ? "stays" : "stay"} ` +
      "sync for now");
    const moves = details.append("ul").attr("class", "moves");
    for (const move of step.moves) moves.append("li").text(move);
  }
}

function drawPlan() {
  const room = d3.select("#plan .wide");
  room.append("p").attr("class", "note").text(data.plan.summary);
  const steps = room.append("div").attr("class", "steps");
  data.plan.steps.forEach((step, index) => drawStep(steps, step, index));
  if (!data.plan.steps.length) {
    room.append("p").attr("class", "note").text("No function to convert was found.");
  }
  if (data.plan.stays.length) {
    room.append("h3").text("What stays, and why");
    const table = room.append("table");
    const head = table.append("thead").append("tr");
    head.append("th").attr("class", "number").text("bridges");
    head.append("th").attr("class", "number").text("total");
    head.append("th").text("blocked by");
    head.append("th").text("at");
    head.append("th").text("instead");
    const body = table.append("tbody");
    for (const each of data.plan.stays) {
      const row = body.append("tr");
      row.append("td").attr("class", "number").text(number(each.bridges));
      row.append("td").attr("class", "number").text(seconds(each.time));
      row.append("td").text(each.by);
      named(row.append("td"), each.function, each.place);
      row.append("td").text(each.idiom);
    }
  }
  room.append("p").attr("class", "note").attr("id", "plan-note").text(data.plan.note);
}

say("headline", data.headline);
say("timeline-note", data.timelineNote);
drawFlames();
drawTimeline();
drawSites("time", false);
drawPlan();
let redraw = 0;
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  cancelAnimationFrame(redraw);
  redraw = requestAnimationFrame(() => {
    drawFlames();
    drawTimeline();
  });
});
